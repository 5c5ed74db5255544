"""Renders an explanation as HTML. This module decides what is marked and how strongly; page.html.j2 has the words."""

from __future__ import annotations

import re
import secrets
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

if TYPE_CHECKING:
    from samkv_rag.explanation.data import Block, ExplainedChunk, Explanation, Range

DROPPED, UNSCORED, GOOD, BETTER, BEST = -1, 0, 1, 2, 3
"""Levels. UNSCORED: retained without a score, as anchors are."""
_NUM_EXCERPTS, _CHARS_BEFORE, _CHARS_BEHIND = 3, 60, 180
# Invisible characters, which would show the reader another text than the model reads: controls, changes of
# writing direction, halves of characters and invisible tags.
_UNSEEN = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\U000e0000-\U000e007f]")


def render(explanation: Explanation, is_page: bool) -> str:
    """Return a whole document, or one element for another page. Neither has scripts or loads anything."""
    return _template.render(
        explanation=explanation,
        marking=Marking(explanation),
        is_page=is_page,
        # Random, because one notebook may have the outputs of several processes.
        prefix="chunk" if is_page else f"samkv-{secrets.token_hex(4)}",
        names=[_name(chunk) for chunk in explanation.chunks],
    ).lstrip()


def _shown(value: Any) -> Any:
    """Replace invisible characters by their numbers, such as ⟨U+202E⟩, in every text that the template prints."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return _UNSEEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", value.replace("\r\n", "\n").replace("\r", "\n"))


_template = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    finalize=_shown,
    undefined=StrictUndefined,
    trim_blocks=True,
).get_template("page.html.j2")


def _name(chunk: ExplainedChunk) -> str:
    """Return a chunk's source, or else its first line, in at most 80 characters."""
    first_line = (chunk.text.strip().splitlines() or [""])[0].lstrip("#>*=- \t")
    name = " ".join((chunk.source.strip() or first_line or "without text").split())
    return name if len(name) <= 80 else f"{name[:39]}…{name[-40:]}"


Part = tuple[int, int, int]
"""Start and stop of a run of tokens, or characters, and their level."""


class Marking:
    """Marks each part of the chunks by the rank of its block's score among the retained blocks.

    Scores are heavy-tailed and of any sign, so only their order counts.
    """

    def __init__(self, explanation: Explanation) -> None:
        self.chunks = explanation.chunks
        self.scores = [b.score for chunk in self.chunks for b in chunk.blocks if b.score is not None]
        retained = (
            (block.score, number, block)
            for number, chunk in enumerate(self.chunks)
            for block in chunk.blocks
            if block.score is not None and any(r.start < block.stop and block.start < r.stop for r in chunk.retained)
        )
        self._retained = sorted(retained, key=itemgetter(0))

    def tokens(self, chunk: ExplainedChunk) -> list[Part]:
        """Return the chunk's tokens, cut where the level changes."""
        return _parts(self._levels(chunk, chunk.num_tokens, attrgetter("start", "stop")))

    def text(self, chunk: ExplainedChunk, start: int = 0, stop: int | None = None) -> list[Part]:
        """Return the characters of the chunk's text, cut where the level changes, never within a visible character."""
        text, levels = chunk.text, self._levels(chunk, len(chunk.text), attrgetter("start_char", "stop_char"))
        for space in re.finditer(r"\s+", text):  # gets the weaker level of its neighbours, so no mark ends in space
            first, last = space.span()
            inside = first > 0 and last < len(text)
            levels[first:last] = [min(levels[first - 1], levels[last]) if inside else DROPPED] * (last - first)
        for i in range(1, len(text)):
            if _continues(text[i - 1], text[i]):
                levels[i] = levels[i - 1]
        return [(start + first, start + last, level) for first, last, level in _parts(levels[start:stop])]

    def excerpts(self) -> list[tuple[int, int, int]]:
        """Return chunk number, start and stop character of the surroundings of the best blocks, best first."""
        excerpts: list[tuple[int, int, int]] = []
        for _, number, block in sorted(self._retained, key=lambda entry: -entry[0]):
            start, stop = _surroundings(self.chunks[number].text, block)
            apart = all(number != other or stop <= first or last <= start for other, first, last in excerpts)
            if start < stop and apart and len(excerpts) < _NUM_EXCERPTS:
                excerpts.append((number, start, stop))
        return excerpts

    def _levels(self, chunk: ExplainedChunk, length: int, bounds: Callable[[Range], tuple[int, int]]) -> list[int]:
        """Return the level of each of ``length`` places; ranges may overlap or end outside."""
        levels = [DROPPED] * length
        for start, stop in map(bounds, chunk.retained):
            for i in range(max(0, start), min(stop, length)):
                levels[i] = UNSCORED
        for block in chunk.blocks:
            level, (start, stop) = self._level(block), bounds(block)
            for i in range(max(0, start), min(stop, length)):
                levels[i] = max(levels[i], level) if levels[i] != DROPPED else DROPPED
        return levels

    def _level(self, block: Block) -> int:
        if block.score is None:
            return UNSCORED
        rank = len(self._retained) - bisect_right(self._retained, block.score, key=itemgetter(0))
        return BEST if rank < len(self._retained) / 6 else BETTER if rank < len(self._retained) / 2 else GOOD


def _parts(levels: Sequence[int]) -> list[Part]:
    starts = [i for i in range(len(levels)) if i == 0 or levels[i] != levels[i - 1]]
    return [(start, stop, levels[start]) for start, stop in pairwise([*starts, len(levels)])]


def _continues(before: str, character: str) -> bool:
    """Whether ``character`` combines with the one before it: an accent, a skin tone, a joined emoji."""
    skin_tone = "\U0001f3fb" <= character <= "\U0001f3ff"
    return "\u200d" in (before, character) or skin_tone or unicodedata.category(character).startswith("M")


def _surroundings(text: str, block: Block) -> tuple[int, int]:
    """Return the characters around a block, in whole words if the text has spaces."""
    start, stop = max(0, block.start_char - _CHARS_BEFORE), min(len(text), block.stop_char + _CHARS_BEHIND)
    first, last = text.find(" ", start, block.start_char), text.rfind(" ", block.stop_char, stop)
    return first + 1 if start and first >= 0 else start, last if stop < len(text) and last >= 0 else stop
