"""The LlamaIndex side of the demo: what a user's own pipeline would look like."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from llama_index.core import Settings, VectorStoreIndex
from llama_index.core.base.response.schema import StreamingResponse
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.llm import LLMChatStartEvent, LLMCompletionStartEvent
from llama_index.core.llms import ChatMessage
from llama_index.core.schema import TextNode
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
from llama_index.llms.samkv import SamKVIngestion, SamKVLLM, SamKVPostprocessor
from llama_index.vector_stores.chroma import ChromaVectorStore

from samkv_apps.demo.corpus import Section
from samkv_apps.demo.pipeline import COSINE, MAX_ANSWER_TOKENS, TOP_K, Ingested, Passage
from samkv_apps.terminal import open_chroma
from samkv_rag import SamKVEngine
from samkv_rag.results import GenerationMetrics


class LlamaIndexPipeline:
    """Embedding, vector store, ingestion and query engine around one SamKVLLM."""

    def __init__(self, engine: SamKVEngine, folder: Path, embedding_folder: Path) -> None:
        self._llm = SamKVLLM.from_engine(engine, max_tokens=MAX_ANSWER_TOKENS)
        Settings.tokenizer = self._llm.tokenizer
        self._sent = SentPrompt()
        get_dispatcher().add_event_handler(self._sent)
        self._embedding = HuggingFaceEmbedding(model_name=str(embedding_folder), embed_batch_size=32)
        self._collection = open_chroma(folder).get_or_create_collection("skerrow", metadata=COSINE)
        self._ingestion = SamKVIngestion(self._llm)

    def ingest(self, sections: Sequence[Section]) -> Ingested:
        nodes = [_as_node(section) for section in sections]
        reused = sum(self._llm.engine.has_chunk(node.text) for node in nodes)
        known = set(self._collection.get(include=[])["ids"])
        if outdated := known - {node.node_id for node in nodes}:
            self._collection.delete(ids=sorted(outdated))
            self._ingestion.remove_nodes(outdated)
        IngestionPipeline(
            transformations=[self._ingestion, self._embedding], vector_store=self._vector_store, disable_cache=True
        ).run(nodes=[node for node in nodes if node.node_id not in known])
        self._ingestion.ingest(nodes)  # the collection may outlive the KV store
        return Ingested(len(nodes) - reused, reused)

    def ask(self, question: str) -> tuple[Sequence[Passage], Iterator[str]]:
        response = self._query_engine.query(question)
        assert isinstance(response, StreamingResponse)
        found = [Passage(n.metadata["file"], n.score or 0.0, n.text) for n in response.source_nodes]
        return found, iter(response.response_gen)

    def ask_again(self, **options: Any) -> Iterator[str]:
        return self._sent.send_again(self._llm, **options)

    @property
    def last_metrics(self) -> GenerationMetrics:
        metrics = self._llm.last_metrics
        assert metrics is not None  # an answer has been read
        return metrics

    @cached_property
    def _query_engine(self) -> Any:
        """A streaming query engine; apart from its postprocessor and LLM nothing in it knows of SamKV."""
        index = VectorStoreIndex.from_vector_store(self._vector_store, embed_model=self._embedding)
        return index.as_query_engine(
            llm=self._llm,
            streaming=True,
            similarity_top_k=TOP_K,
            node_postprocessors=[SamKVPostprocessor(self._llm)],
        )

    @property
    def _vector_store(self) -> ChromaVectorStore:
        return ChromaVectorStore(chroma_collection=self._collection)


class SentPrompt(BaseEventHandler):
    """The prompt that the query engine sent to the LLM last, to be sent again with another method."""

    prompt: str | list[ChatMessage] = ""

    @classmethod
    def class_name(cls) -> str:
        """Return the name used in serialization."""
        return "SentPrompt"

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        """Remember the prompt when a call to an LLM starts."""
        if isinstance(event, LLMChatStartEvent):
            self.prompt = event.messages
        elif isinstance(event, LLMCompletionStartEvent):
            self.prompt = event.prompt

    def send_again(self, llm: SamKVLLM, **options: Any) -> Iterator[str]:
        """Yield the answer to the same prompt, piece by piece."""
        if isinstance(self.prompt, str):
            responses: Any = llm.stream_complete(self.prompt, formatted=True, **options)
        else:
            responses = llm.stream_chat(list(self.prompt), **options)
        return (response.delta or "" for response in responses)


def _as_node(section: Section) -> TextNode:
    """A node whose id changes with its text, and of which the model reads the text alone."""
    node_id = hashlib.sha256(section.text.encode()).hexdigest()[:32]
    hidden = ["file"]
    return TextNode(
        id_=node_id,
        text=section.text,
        metadata={"file": section.file},
        excluded_llm_metadata_keys=hidden,
        excluded_embed_metadata_keys=hidden,
    )
