"""What the demo asks of a framework's pipeline; one file implements it for each framework."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from samkv_apps.demo import Framework
from samkv_apps.demo.corpus import Section
from samkv_rag import SamKVEngine
from samkv_rag.results import GenerationMetrics

TOP_K = 8
MAX_ANSWER_TOKENS = 40
COSINE = {"hnsw:space": "cosine"}


@dataclass(frozen=True)
class Ingested:
    """How many chunks had their KV computed, and how many were stored by an earlier run."""

    added: int
    reused: int


@dataclass(frozen=True)
class Passage:
    """A retrieved chunk and its score, as the framework gives it."""

    file: str
    score: float
    text: str


class Pipeline(Protocol):
    """Embedding, vector store, ingestion and a chain around one engine."""

    def ingest(self, sections: Sequence[Section]) -> Ingested:
        """Bring the sections' embeddings into Chroma and their KV into the store, unless they are there."""

    def ask(self, question: str) -> tuple[Sequence[Passage], Iterator[str]]:
        """Retrieve passages; return them and the answer, piece by piece."""

    def ask_again(self, **options: Any) -> Iterator[str]:
        """The answer to the very prompt of the last :meth:`ask`, with other options."""

    @property
    def last_metrics(self) -> GenerationMetrics:
        """Figures of the last answer, once it has been read to its end."""


def make_pipeline(framework: Framework, engine: SamKVEngine, folder: Path, embedding_folder: Path) -> Pipeline:
    """The pipeline of ``framework``, the only one that is imported."""
    if framework is Framework.LANGCHAIN:
        from samkv_apps.demo.langchain_pipeline import LangChainPipeline

        return LangChainPipeline(engine, folder)
    from samkv_apps.demo.llama_index_pipeline import LlamaIndexPipeline

    return LlamaIndexPipeline(engine, folder, embedding_folder)
