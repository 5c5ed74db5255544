"""Read a table of questions and right answers, as a spreadsheet saves it."""

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
    """A question and its right answers."""

    row: int
    """The spreadsheet's row number; the header is row 1."""
    question: str
    answers: tuple[str, ...]
    source: str | None
    """The document with the answer, if the table names it."""


def read_questions(file: Path) -> list[Question]:
    """Read a CSV file with the columns question, answer and optionally source. ``|`` separates several answers.

    The header tells whether commas, semicolons or tabs separate cells.

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
        raise CaseFileError(f"{file} holds no questions; write one per row, below the header")
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
            continue  # spreadsheets write empty rows
        where = f"{file}, row {number}"
        if len(cells) != len(header):
            raise CaseFileError(
                f"{where} has {len(cells)} cells, the header {len(header)}; put a text with commas in quotes"
            )
        row = dict(zip(header, map(str.strip, cells), strict=True))
        answers = tuple(answer.strip() for answer in row["answer"].split("|") if answer.strip())
        for name, given in (("question", row["question"]), ("answer", answers)):
            if not given:
                raise CaseFileError(f"{where}: the {name} is empty; fill it in or delete the row")
        yield Question(number, row["question"], answers, row.get("source") or None)
