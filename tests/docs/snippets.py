"""The code blocks of a page, each with what it says it prints.

    ```python, ```bash    run; a ```text block that directly follows is what was printed
    ```console            commands after "$ ", each with its output below it
    ```text               output only: anywhere else it is a mistake

Two comments, directly above a block, change that. ``<!-- needs: redis -->`` names a server that must be
there, one of ``pages.SERVERS``; ``<!-- not run: reason -->`` leaves the block out, and is counted. Directly above
the output, ``<!-- figures differ -->`` says that its figures are those of one run: words and columns are compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from sybil import Document, Region
from sybil.parsers.markdown.lexers import FencedCodeBlockLexer

RUN = ("python", "bash", "console")
OUTPUT = "text"
_FENCES = FencedCodeBlockLexer(language="[a-z]*")
_FIGURES_DIFFER = "<!-- figures differ -->"
_COMMENT = re.compile(r"<!-- (?P<kind>not run|needs): (?P<text>[^\n]+?) -->\n[ \t]*\Z")


class MisplacedBlockError(ValueError):
    """A block that says nothing, or in the wrong place."""


@dataclass(frozen=True)
class Snippet:
    """One block that runs, and the line it begins in."""

    language: str
    source: str
    line: int
    expected: str | None
    """What it prints; None: nothing."""
    not_run: str | None = None
    needs: str | None = None
    figures_differ: bool = False
    """The figures in ``expected`` are those of one run."""


def snippets(page: Path) -> list[Snippet]:
    """Every snippet of a page, in order.

    Raises:
        MisplacedBlockError: output that no snippet stands above.
    """
    return [region.parsed for region in regions(Document(page.read_text(encoding="utf-8"), str(page)))]


def regions(document: Document) -> Iterator[Region]:
    """A Sybil parser: the regions of a page's snippets, ``parsed`` being the :class:`Snippet`.

    Raises:
        MisplacedBlockError: output that no snippet stands above.
    """
    blocks = sorted(_FENCES(document), key=lambda block: block.start)
    taken: set[int] = set()
    for block, following in zip_longest(blocks, blocks[1:]):
        if block.lexemes["language"] not in RUN:
            continue
        shown = following if following is not None and _is_output_of(block, following, document) else None
        if shown is not None:
            taken.add(shown.start)
        yield _region(block, shown, document)
    for block in blocks:
        if block.lexemes["language"] == OUTPUT and block.start not in taken:
            raise MisplacedBlockError(f"{document.path}:{_line(document, block)}: output, and no snippet right above")


def _region(block: Region, shown: Region | None, document: Document) -> Region:
    kind, text = _comment_above(block, document)
    language, line = block.lexemes["language"], _line(document, block)
    expected = None if shown is None else str(shown.lexemes["source"])
    if language == "console" and shown is not None:
        raise MisplacedBlockError(f"{document.path}:{line}: a console block holds its own output")
    marks = {"not_run": text if kind == "not run" else None, "needs": text if kind == "needs" else None}
    differ = shown is not None and _FIGURES_DIFFER in document.text[block.end : shown.start]
    snippet = Snippet(language, block.lexemes["source"], line, expected, **marks, figures_differ=differ)
    return Region(block.start, block.end, parsed=snippet)


def _is_output_of(block: Region, following: Region, document: Document) -> bool:
    between = document.text[block.end : following.start].strip()
    return following.lexemes["language"] == OUTPUT and between in ("", _FIGURES_DIFFER)


def _comment_above(block: Region, document: Document) -> tuple[str, str]:
    found = _COMMENT.search(document.text[: block.start])
    return (found["kind"], found["text"]) if found else ("", "")


def _line(document: Document, block: Region) -> int:
    return document.text.count("\n", 0, block.start) + 1
