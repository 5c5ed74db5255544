"""How strongly each part of a chunk is drawn: by the rank of its score among what was kept."""

from __future__ import annotations

import math
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from samkv_rag.explanation.base import Block, ExplainedChunk, Explanation, Span

DROPPED, UNSCORED, GOOD, BETTER, BEST = -1, 0, 1, 2, 3
"""Levels, rising. UNSCORED: kept unasked, as anchors are, or by a method that scores nothing."""
_BEST_SHARE, _BETTER_SHARE = 1 / 6, 1 / 2
_JOINER = "\u200d"
_NOT_ELIGIBLE = -math.inf


@dataclass(frozen=True)
class Piece:
    """Neighbouring tokens, or characters, of one level."""

    start: int
    stop: int
    level: int


class Strength:
    """Levels and ranks of one explanation.

    Scores are heavy-tailed and of any sign, so only their order counts; equal scores are equally strong.
    """

    def __init__(self, explanation: Explanation) -> None:
        self._scores = sorted(_score(block) for chunk in explanation.chunks for block in chunk.blocks if _scored(block))
        self._kept = sorted(_score(block) for chunk in explanation.chunks for block in self.kept_blocks(chunk))

    @property
    def num_blocks(self) -> int:
        """Blocks with a score."""
        return len(self._scores)

    def best_rank(self, chunk: ExplainedChunk) -> int | None:
        """Rank of the chunk's best block among all blocks, from 1; None if it has none with a score."""
        scores = [_score(block) for block in chunk.blocks if _scored(block)]
        return 1 + _num_greater(self._scores, max(scores)) if scores else None

    def kept_blocks(self, chunk: ExplainedChunk) -> list[Block]:
        """The blocks with a score of which at least one token was kept."""
        return [block for block in chunk.blocks if _scored(block) and any(_meet(span, block) for span in chunk.kept)]

    def tokens(self, chunk: ExplainedChunk) -> list[Piece]:
        """The chunk's tokens, cut where the level changes."""
        kept = ((span.start, span.stop) for span in chunk.kept)
        blocks = ((block.start, block.stop, self._level(block)) for block in chunk.blocks)
        return list(_pieces(_levels(chunk.num_tokens, kept, blocks)))

    def characters(self, chunk: ExplainedChunk) -> list[Piece]:
        """The characters of the chunk's text, cut where the level changes, never within a grapheme."""
        kept = ((span.start_char, span.stop_char) for span in chunk.kept)
        blocks = ((block.start_char, block.stop_char, self._level(block)) for block in chunk.blocks)
        return list(_pieces(_joined(chunk.text, _levels(len(chunk.text), kept, blocks))))

    def _level(self, block: Block) -> int:
        if not _scored(block):
            return UNSCORED
        rank = _num_greater(self._kept, _score(block))
        if rank < _BEST_SHARE * len(self._kept):
            return BEST
        return BETTER if rank < _BETTER_SHARE * len(self._kept) else GOOD


def _score(block: Block) -> float:
    return _NOT_ELIGIBLE if block.score is None else block.score


def _scored(block: Block) -> bool:
    return math.isfinite(_score(block))


def _meet(span: Span, block: Block) -> bool:
    return span.start < block.stop and block.start < span.stop


def _num_greater(ordered: Sequence[float], score: float) -> int:
    return len(ordered) - bisect_right(ordered, score)


def _levels(length: int, kept: Iterable[tuple[int, int]], blocks: Iterable[tuple[int, int, int]]) -> list[int]:
    """Level of each place, however the ranges overlap and wherever they end."""
    levels = [DROPPED] * length
    for start, stop in kept:
        for i in range(max(0, start), min(stop, length)):
            levels[i] = UNSCORED
    for start, stop, level in blocks:
        for i in range(max(0, start), min(stop, length)):
            if levels[i] != DROPPED:
                levels[i] = max(levels[i], level)
    return levels


def _joined(text: str, levels: list[int]) -> list[int]:
    """White space, which says nothing itself, is drawn like the weaker of its neighbours.

    And a character that belongs to the one before like that one.
    """
    for is_space, run in groupby(range(len(levels)), key=lambda i: text[i].isspace()):
        if is_space:
            places = list(run)
            levels[places[0] : places[-1] + 1] = [_weaker(levels, places[0] - 1, places[-1] + 1)] * len(places)
    for i in range(1, len(levels)):
        if _continues(text[i - 1], text[i]):
            levels[i] = levels[i - 1]
    return levels


def _weaker(levels: Sequence[int], before: int, after: int) -> int:
    return min(levels[before], levels[after]) if before >= 0 and after < len(levels) else DROPPED


def _continues(before: str, character: str) -> bool:
    skin_tone = "\U0001f3fb" <= character <= "\U0001f3ff"
    return _JOINER in (before, character) or skin_tone or unicodedata.category(character) in ("Mn", "Mc", "Me")


def _pieces(levels: Sequence[int]) -> Iterator[Piece]:
    start = 0
    for level, run in groupby(levels):
        stop = start + len(list(run))
        yield Piece(start, stop, level)
        start = stop
