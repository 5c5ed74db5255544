"""The demo with LangChain: the chain that a user would write."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.prompts import ChatPromptTemplate

from langchain_samkv import ChatSamKV, SamKVVectorStore
from samkv_apps.demo.corpus import Section
from samkv_apps.demo.pipeline import COSINE, MAX_ANSWER_TOKENS, TOP_K, Ingested
from samkv_apps.demo.report import Source
from samkv_apps.evaluate.embedding import Embedder
from samkv_apps.evaluate.prompts import LANGCHAIN_SYSTEM
from samkv_apps.terminal import open_chroma
from samkv_rag import Diagnostic, SamKVEngine
from samkv_rag.results import GenerationMetrics

PROMPT = ChatPromptTemplate.from_messages([("system", f"{LANGCHAIN_SYSTEM}\n\n{{context}}"), ("human", "{question}")])


class LangChainPipeline:
    """A vector store and a chain. Only the store's wrapper and the LLM are SamKV's."""

    def __init__(self, engine: SamKVEngine, folder: Path) -> None:
        self._engine = engine
        self._llm = ChatSamKV(engine=engine, max_tokens=MAX_ANSWER_TOKENS)
        chroma = Chroma("skerrow-langchain", MiniLM(), client=open_chroma(folder), collection_metadata=COSINE)
        self._chroma, self._store = chroma, SamKVVectorStore(chroma, self._llm)
        self._metrics: GenerationMetrics | None = None

    def ingest(self, sections: Sequence[Section]) -> Ingested:
        documents = [
            Document(id=section.content_id, page_content=section.text, metadata={"file": section.file})
            for section in sections
        ]
        reused = sum(self._engine.has_chunk(document.page_content) for document in documents)
        known = set(self._chroma.get(include=[])["ids"])
        if outdated := known - {document.id for document in documents}:
            self._store.delete(sorted(outdated))
        if new := [document for document in documents if document.id not in known]:
            self._store.add_documents(new)
        self._store.ingest(documents)  # the collection may outlive the KV store
        return Ingested(len(documents) - reused, reused)

    def ask(self, question: str, **options: Any) -> tuple[list[Source], Iterator[str]]:
        found = self._store.similarity_search_with_relevance_scores(question, k=TOP_K)
        count = self._engine.count_tokens
        sources = [Source(one.metadata["file"], score, count(one.page_content)) for one, score in found]
        context = "\n\n".join(document.page_content for document, _ in found)
        chain = PROMPT | self._llm.bind(**options)
        return sources, self._texts(chain.stream({"context": context, "question": question}))

    def _texts(self, messages: Iterator[Any]) -> Iterator[str]:
        for message in messages:
            if figures := message.response_metadata.get("metrics"):
                diagnostics = tuple(Diagnostic(**diagnostic) for diagnostic in figures["diagnostics"])
                self._metrics = GenerationMetrics(**figures | {"diagnostics": diagnostics})
            yield message.text

    @property
    def last_metrics(self) -> GenerationMetrics:
        assert self._metrics is not None  # an answer has been read
        return self._metrics


class MiniLM(Embeddings):
    """all-MiniLM-L6-v2 for LangChain. It reads the first 256 tokens of a longer text."""

    def __init__(self) -> None:
        self._embedder = Embedder(torch.device("cpu"))

    def embed_query(self, text: str) -> list[float]:
        """Return a unit vector."""
        vector: list[float] = self._embedder.embed(text)[0].tolist()
        return vector

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return unit vectors."""
        return [self.embed_query(text) for text in texts]
