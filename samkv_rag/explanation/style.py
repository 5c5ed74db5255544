"""Colours and CSS of an explanation. Every text has a contrast of 4.5 or more, in light and in dark."""

from __future__ import annotations

ROOT = "samkv-explanation"
LIGHT = {
    "back": "#ffffff",
    "panel": "#f6f5f2",
    "line": "#dcdad3",
    "text": "#1b1d21",
    "muted": "#5c626b",
    "pale": "#6e7580",
    "link": "#0b57b4",
    "mark1": "#ffedd1",
    "mark2": "#ffd08a",
    "mark3": "#f9a62b",
    "ink1": "#1b1d21",
    "ink2": "#1b1d21",
    "ink3": "#1b1d21",
    "rule": "#a85800",
    "rule3": "#7a3c00",
    "track": "#ebe8e1",
    "bar0": "#7c8087",
    "bar1": "#b8721f",
    "bar2": "#935003",
    "bar3": "#571f00",
}
DARK = {
    "back": "#15171b",
    "panel": "#1e2126",
    "line": "#383c44",
    "text": "#eceef1",
    "muted": "#a9b0ba",
    "pale": "#8f96a1",
    "link": "#8ab8ff",
    "mark1": "#3a2b14",
    "mark2": "#6d4808",
    "mark3": "#f9b04a",
    "ink1": "#ffeacb",
    "ink2": "#ffffff",
    "ink3": "#1b1206",
    "rule": "#f0a43a",
    "rule3": "#7a3c00",
    "track": "#24272d",
    "bar0": "#8f96a1",
    "bar1": "#9a6a24",
    "bar2": "#d8943a",
    "bar3": "#ffdca8",
}

