"""Every search of a wrapped vector store, with what it finds announced to the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar, cast

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

from langchain_samkv._documents import DocumentKV
from samkv_rag.frameworks.threads import run_in_thread_shielded

Search = TypeVar("Search", bound=Callable[..., Any])


def _announced(search: Search) -> Search:
    """The wrapped store's ``search``; what it finds is announced."""

    @wraps(search, updated=())  # without the mark of an abstract method
    def announcing(self: AnnouncedSearches, *args: Any, **options: Any) -> Any:
        found = getattr(self.vectorstore, search.__name__)(*args, **options)
        self._announce(found)
        return found

    return cast(Search, announcing)


def _aannounced(search: Search) -> Search:
    """The same of an async one; the announcement is off the event loop."""

    @wraps(search)
    async def announcing(self: AnnouncedSearches, *args: Any, **options: Any) -> Any:
        found = await getattr(self.vectorstore, search.__name__)(*args, **options)
        await run_in_thread_shielded(self._announce, found)
        return found

    return cast(Search, announcing)


class AnnouncedSearches(VectorStore):
    """The reading half of SamKVVectorStore: arguments and results are those of the wrapped store's methods.

    Relevance scores are asked of the wrapped store rather than derived here, since it knows its metric.
    """

    def __init__(self, vectorstore: VectorStore, kv: DocumentKV) -> None:
        self.vectorstore = vectorstore
        self._kv = kv

    @property
    def embeddings(self) -> Embeddings | None:
        """The wrapped store's embeddings."""
        return self.vectorstore.embeddings

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Documents by their ids."""
        return self.vectorstore.get_by_ids(ids)

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Documents by their ids."""
        return await self.vectorstore.aget_by_ids(ids)

    similarity_search = _announced(VectorStore.similarity_search)
    asimilarity_search = _aannounced(VectorStore.asimilarity_search)
    similarity_search_with_score = _announced(VectorStore.similarity_search_with_score)
    asimilarity_search_with_score = _aannounced(VectorStore.asimilarity_search_with_score)
    similarity_search_with_relevance_scores = _announced(VectorStore.similarity_search_with_relevance_scores)
    asimilarity_search_with_relevance_scores = _aannounced(VectorStore.asimilarity_search_with_relevance_scores)
    max_marginal_relevance_search = _announced(VectorStore.max_marginal_relevance_search)
    amax_marginal_relevance_search = _aannounced(VectorStore.amax_marginal_relevance_search)
    similarity_search_by_vector = _announced(VectorStore.similarity_search_by_vector)
    asimilarity_search_by_vector = _aannounced(VectorStore.asimilarity_search_by_vector)
    max_marginal_relevance_search_by_vector = _announced(VectorStore.max_marginal_relevance_search_by_vector)
    amax_marginal_relevance_search_by_vector = _aannounced(VectorStore.amax_marginal_relevance_search_by_vector)

    def _announce(self, found: Sequence[Document | tuple[Document, float]]) -> None:
        self._kv.announce(item[0] if isinstance(item, tuple) else item for item in found)
