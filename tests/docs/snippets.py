"""The code blocks of a page, run in order as a reader would paste them: `python snippets.py PAGE [SERVER ...]`.

    ```python, ```bash    run; a ```text block that directly follows is what was printed
    ```console            commands after "$ ", each with its output below it

In output ``…`` stands for any text in its line, or, alone on a line, for any lines. Comments, each on the line above a
block, change that: ``<!-- not run: reason -->``, ``<!-- needs: redis -->`` (or s3), and above output
``<!-- figures differ -->``, which compares all but the numbers, and ``<!-- words differ: Flora and Mabel -->``, for
what a model wrote. Processors round differently: of its line only the words named must be printed, with whatever lines
around them, and numbers are not compared. The working folder is where blocks run.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

RUN = ("python", "bash", "console")
_COMMENT = re.compile(r"<!-- (not run|needs|figures differ|words differ)(?:: (.+?))? -->\s*")
_INSTALLS = re.compile(r"^(?:\$ )?(?:pip|git|make|jupyter|python|docker) ", re.MULTILINE)


@dataclass(frozen=True)
class Snippet:
    """One block that runs, the line that it begins in, and what it prints; None: nothing."""

    language: str
    source: str
    line: int
    expected: str | None = None
    not_run: str = ""
    needs: str = ""
    figures_differ: bool = False


def snippets(page: Path) -> list[Snippet]:
    """Every snippet of a page, in order; ValueError where output has none above."""
    found: list[Snippet] = []
    marks, may_show = dict[str, str](), False
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8")):
        if token.type == "html_block" and (mark := _COMMENT.fullmatch(token.content)):
            marks[mark[1]] = mark[2] or "yes"
            continue
        language, line = token.info.strip() if token.type == "fence" else "", token.map[0] + 1 if token.map else 0
        if language in RUN:
            not_run = marks.get("not run", "") or ("installs" if _INSTALLS.search(token.content) else "")
            found.append(Snippet(language, token.content, line, not_run=not_run, needs=marks.get("needs", "")))
        elif language == "text":
            if not may_show:
                raise ValueError(f"{page.name}:{line}: output, and no snippet directly above")
            if (must_hold := marks.get("words differ", "")) not in token.content:
                raise ValueError(f"{page.name}:{line}: the output shown is without {must_hold!r}")
            # A model's line is any words, in lines of their own too, around the named ones; figures that follow differ.
            expected = (
                re.sub(f"(?m)^.*{re.escape(must_hold)}.*$", f"⋯{must_hold}⋯", token.content)
                if must_hold
                else token.content
            )
            figures_differ = "figures differ" in marks or bool(must_hold)
            found[-1] = replace(found[-1], expected=expected, figures_differ=figures_differ)
        marks, may_show = {}, language in ("python", "bash")
    return found


def run(page: Path, servers: tuple[str, ...] = ()) -> None:
    """Run a page's snippets; AssertionError tells which failed, or printed anything but what the page shows."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for snippet in snippets(page):
        if snippet.not_run or (snippet.needs and snippet.needs not in servers):
            continue
        try:
            wrong = _wrong(snippet, namespace, page)
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{page.name}:{snippet.line}: {type(error).__name__}: {error}") from error
        assert not wrong, f"{page.name}:{snippet.line}: {wrong}"


def difference(expected: str | None, printed: str) -> str:
    """How ``printed`` differs from ``expected``, empty where it does not; white space at line ends is nothing."""
    if expected is None:
        return f"printed, and the page does not show it:\n{printed}" if printed.strip() else ""
    shown, found = ([line.rstrip() for line in text.rstrip().splitlines()] for text in (expected, printed))
    lines = [
        r".*(?:\n.*)*?" if line == "…" else re.escape(line).replace("…", "[^\n]*").replace("⋯", r"(?:.|\n)*")
        for line in shown
    ]
    pattern = "\n".join(lines)
    return "" if re.fullmatch(pattern, "\n".join(found)) else "\n".join(difflib.ndiff(shown, found))


def _wrong(snippet: Snippet, namespace: dict[str, Any], page: Path) -> str:
    if snippet.language == "console":
        return _transcript(snippet.source)
    if snippet.language == "bash":
        printed = _shell(snippet.source)
    else:
        with contextlib.redirect_stdout(io.StringIO()) as stream:
            # Empty lines first, so that a traceback names the page's own line.
            exec(compile("\n" * snippet.line + snippet.source, str(page), "exec"), namespace)
        printed = stream.getvalue()
    if snippet.figures_differ and snippet.expected is not None:
        return difference(_without_figures(snippet.expected), _without_figures(printed))
    return difference(snippet.expected, printed)


def _transcript(source: str) -> str:
    for block in re.split(r"^\$ ", source, flags=re.MULTILINE)[1:]:
        lines = block.splitlines()
        num_lines = next((n for n, line in enumerate(lines, 1) if not line.endswith("\\")), len(lines))
        command, expected = "\n".join(lines[:num_lines]), "\n".join(lines[num_lines:])
        if wrong := difference(expected if expected.strip() else None, _shell(command)):
            return f"$ {command}\n{wrong}"
    return ""


def _shell(script: str) -> str:
    """What a script prints, errors included."""
    command = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert not done.returncode, f"status {done.returncode} of {script.strip()}\n{done.stdout}"
    return done.stdout


def _without_figures(text: str) -> str:
    """Every number as ``#``, with its sign and the spaces before it, which depend on its width."""
    return re.sub(r" *[+-]?\d[\d,.]*(?<=\d)", " #", text)


if __name__ == "__main__":
    run(Path(sys.argv[1]), tuple(sys.argv[2:]))
