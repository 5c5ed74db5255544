"""The corpus, one file per chunk, and the questions about it.

A model of 135 million parameters answers some questions wrong whatever it reads. These are questions that it
answers right with full prefill when the best chunks are first and last in the prompt.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from samkv_rag.exceptions import ConfigurationError

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Section:
    """One section of the handbook of an invented lighthouse: one chunk."""

    file: str
    text: str

    @property
    def content_id(self) -> str:
        """An id that changes with the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Question:
    """A question, the words of which one must be in a right answer, and the section that has the answer."""

    question: str
    answers: tuple[str, ...]
    source: str

    def is_answered_by(self, answer: str) -> bool:
        """Whether the answer contains one of the expected words."""
        return any(word.lower() in answer.lower() for word in self.answers)


def sections() -> list[Section]:
    """Return every section, in order."""
    files = sorted((FOLDER / "corpus").glob("*.md"))
    return [Section(file.name, file.read_text(encoding="utf-8").strip()) for file in files]


def questions(limit: int | None = None) -> list[Question]:
    """Return the first ``limit`` questions, or all.

    Raises:
        ConfigurationError: there are fewer questions.
    """
    entries = json.loads((FOLDER / "questions.json").read_text(encoding="utf-8"))
    every = [Question(e["question"], tuple(e["answers"]), e["source"]) for e in entries]
    if limit is not None and not 1 <= limit <= len(every):
        raise ConfigurationError(f"questions is {limit}; the demo has {len(every)}, give 1 to {len(every)}")
    return every[:limit]
