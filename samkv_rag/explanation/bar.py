"""A chunk's length as a bar, with a mark wherever tokens were kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from samkv_rag.explanation.base import ExplainedChunk
from samkv_rag.explanation.markup import element
from samkv_rag.explanation.strength import BEST, BETTER, DROPPED, GOOD, UNSCORED, Strength
from samkv_rag.explanation.wording import bar_words

_HEIGHTS = {UNSCORED: 0.3, GOOD: 0.5, BETTER: 0.75, BEST: 1.0}
_LEAST_WIDTH = 0.004
"""So that a single token of a long chunk is seen."""


@dataclass(frozen=True)
class Mark:
    """A mark that stands on the bar's lower edge; all but its level is a share of the bar's length or height."""

    start: float
    width: float
    height: float
    level: int


def marks(chunk: ExplainedChunk, strength: Strength) -> Iterator[Mark]:
    """The chunk's marks, from left to right."""
    for piece in strength.tokens(chunk):
        if piece.level != DROPPED:
            width = max((piece.stop - piece.start) / chunk.num_tokens, _LEAST_WIDTH)
            start = min(piece.start / chunk.num_tokens, 1 - width)
            yield Mark(start, width, _HEIGHTS[piece.level] if strength.num_blocks else 1.0, piece.level)


def bar(chunk: ExplainedChunk, strength: Strength, length: float = 1.0) -> str:
    """The bar as an SVG image; ``length`` is its share of the space."""
    return element(
        "svg",
        *(_rectangle(mark) for mark in marks(chunk, strength)),
        class_="samkv-bar",
        role="img",
        aria_label=bar_words(strength, chunk),
        viewBox="0 0 1 1",
        preserveAspectRatio="none",
        style=f"width: {length:.1%}",
    )


def _rectangle(mark: Mark) -> str:
    return element(
        "rect",
        class_=f"samkv-bar-{mark.level}",
        x=f"{mark.start:.4f}",
        y=f"{1 - mark.height:g}",
        width=f"{mark.width:.4f}",
        height=f"{mark.height:g}",
    )
