"""An explanation as HTML: a page of its own, or a fragment of a notebook. No script, nothing loaded.

The template escapes every text; what is shown is worked out here.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import count, groupby
from pathlib import Path, PurePath
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from samkv_rag.explanation.data import Block, ExplainedChunk, Explanation

DROPPED, UNSCORED, GOOD, BETTER, BEST = -1, 0, 1, 2, 3
"""Levels: how strongly a token is marked."""

_WORDS = (
    "retained, best sixth by score",
    "retained, better half",
    "retained, the rest",
    "retained without a score",
    "dropped",
)
_LEGEND = dict(zip((BEST, BETTER, GOOD, UNSCORED, DROPPED), _WORDS, strict=True))
_HEIGHTS = {UNSCORED: 0.3, GOOD: 0.5, BETTER: 0.75, BEST: 1.0}
_NUM_EXCERPTS, _EXCERPT_CHARS = 3, 120
_LEAST_WIDTH = 0.004  # of a bar, so that a single token of a long chunk is seen
# Unseen, they would make a reader see another text than the model: controls, changes of writing
# direction, halves of characters and invisible tags.
_UNSEEN = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\U000e0000-\U000e007f]")
_fragments = count(1)

Run = list[tuple[int, str]]  # neighbouring pieces of text with their levels; all retained, or one that was dropped


class _View(NamedTuple):
    """One chunk as the template shows it."""

    chunk: ExplainedChunk
    name: str
    length: float  # of its bar, as a share of the longest
    marks: list[tuple[float, float, float, int]]  # start, width and height as shares of the bar, and level
    runs: list[Run]
    rank: int | None  # of its best block, among all


def page(explanation: Explanation) -> str:
    """A whole document, safe to open whatever the chunks' texts hold."""
    return _rendered(explanation, is_page=True, prefix="chunk")


def fragment(explanation: Explanation) -> str:
    """One element for a place within a page; its style neither leaks nor is touched by the page's."""
    return _rendered(explanation, is_page=False, prefix=f"samkv-{next(_fragments)}")


def _rendered(explanation: Explanation, is_page: bool, prefix: str) -> str:
    scores = sorted((b.score for c in explanation.chunks for b in c.blocks if b.score is not None), reverse=True)
    retained = [b for c in explanation.chunks for b in _retained_blocks(c)]
    cuts = _cuts([b.score for b in retained if b.score is not None])
    longest = max((chunk.num_tokens for chunk in explanation.chunks), default=1)
    views = [_view(chunk, cuts, scores, longest) for chunk in explanation.chunks]
    levels = {level for view in views for run in view.runs for level, _ in run}
    path = PurePath(explanation.model_name)
    template, style = _template()
    return template.render(
        e=explanation,
        is_page=is_page,
        prefix=prefix,
        style=style,
        views=views,
        excerpts=_excerpts(explanation, cuts),
        num_hits=sum(chunk.hit for chunk in explanation.chunks),
        num_blocks=len(scores),
        best=min((view.rank for view in views if view.rank), default=None),
        is_whole=explanation.num_retained >= explanation.num_tokens,
        legend={level: words for level, words in _LEGEND.items() if level in levels},
        model="/".join(path.parts[-2:]) if path.is_absolute() else explanation.model_name,
    )


@cache
def _template() -> tuple[object, str]:
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = shown
    return environment.get_template("page.html.j2"), (folder / "style.css").read_text(encoding="utf-8")


