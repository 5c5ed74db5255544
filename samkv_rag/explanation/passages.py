"""The passages with the best scores, with a little text around them."""

from __future__ import annotations

from dataclasses import dataclass

from samkv_rag.explanation.base import Block, ExplainedChunk, Explanation
from samkv_rag.explanation.strength import Piece, Strength

_LONG_WORD = 24
"""Characters."""


@dataclass(frozen=True)
class Passage:
    """Characters ``start`` to ``stop`` of a chunk's text."""

    chunk_number: int
    """From 0, in the prompt's order."""
    start: int
    stop: int

    def overlaps(self, other: Passage) -> bool:
        """Whether they share characters."""
        return self.chunk_number == other.chunk_number and self.start < other.stop and other.start < self.stop

    def pieces(self, chunk: ExplainedChunk, strength: Strength) -> list[Piece]:
        """Its characters, cut where the level changes."""
        return [
            Piece(max(piece.start, self.start), min(piece.stop, self.stop), piece.level)
            for piece in strength.characters(chunk)
            if piece.start < self.stop and self.start < piece.stop
        ]


def best_passages(explanation: Explanation, strength: Strength, limit: int, num_chars: int) -> list[Passage]:
    """The ``limit`` passages around the best blocks kept, best first, up to ``num_chars`` long and apart."""
    ranked = [
        (block.score or 0.0, number, block)
        for number, chunk in enumerate(explanation.chunks)
        for block in strength.kept_blocks(chunk)
    ]
    passages: list[Passage] = []
    for _, number, block in sorted(ranked, key=lambda entry: -entry[0]):
        passage = _around(explanation.chunks[number].text, number, block, num_chars)
        if len(passages) < limit and not any(passage.overlaps(other) for other in passages):
            passages.append(passage)
    return passages


def best_passage(explanation: Explanation, strength: Strength, number: int, num_chars: int) -> Passage:
    """The passage around the best block kept of chunk ``number``, or its beginning where none has a score."""
    chunk = explanation.chunks[number]
    best = max(strength.kept_blocks(chunk), key=lambda block: block.score or 0.0, default=Block(0, 0, 0, 0, None))
    return _around(chunk.text, number, best, num_chars)


def _around(text: str, number: int, block: Block, num_chars: int) -> Passage:
    """Whole words around the block, from its line's beginning if that is near: it says what the rest is about."""
    first = min(max(0, block.start_char), len(text))
    first += len(text[first:]) - len(text[first:].lstrip())
    start = text.rfind("\n", 0, first) + 1
    if first - start > num_chars // 3:
        start = _word_start(text, first - num_chars // 3, first)
    return Passage(number, start, _word_stop(text, start, min(len(text), start + num_chars)))


def _word_start(text: str, start: int, limit: int) -> int:
    """Behind the next space, if one is near; some scripts have none."""
    space = text.find(" ", start, min(limit, start + _LONG_WORD))
    return start if space < 0 else space + 1


def _word_stop(text: str, start: int, stop: int) -> int:
    space = text.rfind(" ", max(start, stop - _LONG_WORD), stop)
    return stop if space < 0 or stop == len(text) else space
