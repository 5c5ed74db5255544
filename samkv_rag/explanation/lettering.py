"""Text in several levels, broken into lines: what a browser does for HTML, done for the image."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from samkv_rag.explanation.sheet import Sheet
from samkv_rag.explanation.strength import BEST, DROPPED, UNSCORED, Piece
from samkv_rag.explanation.style import LIGHT

_LEADING = 1.5
"""Distance of baselines, of the letters' size."""
_LONGEST_WORD = 18
"""Letters; longer ones, paths for instance, may be broken."""
_DESCENT = 0.42
"""From the baseline to the line's lower edge, of the letters' size."""


@dataclass(frozen=True)
class Word:
    """What no line breaks apart: parts of one or more levels."""

    parts: tuple[tuple[str, int], ...]
    spaced: bool
    """White space stands before it."""


ELLIPSIS = Word((("…", DROPPED),), spaced=False)


def words(text: str, pieces: Iterable[Piece]) -> Iterator[Word]:
    """The words of the pieces. A character of a script without spaces is a word."""
    letters = [(text[i], piece.level) for piece in pieces for i in range(piece.start, piece.stop)]
    spaced = False
    for is_space, run in groupby(letters, key=lambda letter: letter[0].isspace()):
        if not is_space:
            for unit in _units(list(run)):
                yield Word(tuple(_parts(unit)), spaced)
                spaced = False
        spaced = is_space


def _units(letters: Sequence[tuple[str, int]]) -> Iterator[list[tuple[str, int]]]:
    unit: list[tuple[str, int]] = []
    for letter in letters:
        if len(unit) == _LONGEST_WORD or (unit and (_is_wide(letter[0]) or _is_wide(unit[-1][0]))):
            yield unit
            unit = []
        unit.append(letter)
    yield unit


def _is_wide(character: str) -> bool:
    return unicodedata.east_asian_width(character) in "WF"


def _parts(letters: Iterable[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    for level, run in groupby(letters, key=lambda letter: letter[1]):
        yield "".join(character for character, _ in run), level


class Paragraph:
    """Words set in lines of ``width`` inches; those beyond ``max_lines`` are left out."""

    def __init__(
        self,
        sheet: Sheet,
        words: Iterable[Word],
        size: float,
        width: float,
        max_lines: int = 1,
        colour: str = "text",
        bold: bool = False,
    ) -> None:
        self._sheet, self._size, self._width = sheet, size, width
        self._colour, self._bold = colour, bold
        self._space = sheet.measure("x x", size) - sheet.measure("xx", size)
        self._lines = self._within(self._broken(words), max_lines)

    @property
    def height(self) -> float:
        """In inches."""
        return len(self._lines) * line_height(self._size)

    def draw(self, x: float, y: float) -> None:
        """Draw it, its upper left corner at ``x``, ``y``."""
        for number, line in enumerate(self._lines, start=1):
            self._draw_line(line, x, y + number * line_height(self._size))

    def _broken(self, words: Iterable[Word]) -> list[list[Word]]:
        lines: list[list[Word]] = [[]]
        for word in words:
            if lines[-1] and self._length([*lines[-1], word]) > self._width:
                lines.append([])
            lines[-1].append(word)
        return lines

    def _within(self, lines: list[list[Word]], max_lines: int) -> list[list[Word]]:
        """The first lines; an ellipsis says that more would follow."""
        if len(lines) <= max_lines:
            return lines
        last = [*lines[max_lines - 1], ELLIPSIS]
        while len(last) > 2 and self._length(last) > self._width:
            del last[-2]
        return [*lines[: max_lines - 1], last]

    def _length(self, line: Sequence[Word]) -> float:
        return sum((self._gap(word) if i else 0.0) + self._measure(word) for i, word in enumerate(line))

    def _draw_line(self, line: Sequence[Word], x: float, bottom: float) -> None:
        before = DROPPED
        for text, level, spaced in _runs(line):
            gap = self._space if spaced else 0.0
            self._highlight(x, bottom, gap, min(before, level))
            x = self._draw_run(text, level, x + gap, bottom)
            before = level

    def _draw_run(self, text: str, level: int, x: float, bottom: float) -> float:
        width = self._sheet.measure(text, self._size, self._is_bold(level))
        self._highlight(x, bottom, width, level)
        colour = LIGHT["pale" if level == DROPPED else self._colour]
        self._sheet.write(x, bottom - _DESCENT * self._size / 72, text, self._size, colour, self._is_bold(level))
        return x + width

    def _highlight(self, x: float, bottom: float, width: float, level: int) -> None:
        if level > UNSCORED:
            height = line_height(self._size)
            self._sheet.fill(x, bottom - 0.97 * height, width, 0.94 * height, LIGHT[f"mark{level}"])

    def _measure(self, word: Word) -> float:
        return sum(self._sheet.measure(text, self._size, self._is_bold(level)) for text, level in word.parts)

    def _is_bold(self, level: int) -> bool:
        return self._bold or level == BEST

    def _gap(self, word: Word) -> float:
        return self._space if word.spaced else 0.0


def _runs(line: Sequence[Word]) -> Iterator[tuple[str, int, bool]]:
    """Text, level, and whether white space stands before it, of neighbours of one level."""
    runs: list[tuple[str, int, bool]] = []
    for number, word in enumerate(line):
        for i, (text, level) in enumerate(word.parts):
            spaced = word.spaced and number > 0 and i == 0
            if runs and runs[-1][1] == level:
                before, _, was_spaced = runs.pop()
                runs.append((before + " " * spaced + text, level, was_spaced))
            else:
                runs.append((text, level, spaced))
    yield from runs


def plain_words(text: str) -> list[Word]:
    """The words of ``text``, none highlighted."""
    return list(words(text, [Piece(0, len(text), UNSCORED)]))


def line_height(size: float) -> float:
    """In inches, of letters of ``size`` points."""
    return _LEADING * size / 72
