"""Docstrings as the site shows them: a griffe extension.

Roles such as ``:meth:`generate` `` become links where the site has a place for them, else plain code.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, NameResolutionError, Object

_ROLE = re.compile(r":(?:attr|class|func|meth|mod):`(?P<short>~?)(?P<name>[\w.]+)`")
_CODE = re.compile(r"(?<!`)``(?P<code>[^`\n]+)``(?!`)")


class Docstrings(Extension):
    """Rewrites every docstring into Markdown."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Called once for every object, when all of its package is loaded."""
        if obj.docstring is not None:
            text = _CODE.sub(r"`\g<code>`", obj.docstring.value)
            obj.docstring.value = _ROLE.sub(lambda role: _link(obj, role), text)


def _link(obj: Object, role: re.Match[str]) -> str:
    name = role["name"]
    first, dot, rest = name.partition(".")
    try:
        target = f"{obj.resolve(first)}{dot}{rest}"
    except NameResolutionError:
        target = name
    shown = name.rpartition(".")[2] if role["short"] else name
    return f'<autoref identifier="{target}" optional>`{shown}`</autoref>'
