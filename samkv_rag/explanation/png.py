"""An explanation as an image: each chunk a row with its name, where it was read, and its best passage."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from samkv_rag.explanation.bar import marks
from samkv_rag.explanation.base import ExplainedChunk, Explanation
from samkv_rag.explanation.lettering import ELLIPSIS, Paragraph, Word, line_height, plain_words, words
from samkv_rag.explanation.passages import best_passage
from samkv_rag.explanation.sheet import DPI, Sheet
from samkv_rag.explanation.strength import Strength
from samkv_rag.explanation.style import LIGHT
from samkv_rag.explanation.wording import NO_CHUNKS, TITLE, chunk_name, kept_share, legend, model_label, short_share

_WIDTH, _MARGIN = 10.0, 0.35
_NAME = (_MARGIN, 1.95)
_KEPT_RIGHT = 3.05
_BAR = (3.25, 2.45)
_PASSAGE = (5.95, _WIDTH - _MARGIN - 5.95)
"""Left edge and width, in inches, as every pair here."""
_ANSWER, _BODY, _SMALL = 14.0, 8.5, 7.5
"""Sizes of letters, in points."""
_MAX_ROWS = 100


def image(explanation: Explanation, file: str | PathLike[str] | None = None) -> bytes:
    """Return a PNG image, and write it to ``file`` if given; equal explanations give equal bytes.

    Raises:
        ConfigurationError: matplotlib is not installed.
        OSError: ``file`` cannot be written.
    """
    picture = _Picture(explanation).drawn()
    if file is not None:
        Path(file).write_bytes(picture)
    return picture


class _Picture:
    """Draws downwards; ``_y`` is where the next thing begins."""

    def __init__(self, explanation: Explanation) -> None:
        self._explanation = explanation
        self._strength = Strength(explanation)
        self._sheet = Sheet(_WIDTH, LIGHT["back"])
        self._y = _MARGIN

    def drawn(self) -> bytes:
        self._head()
        if not self._explanation.chunks:
            self._paragraph(NO_CHUNKS, _BODY, "text")
            return self._sheet.png(self._y + _MARGIN)
        self._columns()
        for number in range(min(len(self._explanation.chunks), _MAX_ROWS)):
            self._row(number)
        self._foot()
        return self._sheet.png(self._y + _MARGIN)

    def _head(self) -> None:
        e = self._explanation
        self._paragraph(TITLE, _BODY, "muted")
        self._y += 0.04
        self._paragraph(e.answer.strip() or "(no answer)", _ANSWER, "text", max_lines=4)
        self._y += 0.06
        self._paragraph(f"{kept_share(e.num_kept, e.num_tokens)}  ·  {e.method}  ·  {model_label(e)}", _BODY, "muted")
        if e.fallback_reason:
            self._paragraph(f"Full prefill ran: {e.fallback_reason}", _BODY, "muted", max_lines=2)
        self._y += 0.18

    def _columns(self) -> None:
        baseline = self._y + 0.12
        for (x, _), name in ((_NAME, "Chunk"), (_BAR, "Where it was read"), (_PASSAGE, "Best-scored passage")):
            self._sheet.write(x, baseline, name, _SMALL, LIGHT["muted"])
        self._write_kept("Tokens kept", baseline, "muted")
        self._y += 0.22

    def _row(self, number: int) -> None:
        chunk = self._explanation.chunks[number]
        self._rule()
        top = self._y + 0.07
        is_best = self._strength.best_rank(chunk) == 1
        name = Paragraph(self._sheet, self._name(chunk, number), _SMALL, _NAME[1], self._num_lines, bold=is_best)
        passage = Paragraph(self._sheet, self._passage(chunk, number), _SMALL, _PASSAGE[1], self._num_lines)
        name.draw(_NAME[0], top)
        passage.draw(_PASSAGE[0], top)
        self._write_kept(short_share(chunk), top + 0.115, "text")
        self._bar(chunk, top)
        self._y = top + max(name.height, passage.height) + 0.08

    def _name(self, chunk: ExplainedChunk, number: int) -> list[Word]:
        return plain_words(f"{number + 1}.  {chunk_name(chunk, 25 * self._num_lines)}")

    def _passage(self, chunk: ExplainedChunk, number: int) -> list[Word]:
        found = best_passage(self._explanation, self._strength, number, 90 * self._num_lines)
        shown = list(words(chunk.text, found.pieces(chunk, self._strength)))
        return [*([ELLIPSIS] if found.start else []), *shown, *([ELLIPSIS] if found.stop < len(chunk.text) else [])]

    def _bar(self, chunk: ExplainedChunk, top: float) -> None:
        left, width = _BAR[0], _BAR[1] * chunk.num_tokens / self._longest
        height = 0.155 if self._num_lines == 1 else 0.21
        self._sheet.fill(left, top, width, height, LIGHT["track"])
        for mark in marks(chunk, self._strength):
            y = top + height * (1 - mark.height)
            self._sheet.fill(
                left + mark.start * width, y, mark.width * width, height * mark.height, LIGHT[f"bar{mark.level}"]
            )

    def _foot(self) -> None:
        self._rule()
        self._y += 0.08
        left_out = len(self._explanation.chunks) - _MAX_ROWS
        if left_out > 0:
            self._paragraph(f"… and {left_out:,} more chunks", _SMALL, "muted")
        x = _MARGIN
        for level, meaning in legend(self._explanation, self._strength).items():
            Paragraph(self._sheet, [Word((("text", level),), spaced=False)], _SMALL, 1.0).draw(x, self._y)
            self._sheet.write(x + 0.32, self._y + 0.11, meaning, _SMALL, LIGHT["muted"])
            x += 0.55 + self._sheet.measure(meaning, _SMALL)
        self._y += line_height(_SMALL)

    def _rule(self) -> None:
        self._sheet.fill(_MARGIN, self._y, _WIDTH - 2 * _MARGIN, 1 / DPI, LIGHT["line"])

    def _paragraph(self, text: str, size: float, colour: str, max_lines: int = 1) -> None:
        lines = Paragraph(self._sheet, plain_words(text), size, _WIDTH - 2 * _MARGIN, max_lines, colour)
        lines.draw(_MARGIN, self._y)
        self._y += lines.height

    def _write_kept(self, text: str, baseline: float, colour: str) -> None:
        left = _KEPT_RIGHT - self._sheet.measure(text, _SMALL)
        self._sheet.write(left, baseline, text, _SMALL, LIGHT[colour])

    @property
    def _longest(self) -> int:
        return max(1, *(chunk.num_tokens for chunk in self._explanation.chunks))

    @property
    def _num_lines(self) -> int:
        """Lines of text a chunk: fewer the more chunks there are."""
        num_chunks = len(self._explanation.chunks)
        return 3 if num_chunks <= 6 else 2 if num_chunks <= 14 else 1
