"""Evaluation cases: a question, its right answers and the retrieved chunks.

A file has one JSON object per line: ``id``, ``question``, ``answers`` (any of them is right), ``chunks``
(``title``, ``text`` and an optional ``source`` each) and optionally ``supporting`` (titles or sources of the chunks
with the answer).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

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
    """The chunks with the answer; None if the data does not name them."""
    retrieved: float | None = None
    """Share, in [0, 1], of the data's supporting chunks that are in ``chunks``."""
    more: tuple[str, ...] = ()
    """The best chunks of a corpus, best first, for methods that read more than ``chunks``."""

    @property
    def every_chunk(self) -> list[str]:
        """``chunks`` and ``more`` without duplicates."""
        return list(dict.fromkeys((*self.chunks, *self.more)))


def load_cases(file: Path, limit: int | None = None, seed: int | None = None) -> list[Case]:
    """Return the first ``limit`` cases (default: all), or with a seed a random sample.

    A larger limit with the same seed only adds cases.

    Raises:
        CaseFileError: the file cannot be read, has no case, or a line is not a case.
    """
    cases = list(_read_cases(file))
    if not cases:
        raise CaseFileError(f"{file} holds no cases; it must have one JSON object per line")
    if seed is not None:
        random.Random(seed).shuffle(cases)
    return cases[:limit]


def retrieval_recall(cases: Sequence[Case]) -> dict[str, float] | None:
    """Return ``n``, the number of cases that name their supporting chunks, and the mean share retrieved; else None."""
    shares = [case.retrieved for case in cases if case.retrieved is not None]
    return {"n": len(shares), "share": fmean(shares)} if shares else None


def _read_cases(file: Path) -> Iterator[Case]:
    seen: set[str] = set()
    for number, line in enumerate(_read_lines(file), start=1):
        if not line.strip():
            continue
        try:
            case = _as_case(json.loads(line))
        except (ValueError, _NotACase) as error:
            raise CaseFileError(f"{file}, line {number}: {error}") from error
        if case.case_id in seen:
            raise CaseFileError(f"{file}, line {number}: id {case.case_id!r} was given before; ids must differ")
        seen.add(case.case_id)
        yield case


def _read_lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CaseFileError(f"{file} cannot be read as UTF-8 text ({error}); give a JSON-lines file") from error


class _NotACase(Exception):  # noqa: N818  # caught where file and line are known
    """A line is not a case."""


def _as_case(record: Any) -> Case:
    if not isinstance(record, dict):
        raise _NotACase("the line is not a JSON object")
    chunks = _list(record, "chunks", lambda value: isinstance(value, dict), "objects with 'title' and 'text'")
    titled = [(_text(chunk, "title", may_be_empty=True), _text(chunk, "text")) for chunk in chunks]
    texts = tuple(f"{title}: {text}" if title else text for title, text in titled)
    names = [
        {title, _text(chunk, "source") if "source" in chunk else title}
        for (title, _), chunk in zip(titled, chunks, strict=True)
    ]
    wanted = set(_texts(record, "supporting")) if record.get("supporting") else set()
    return Case(
        case_id=_text(record, "id"),
        question=_text(record, "question"),
        answers=tuple(_texts(record, "answers")),
        chunks=texts,
        # None, too, if the retriever missed them all.
        supporting=frozenset(text for text, own in zip(texts, names, strict=True) if own & wanted) or None,
        retrieved=len(wanted & set().union(*names)) / len(wanted) if wanted else None,
    )


def _text(record: dict[str, Any], key: str, may_be_empty: bool = False) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not (may_be_empty or value.strip()):
        raise _NotACase(f"{key!r} is {_shown(value)}; it must be a text{'' if may_be_empty else ' that is not empty'}")
    return value


def _texts(record: dict[str, Any], key: str) -> list[str]:
    return _list(record, key, lambda value: isinstance(value, str) and bool(value.strip()), "texts that are not empty")


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
