"""What was asked, answered and read, and the same as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from samkv_rag.ask.index import Place
from samkv_rag.ask.library import Update
from samkv_rag.explanation import Explanation
from samkv_rag.generation import GenerationResult


@dataclass(frozen=True)
class Source:
    """A passage that the answer was read from."""

    file: str
    page: int | None
    score: float
    """Cosine of its vector and the question's."""
    num_tokens: int
    num_kept: int
    text: str
    also_in: tuple[Place, ...] = ()
    """Where else the same text stands."""

    @property
    def places(self) -> tuple[Place, ...]:
        """Everywhere it stands."""
        return (Place(self.file, self.page), *self.also_in)

    @property
    def name(self) -> str:
        """Its places in words."""
        return "; ".join(map(place_name, self.places))


@dataclass(frozen=True)
class AskReport:
    """An answer, with the sources best first."""

    question: str
    model: str
    result: GenerationResult
    sources: tuple[Source, ...]
    update: Update
    explanation: Explanation

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {
            "question": self.question,
            "answer": self.result.text.strip(),
            "finish_reason": self.result.finish_reason,
            "model": self.model,
            "sources": [_source_as_dict(source) for source in self.sources],
            "metrics": self.result.metrics.to_dict(),
            "update": asdict(self.update),
            "explanation": self.explanation.to_dict(),
        }


def place_name(place: Place) -> str:
    """A place in words."""
    return place.path if place.page is None else f"{place.path}, page {place.page}"


def _source_as_dict(source: Source) -> dict[str, Any]:
    values = asdict(source)
    values["also_in"] = [_place_as_dict(asdict(place)) for place in source.also_in]
    return values


def _place_as_dict(place: Mapping[str, Any]) -> dict[str, Any]:
    return {"file": place["path"], "page": place["page"]}
