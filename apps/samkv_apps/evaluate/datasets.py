"""Evaluation cases: a question, its right answers and the retrieved chunks.

A file has one JSON object per line: ``id``, ``question``, ``answers`` (any of them is right), ``chunks``
(``title``, ``text`` and an optional ``source`` each) and optionally ``supporting`` (titles or sources of the chunks
with the answer). A case for a long answer has ``items`` in place of ``answers``: facts, each a list of its wordings.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from samkv_apps.evaluate.errors import CaseFileError


@dataclass(frozen=True)
class Case:
    """A question with its chunks."""

    case_id: str
    question: str
    answers: tuple[str, ...]
    chunks: tuple[str, ...]
    """The texts in the prompt, with their titles."""
    supporting: frozenset[str] | None
    """The chunks with the answer; None if the data does not name them, or none of them is there."""
    retrieved: float | None = None
    """Share, in [0, 1], of the data's supporting chunks that are in ``chunks``."""
    more: tuple[str, ...] = ()
    """The best chunks of a corpus, best first, for methods that read more than ``chunks``."""
    wanted: frozenset[str] = frozenset()
    """The names of the chunks with the answer, as the data gives them."""
    names: tuple[frozenset[str], ...] = ()
    """The names of each of the file's own chunks."""

    @property
    def every_chunk(self) -> list[str]:
        """``chunks`` and ``more`` without duplicates."""
        return list(dict.fromkeys((*self.chunks, *self.more)))


@dataclass(frozen=True)
class LongCase:
    """A request for a long answer, with its chunks."""

    case_id: str
    question: str
    items: tuple[tuple[str, ...], ...]
    """The facts that the answer should contain. Any wording of a fact is right."""
    chunks: tuple[str, ...]
    """The texts in the prompt, with their titles."""


AnyCase = TypeVar("AnyCase", bound="Case | LongCase")


def load_cases(file: Path, limit: int | None = None, seed: int | None = None) -> list[Case]:
    """Return the first ``limit`` cases (default: all), or with a seed a random sample.

    A larger limit with the same seed only adds cases.

    Raises:
        CaseFileError: the file cannot be read, has no case, or a line is not a case.
    """
    return _drawn(list(_read_cases(file, _as_case)), seed)[:limit]


def load_long_cases(file: Path, seed: int | None = None) -> list[Case | LongCase]:
    """Return all cases, of both kinds; with a seed in random order.

    Raises:
        CaseFileError: as ``load_cases``.
    """
    return _drawn(list(_read_cases(file, _as_any_case)), seed)


def _drawn(cases: list[AnyCase], seed: int | None) -> list[AnyCase]:
    if seed is not None:
        random.Random(seed).shuffle(cases)
    return cases


def retrieval_recall(cases: Sequence[Case]) -> dict[str, float] | None:
    """Return ``n``, the number of cases that name their supporting chunks, and the mean share retrieved.

    None if no case names any.
    """
    shares = [case.retrieved for case in cases if case.retrieved is not None]
    return {"n": len(shares), "share": fmean(shares)} if shares else None


def _read_cases(file: Path, as_case: Callable[[Any], AnyCase]) -> Iterator[AnyCase]:
    seen: set[str] = set()
    for number, line in enumerate(_read_lines(file), start=1):
        if not line.strip():
            continue
        try:
            case = as_case(json.loads(line))
        except (ValueError, _NotACase) as error:
            raise CaseFileError(f"{file}, line {number}: {error}") from error
        if case.case_id in seen:
            raise CaseFileError(f"{file}, line {number}: id {case.case_id!r} was given before; ids must differ")
        seen.add(case.case_id)
        yield case
    if not seen:
        raise CaseFileError(f"{file} holds no cases; it must have one JSON object per line")


def _read_lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CaseFileError(f"{file} cannot be read as UTF-8 text ({error}); give a JSON-lines file") from error


class _NotACase(Exception):  # noqa: N818  # caught where file and line are known
    """A line is not a case."""


def _as_any_case(record: Any) -> Case | LongCase:
    if not isinstance(record, dict) or "items" not in record:
        return _as_case(record)
    items = _list(record, "items", _is_texts, "lists of texts that are not empty")
    return LongCase(
        case_id=_text(record, "id"),
        question=_text(record, "question"),
        items=tuple(map(tuple, items)),
        chunks=tuple(text for text, _ in _chunks(record)),
    )


def _as_case(record: Any) -> Case:
    if not isinstance(record, dict):
        raise _NotACase("the line is not a JSON object")
    chunks = _chunks(record)
    texts = tuple(text for text, _ in chunks)
    wanted = set(_texts(record, "supporting")) if record.get("supporting") else set()
    return Case(
        case_id=_text(record, "id"),
        question=_text(record, "question"),
        answers=tuple(_texts(record, "answers")),
        chunks=texts,
        supporting=frozenset(text for text, names in chunks if names & wanted) or None,
        retrieved=len(wanted & set().union(*(names for _, names in chunks))) / len(wanted) if wanted else None,
        wanted=frozenset(wanted),
        names=tuple(frozenset(names) for _, names in chunks),
    )


def _chunks(record: dict[str, Any]) -> list[tuple[str, set[str]]]:
    """Return the text, with its title, and the names of each chunk."""
    chunks = []
    for chunk in _list(record, "chunks", lambda value: isinstance(value, dict), "objects with 'title' and 'text'"):
        title, text = _text(chunk, "title", may_be_empty=True), _text(chunk, "text")
        names = {title, _text(chunk, "source") if "source" in chunk else title}
        chunks.append((f"{title}: {text}" if title else text, names))
    return chunks


def _text(record: dict[str, Any], key: str, may_be_empty: bool = False) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not (may_be_empty or value.strip()):
        raise _NotACase(f"{key!r} is {_shown(value)}; it must be a text{'' if may_be_empty else ' that is not empty'}")
    return value


def _texts(record: dict[str, Any], key: str) -> list[str]:
    return _list(record, key, _is_text, "texts that are not empty")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value))


def _list(record: dict[str, Any], key: str, is_right: Callable[[Any], bool], of: str) -> list[Any]:
    values = record.get(key)
    if not isinstance(values, list) or not values or not all(map(is_right, values)):
        raise _NotACase(f"{key!r} is {_shown(values)}; it must be a list of {of}")
    return values


def _shown(value: object) -> str:
    if value is None:
        return "missing"
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:59]}…"
