"""The demo with LlamaIndex: the pipeline that a user would write."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llama_index.core import Settings, VectorStoreIndex
from llama_index.core.base.response.schema import StreamingResponse
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import TextNode
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
from llama_index.llms.samkv import SamKVIngestion, SamKVLLM, SamKVPostprocessor
from llama_index.vector_stores.chroma import ChromaVectorStore

from samkv_apps.demo.corpus import Section
from samkv_apps.demo.pipeline import COSINE, MAX_ANSWER_TOKENS, TOP_K, Ingested
from samkv_apps.demo.report import Source
from samkv_apps.terminal import open_chroma
from samkv_rag import SamKVEngine
from samkv_rag.results import GenerationMetrics

_HIDDEN = ["file"]


class LlamaIndexPipeline:
    """Embedding, vector store, ingestion and query engine. Only ingestion, postprocessor and LLM are SamKV's."""

    def __init__(self, engine: SamKVEngine, folder: Path, embedding_folder: Path) -> None:
        self._engine = engine
        self._llm = SamKVLLM.from_engine(engine)
        Settings.tokenizer = self._llm.tokenizer
        self._embedding = HuggingFaceEmbedding(model_name=str(embedding_folder), embed_batch_size=32)
        self._collection = open_chroma(folder).get_or_create_collection("skerrow", metadata=COSINE)
        self._vector_store = ChromaVectorStore(chroma_collection=self._collection)
        self._ingestion = SamKVIngestion(self._llm)

    def ingest(self, sections: Sequence[Section]) -> Ingested:
        nodes = [_as_node(section) for section in sections]
        reused = sum(self._engine.has_chunk(node.text) for node in nodes)
        known = set(self._collection.get(include=[])["ids"])
        if outdated := known - {node.node_id for node in nodes}:
            self._collection.delete(ids=sorted(outdated))
            self._ingestion.remove_nodes(outdated)
        IngestionPipeline(
            transformations=[self._ingestion, self._embedding], vector_store=self._vector_store, disable_cache=True
        ).run(nodes=[node for node in nodes if node.node_id not in known])
        self._ingestion.ingest(nodes)  # the collection may outlive the KV store
        return Ingested(len(nodes) - reused, reused)

    def ask(self, question: str, **options: Any) -> tuple[list[Source], Iterator[str]]:
        self._llm = SamKVLLM.from_engine(self._engine, max_tokens=MAX_ANSWER_TOKENS, **options)
        index = VectorStoreIndex.from_vector_store(self._vector_store, embed_model=self._embedding)
        query_engine = index.as_query_engine(
            llm=self._llm,
            streaming=True,
            similarity_top_k=TOP_K,
            node_postprocessors=[SamKVPostprocessor(self._llm)],
        )
        response = query_engine.query(question)
        assert isinstance(response, StreamingResponse)
        count = self._engine.count_tokens
        sources = [Source(n.metadata["file"], n.score or 0.0, count(n.text)) for n in response.source_nodes]
        return sources, iter(response.response_gen)

    @property
    def last_metrics(self) -> GenerationMetrics:
        metrics = self._llm.last_metrics
        assert metrics is not None  # an answer has been read
        return metrics


def _as_node(section: Section) -> TextNode:
    """Return the section as a node whose metadata no model reads."""
    return TextNode(
        id_=section.content_id,
        text=section.text,
        metadata={"file": section.file},
        excluded_llm_metadata_keys=_HIDDEN,
        excluded_embed_metadata_keys=_HIDDEN,
    )
