"""HTML elements whose text cannot be anything but text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape
from itertools import groupby

from samkv_rag.explanation.strength import DROPPED, Piece

# Unseen, they would make a reader see another text than the model: controls, changes of writing
# direction, halves of characters and invisible tags.
_UNSEEN = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\U000e0000-\U000e007f]")


def element(name: str, *content: str, **attributes: str | None) -> str:
    """An element around ``content``, which is markup.

    Attribute values are text; those that are None are left out. ``class_`` is class, ``aria_label`` aria-label.
    """
    given = (
        f' {key.rstrip("_").replace("_", "-")}="{escape(spelled(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{''.join(given)}>{''.join(content)}</{name}>"


def text(plain: str) -> str:
    """Markup that shows ``plain``, with unseen characters by their numbers, such as U+202E."""
    lines = plain.replace("\r\n", "\n").replace("\r", "\n")
    return _UNSEEN.sub(lambda found: element("span", _number(found), class_="samkv-unseen"), escape(lines))


def marked(plain: str, pieces: Iterable[Piece]) -> str:
    """The pieces of ``plain``; each run of kept ones is a ``mark``, with a ``span`` for each level in it."""
    runs = groupby(pieces, key=lambda piece: piece.level == DROPPED)
    return "".join(_run(plain, list(run), dropped) for dropped, run in runs)


def _run(plain: str, pieces: list[Piece], dropped: bool) -> str:
    shown = [(text(plain[piece.start : piece.stop]), piece.level) for piece in pieces]
    if dropped:
        return "".join(words for words, _ in shown)
    return element("mark", *(element("span", words, class_=f"samkv-{level}") for words, level in shown))


def spelled(plain: str) -> str:
    """``plain`` with unseen characters by their numbers."""
    return _UNSEEN.sub(_number, plain)


def _number(found: re.Match[str]) -> str:
    return f"U+{ord(found[0]):04X}"