def shown(text: str) -> str:
    """``text`` with unseen characters by their numbers, such as ⟨U+202E⟩."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return _UNSEEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", lines)


def _view(chunk: ExplainedChunk, cuts: tuple[float, float], scores: Sequence[float], longest: int) -> _View:
    first_line = (chunk.text.strip().splitlines() or [""])[0]
    name = " ".join((chunk.source or re.sub(r"^[#>*=\-\s]+", "", first_line) or "without text").split())
    best = max((b.score for b in chunk.blocks if b.score is not None), default=None)
    blocks = [(block.start, block.stop, _level(block, cuts)) for block in chunk.blocks]
    levels = _levels(chunk.num_tokens, [(run.start, run.stop) for run in chunk.retained], blocks)
    return _View(
        chunk=chunk,
        name=name if len(name) <= 80 else f"{name[:39]}…{name[-40:]}",
        length=chunk.num_tokens / longest if longest else 1.0,
        marks=list(_marks(levels)),
        runs=_text_runs(chunk, cuts),
        rank=None if best is None else 1 + sum(score > best for score in scores),
    )


def _marks(levels: Sequence[int]) -> Iterator[tuple[float, float, float, int]]:
    position = 0
    for level, run in groupby(levels):
        num_tokens = len(list(run))
        if level != DROPPED:
            width = max(num_tokens / len(levels), _LEAST_WIDTH)
            yield min(position / len(levels), 1 - width), width, _HEIGHTS[level], level
        position += num_tokens


def _text_runs(chunk: ExplainedChunk, cuts: tuple[float, float], start: int = 0, stop: int | None = None) -> list[Run]:
    """The chunk's text from ``start`` to ``stop``, cut where the level changes, never within a character as seen."""
    blocks = [(block.start_char, block.stop_char, _level(block, cuts)) for block in chunk.blocks]
    levels = _levels(len(chunk.text), [(run.start_char, run.stop_char) for run in chunk.retained], blocks)
    for i in range(1, len(levels)):
        if _continues(chunk.text[i - 1], chunk.text[i]):
            levels[i] = levels[i - 1]
    pieces, position = [], start
    for level, places in groupby(levels[start:stop]):
        length = len(list(places))
        pieces.append((level, chunk.text[position : position + length]))
        position += length
    return [list(run) for _, run in groupby(pieces, key=lambda piece: piece[0] == DROPPED)]


def _levels(length: int, ranges: Iterable[tuple[int, int]], blocks: Iterable[tuple[int, int, int]]) -> list[int]:
    """Level of each place, however the ranges and blocks overlap and wherever they end."""
    levels = [DROPPED] * length
    for start, stop in ranges:
        levels[start:stop] = [UNSCORED] * len(levels[start:stop])
    for start, stop, level in blocks:
        levels[start:stop] = [max(old, level) if old != DROPPED else old for old in levels[start:stop]]
    return levels


def _level(block: Block, cuts: tuple[float, float]) -> int:
    if block.score is None:
        return UNSCORED
    best, better = cuts
    return BEST if block.score >= best else BETTER if block.score >= better else GOOD


def _cuts(scores: Sequence[float]) -> tuple[float, float]:
    """Lowest scores of the best sixth and of the better half of the retained blocks."""
    ordered = sorted(scores, reverse=True)
    if not ordered:
        return float("inf"), float("inf")
    return ordered[(len(ordered) - 1) // 6], ordered[(len(ordered) - 1) // 2]


def _retained_blocks(chunk: ExplainedChunk) -> list[Block]:
    return [b for b in chunk.blocks if any(run.start < b.stop and b.start < run.stop for run in chunk.retained)]


def _excerpts(explanation: Explanation, cuts: tuple[float, float]) -> list[tuple[int, list[Run]]]:
    """The surroundings of the best blocks, none twice, and the numbers of their chunks, from 1."""
    scored = [
        (block.score, number, block)
        for number, chunk in enumerate(explanation.chunks)
        for block in _retained_blocks(chunk)
        if block.score is not None
    ]
    taken: list[tuple[int, int, int]] = []
    for _, number, block in sorted(scored, key=lambda item: -item[0]):
        start, stop = max(0, block.start_char - _EXCERPT_CHARS), block.stop_char + _EXCERPT_CHARS
        if len(taken) < _NUM_EXCERPTS and not any(n == number and a < stop and start < b for n, a, b in taken):
            taken.append((number, start, stop))
    return [(n + 1, _text_runs(explanation.chunks[n], cuts, start, stop)) for n, start, stop in taken]


def _continues(before: str, character: str) -> bool:
    """Whether a character belongs to the one before: an accent, a skin tone, a joined emoji."""
    skin_tone = "\U0001f3fb" <= character <= "\U0001f3ff"
    return "\u200d" in (before, character) or skin_tone or unicodedata.category(character) in ("Mn", "Mc", "Me")
