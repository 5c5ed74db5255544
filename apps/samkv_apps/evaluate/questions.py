"""A table of questions with their right answers, as a spreadsheet writes it."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from samkv_apps.evaluate.errors import CaseFileError

_COLUMNS = ("question", "answer", "source")
_DELIMITERS = ",;\t"


@dataclass(frozen=True)
class Question:
    """A question, any of whose answers is right."""

    row: int
    """As a spreadsheet counts it: the header is row 1."""
    question: str
    answers: tuple[str, ...]
    source: str | None
    """Name of the document that holds the answer, where the table says so."""


def read_questions(file: Path) -> list[Question]:
    """Read a CSV file with the columns question and answer, perhaps source; several answers are parted by ``|``.

    Cells are parted by commas, semicolons or tabs, whichever the header has.

    Raises:
        CaseFileError: the file cannot be read, has other columns, or a row lacks a cell.
    """
    rows = _read_rows(file)
    header = [name.strip().lower() for name in rows[0]] if rows else []
    if not {"question", "answer"} <= set(header) <= set(_COLUMNS) or len(set(header)) < len(header):
        raise CaseFileError(
            f"{file}, row 1: the header is {header}; it must be question,answer or {','.join(_COLUMNS)}"
        )
    questions = list(_as_questions(file, header, rows[1:]))
    if not questions:
        raise CaseFileError(f"{file} holds no questions; write one a row, below the header")
    return questions


def _read_rows(file: Path) -> list[list[str]]:
    try:
        text = file.read_bytes().decode("utf-8-sig")
        first_line = text.partition("\n")[0]
        delimiter = next((sign for sign in _DELIMITERS if sign in first_line), ",")
        return list(csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CaseFileError(f"{file} cannot be read ({error}); give a CSV file in UTF-8") from error


def _as_questions(file: Path, header: list[str], rows: list[list[str]]) -> Iterator[Question]:
    for number, cells in enumerate(rows, start=2):
        if not any(cell.strip() for cell in cells):
            continue  # spreadsheets leave empty rows behind
        where = f"{file}, row {number}"
        if len(cells) != len(header):
            raise CaseFileError(
                f"{where} has {len(cells)} cells, the header {len(header)}; put a text with commas between quotes"
            )
        yield _as_question(where, number, dict(zip(header, map(str.strip, cells), strict=True)))


def _as_question(where: str, number: int, cells: dict[str, str]) -> Question:
    answers = tuple(answer.strip() for answer in cells["answer"].split("|") if answer.strip())
    for name, given in (("question", cells["question"]), ("answer", answers)):
        if not given:
            raise CaseFileError(f"{where}: the {name} is empty; fill it in or delete the row")
    return Question(number, cells["question"], answers, cells.get("source") or None)
