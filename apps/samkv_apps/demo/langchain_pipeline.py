"""The LangChain side of the demo: what a user's own chain would look like."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda

from langchain_samkv import ChatSamKV, SamKVVectorStore
from samkv_apps.demo.corpus import Section
from samkv_apps.demo.pipeline import COSINE, MAX_ANSWER_TOKENS, TOP_K, Ingested, Passage
from samkv_apps.evaluate.embedding import Embedder
from samkv_apps.evaluate.prompts import LANGCHAIN_SYSTEM
from samkv_apps.terminal import open_chroma
from samkv_rag import Diagnostic, SamKVEngine
from samkv_rag.results import GenerationMetrics

Found = list[tuple[Document, float]]
PROMPT = ChatPromptTemplate.from_messages([("system", f"{LANGCHAIN_SYSTEM}\n\n{{context}}"), ("human", "{question}")])


class LangChainPipeline:
    """A vector store and a chain; apart from the store's wrapper and the LLM nothing in it knows of SamKV."""

    def __init__(self, engine: SamKVEngine, folder: Path) -> None:
        self._engine = engine
        self._llm = ChatSamKV(engine=engine, max_tokens=MAX_ANSWER_TOKENS)
        chroma = Chroma("skerrow-langchain", MiniLM(), client=open_chroma(folder), collection_metadata=COSINE)
        self._chroma, self._store = chroma, SamKVVectorStore(chroma, self._llm)
        self._asked: dict[str, Any] = {}
        self._metrics: GenerationMetrics | None = None

    def ingest(self, sections: Sequence[Section]) -> Ingested:
        documents = [_as_document(section) for section in sections]
        reused = sum(self._engine.has_chunk(document.page_content) for document in documents)
        known = set(self._chroma.get(include=[])["ids"])
        if outdated := known - {document.id for document in documents}:
            self._store.delete(sorted(outdated))
        if new := [document for document in documents if document.id not in known]:
            self._store.add_documents(new)
        self._store.ingest(documents)  # the collection may outlive the KV store
        return Ingested(len(documents) - reused, reused)

    def ask(self, question: str) -> tuple[Sequence[Passage], Iterator[str]]:
        found = self._store.similarity_search_with_relevance_scores(question, k=TOP_K)
        self._asked = {"found": found, "question": question}
        passages = [Passage(document.metadata["file"], score, document.page_content) for document, score in found]
        return passages, self._answer(self._chain(self._llm))

    def ask_again(self, **options: Any) -> Iterator[str]:
        return self._answer(self._chain(self._llm.bind(**options)))

    @property
    def last_metrics(self) -> GenerationMetrics:
        assert self._metrics is not None  # an answer has been read
        return self._metrics

    @staticmethod
    def _chain(llm: Runnable[Any, Any]) -> Runnable[Any, Any]:
        context, question = itemgetter("found") | RunnableLambda(_format_docs), itemgetter("question")
        return {"context": context, "question": question} | PROMPT | llm

    def _answer(self, chain: Runnable[Any, Any]) -> Iterator[str]:
        for message in chain.stream(self._asked):
            if "metrics" in message.response_metadata:
                self._metrics = _as_metrics(message.response_metadata["metrics"])
            yield message.text


class MiniLM(Embeddings):
    """all-MiniLM-L6-v2 for LangChain; of a longer text its first window."""

    def __init__(self) -> None:
        self._embedder = Embedder(torch.device("cpu"))

    def embed_query(self, text: str) -> list[float]:
        """A unit vector."""
        vector: list[float] = self._embedder.embed(text)[0].tolist()
        return vector

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Unit vectors."""
        return [self.embed_query(text) for text in texts]


def _format_docs(found: Found) -> str:
    return "\n\n".join(document.page_content for document, _ in found)


def _as_document(section: Section) -> Document:
    """A document whose id changes with its text."""
    document_id = hashlib.sha256(section.text.encode()).hexdigest()[:32]
    return Document(id=document_id, page_content=section.text, metadata={"file": section.file})


def _as_metrics(figures: dict[str, Any]) -> GenerationMetrics:
    diagnostics = tuple(Diagnostic(**diagnostic) for diagnostic in figures["diagnostics"])
    return GenerationMetrics(**figures | {"diagnostics": diagnostics})
