"""Docstrings as the site shows them: a griffe extension.

Roles such as ``:meth:`KVStore.open` `` become links where the site has a place for them, else plain code;
options described as ``name: text``, one below the other, become a list.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any

from griffe import Extension, NameResolutionError, Object

_ROLE = re.compile(r":(?:attr|class|func|meth|mod):`(?P<short>~?)(?P<name>[\w.]+)`")
_OPTION = re.compile(r"(?P<names>[a-z]\w*(?:, [a-z]\w*)*): (?P<text>.+)")
_TITLE = re.compile(r"[A-Z]\w+")
_PLAIN = re.compile(r"(?<!`)``(?P<code>[^`\n]+)``(?!`)")


class Docstrings(Extension):
    """Rewrites every docstring into the Markdown of the site."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Called once for every object, when all of its package is loaded."""
        if obj.docstring is not None:
            text = _PLAIN.sub(r"`\g<code>`", obj.docstring.value)
            paragraphs = [_paragraph(paragraph) for paragraph in text.split("\n\n")]
            obj.docstring.value = _ROLE.sub(lambda role: _link(obj, role), "\n\n".join(paragraphs))


def _link(obj: Object, role: re.Match[str]) -> str:
    name = role["name"]
    shown = name.rpartition(".")[2] if role["short"] else name
    return f'<autoref identifier="{_resolved(obj, name)}" optional>`{shown}`</autoref>'


def _resolved(obj: Object, name: str) -> str:
    """The full name of what a docstring calls ``name``; where it is said of no known object, ``name`` itself."""
    first, dot, rest = name.partition(".")
    try:
        return f"{obj.resolve(first)}{dot}{rest}"
    except NameResolutionError:
        return name


def _paragraph(text: str) -> str:
    """Options become a list, under the paragraph's title if it has one; all else stays."""
    first, _, rest = text.partition("\n")
    if _TITLE.fullmatch(first) and _OPTION.match(textwrap.dedent(rest)):
        return f"**{first}**\n\n{_options(textwrap.dedent(rest))}"
    is_list = len(re.findall(rf"^{_OPTION.pattern}$", text, re.MULTILINE)) > 1
    return _options(text) if is_list and _OPTION.fullmatch(first) else text


def _options(text: str) -> str:
    items: list[str] = []
    for line in text.splitlines():
        if option := _OPTION.fullmatch(line):
            names = ", ".join(f"`{name}`" for name in option["names"].split(", "))
            items.append(f"{names}\n:   {option['text']}")
        else:
            items[-1] += f" {line.strip()}"
    return "\n\n".join(items)
