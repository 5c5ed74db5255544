"""The interface of a framework's pipeline. Each framework implements it in a file of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from samkv_apps.demo import Framework
from samkv_apps.demo.corpus import Section
from samkv_apps.demo.report import Source
from samkv_rag import SamKVEngine
from samkv_rag.results import GenerationMetrics

TOP_K = 8
MAX_ANSWER_TOKENS = 40
COSINE = {"hnsw:space": "cosine"}


@dataclass(frozen=True)
class Ingested:
    """The number of chunks computed now, and of those stored by an earlier run."""

    added: int
    reused: int


class Pipeline(Protocol):
    """Embedding, vector store, ingestion and a chain around one engine."""

    def ingest(self, sections: Sequence[Section]) -> Ingested:
        """Add the sections' embeddings to Chroma and their KV to the store, unless they are there."""

    def ask(self, question: str, **options: Any) -> tuple[list[Source], Iterator[str]]:
        """Retrieve chunks; return them and the answer, piece by piece. ``options`` are the LLM's."""

    @property
    def last_metrics(self) -> GenerationMetrics:
        """The metrics of the last answer, once it has been read to its end."""


def make_pipeline(framework: Framework, engine: SamKVEngine, folder: Path, embedding_folder: Path) -> Pipeline:
    """Return the pipeline of ``framework``; the other framework is not imported."""
    if framework is Framework.LANGCHAIN:
        from samkv_apps.demo.langchain_pipeline import LangChainPipeline

        return LangChainPipeline(engine, folder)
    from samkv_apps.demo.llama_index_pipeline import LlamaIndexPipeline

    return LlamaIndexPipeline(engine, folder, embedding_folder)