# "&" is the root. Naming its class thrice outweighs the rules of whatever page it stands in, and
# "all: revert" undoes them. The words that are only spoken take no place, but are not "display: none",
# which would silence them.
_RULES = """
& { all: initial; box-sizing: border-box; display: block; position: relative; max-width: 960px; padding: 20px 24px;
  direction: ltr; border: 1px solid var(--line); border-radius: 9.6px; background: var(--back); color: var(--text);
  font: 15px/1.5 Inter, system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", Arial, sans-serif;
  overflow-wrap: anywhere; }
&.samkv-page { max-width: none; min-height: 100vh; border: 0; border-radius: 0; }
& :not(style, svg *) { all: revert; box-sizing: border-box; }
& *::before, & *::after { content: none; }
& .samkv-inner { display: block; max-width: 960px; margin: 0 auto; }
& .samkv-title { margin: 0 0 14.4px; font-size: 21.6px; line-height: 1.25; font-weight: 700; }
& .samkv-name { margin: 0; font-size: 16.8px; line-height: 1.35; font-weight: 700; }
& .samkv-answer { margin: 0; padding: 12px 16px; border-left: 4px solid var(--rule); background: var(--panel);
  font-size: 16.8px; white-space: pre-wrap; }
& .samkv-note { margin: 14.4px 0 0; padding: 9.6px 16px; border: 1px solid var(--rule); }
& .samkv-label { margin: 17.6px 0 4.8px; font-weight: 700; }
& .samkv-passages { margin: 0; padding: 0 0 0 22.4px; }
& .samkv-passages li { margin: 0 0 8px; }
& .samkv-passages p { margin: 0; font-size: 14.88px; }
& .samkv-facts { display: grid; grid-template-columns: max-content 1fr; gap: 1.6px 16px; margin: 14.4px 0 0; }
& .samkv-facts dt { color: var(--muted); }
& .samkv-facts dd { margin: 0; }
& .samkv-legend { display: flex; flex-wrap: wrap; gap: 4.8px 19.2px; margin: 17.6px 0 0; padding: 0; list-style: none;
  font-size: 13.92px; }
& .samkv-legend li { display: block; color: var(--pale); }
& .samkv-overview { width: 100%; margin: 17.6px 0 0; border-collapse: collapse; font-size: 14.88px; }
& .samkv-overview caption { padding: 0 0 4.8px; text-align: left; font-weight: 700; }
& .samkv-overview th, & .samkv-overview td { padding: 4.8px 16px 4.8px 0; border-top: 1px solid var(--line);
  text-align: left; vertical-align: middle; font-weight: 400; }
& .samkv-overview thead th { border-top: 0; color: var(--muted); font-size: 13.92px; }
& .samkv-overview .samkv-number { padding-left: 0; text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
& .samkv-overview tr > :last-child { padding-right: 0; }
& .samkv-overview .samkv-where { width: 38%; }
& .samkv-overview .samkv-first :is(th, td) { font-weight: 700; }
& a { color: var(--link); text-decoration: underline; text-underline-offset: 0.15em; }
& a:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
& .samkv-chunk { display: block; margin: 25.6px 0 0; padding: 17.6px 0 0; border-top: 1px solid var(--line); }
& .samkv-about { margin: 1.6px 0 8px; color: var(--muted); font-size: 14.88px; }
& .samkv-bar { display: block; width: 100%; height: 20px; min-width: 16px; border-radius: 2px;
  background: var(--track); }
& .samkv-overview .samkv-bar { height: 16px; }
& rect { display: inline; float: none; visibility: visible; opacity: 1; }
& .samkv-bar-0 { fill: var(--bar0); } & .samkv-bar-1 { fill: var(--bar1); }
& .samkv-bar-2 { fill: var(--bar2); } & .samkv-bar-3 { fill: var(--bar3); }
& .samkv-text { margin: 11.2px 0 0; color: var(--pale); white-space: pre-wrap; tab-size: 4; unicode-bidi: isolate; }
& .samkv-short { white-space: normal; }
& mark { display: inline; background: none; color: var(--text); }
& mark span { text-decoration-line: underline; text-decoration-color: var(--rule); text-underline-offset: 0.18em;
  text-decoration-skip-ink: none; -webkit-box-decoration-break: clone; box-decoration-break: clone; }
& .samkv-0 { text-decoration-style: dotted; text-decoration-thickness: 2px; }
& .samkv-1 { background: var(--mark1); color: var(--ink1); text-decoration-thickness: 1px; }
& .samkv-2 { background: var(--mark2); color: var(--ink2); text-decoration-thickness: 2px; }
& .samkv-3 { background: var(--mark3); color: var(--ink3); text-decoration-color: var(--rule3);
  text-decoration-thickness: 3px; font-weight: 600; }
&.samkv-whole mark span { text-decoration-line: none; }
& .samkv-unseen { padding: 0 0.2em; border: 1px solid currentColor; border-radius: 0.2em; font-size: 0.8em; }
& .samkv-text mark::before, & .samkv-text mark::after { position: absolute; width: 1px; height: 1px;
  overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
& .samkv-text mark::before { content: " kept: "; }
& .samkv-text mark::after { content: " end of kept. "; }
@media (max-width: 640px) {
  & { padding: 16px 14.4px; }
  & .samkv-overview th, & .samkv-overview td { padding-right: 9.6px; }
  & .samkv-overview .samkv-where, & .samkv-overview .samkv-rank { display: none; }
}
@media print {
  & { border: 0; padding: 0; max-width: none; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  & .samkv-name, & .samkv-about, & .samkv-bar { break-after: avoid; }
  & tr { break-inside: avoid; }
}
"""
# The names under which JupyterLab, VS Code and MkDocs Material say which of the two they show.
_LIGHT_HOSTS = '[data-jp-theme-light="true"] &, .vscode-light &, [data-md-color-scheme="default"] &'
_DARK_HOSTS = '[data-jp-theme-light="false"] &, .vscode-dark &, [data-md-color-scheme="slate"] &'


def css() -> str:
    """All rules; they reach nothing outside an element of class :data:`ROOT`."""
    light, dark = _variables("light", LIGHT), _variables("dark", DARK)
    themes = (
        f"& {{ {light} }}\n@media screen and (prefers-color-scheme: dark) {{ & {{ {dark} }} }}\n"
        f"{_LIGHT_HOSTS} {{ {light} }}\n@media screen {{ {_DARK_HOSTS} {{ {dark} }} }}\n"
    )
    return (themes + _RULES).replace("&", f".{ROOT}" * 3)


def _variables(scheme: str, colours: dict[str, str]) -> str:
    return f"color-scheme: {scheme}; " + " ".join(f"--{name}: {colour};" for name, colour in colours.items())
