"""The searches of a wrapped vector store; what they find is announced to the engine."""

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
    """Call the wrapped store's ``search`` and announce what it finds."""

    @wraps(search, updated=())  # do not copy the mark of an abstract method
    def announcing(self: AnnouncedSearches, *args: Any, **options: Any) -> Any:
        found = getattr(self.vectorstore, search.__name__)(*args, **options)
        self._announce(found)
        return found

    return cast(Search, announcing)


def _aannounced(search: Search) -> Search:
    """Do the same for an async search; announce off the event loop."""

    @wraps(search)
    async def announcing(self: AnnouncedSearches, *args: Any, **options: Any) -> Any:
        found = await getattr(self.vectorstore, search.__name__)(*args, **options)
        await run_in_thread_shielded(self._announce, found)
        return found

    return cast(Search, announcing)


class AnnouncedSearches(VectorStore):
    """The reading half of SamKVVectorStore; every method takes and returns what the wrapped store's does.

    Relevance scores come from the wrapped store, which knows its metric.
    """

    def __init__(self, vectorstore: VectorStore, kv: DocumentKV) -> None:
        self.vectorstore = vectorstore
        self._kv = kv

    @property
    def embeddings(self) -> Embeddings | None:
        return self.vectorstore.embeddings

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        return self.vectorstore.get_by_ids(ids)

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
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
        documents = (item[0] if isinstance(item, tuple) else item for item in found)
        self._kv.handle.get().announce([document.page_content for document in documents])
