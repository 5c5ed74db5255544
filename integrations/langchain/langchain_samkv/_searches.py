"""Every search of a wrapped vector store, with what it finds announced to the engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

from langchain_samkv._documents import DocumentKV
from samkv_rag.frameworks.threads import run_in_thread_shielded

Found = TypeVar("Found", Document, tuple[Document, float])


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

    # -- by query --------------------------------------------------------------------------------

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """The ``k`` documents nearest to a query."""
        return self._announced(self.vectorstore.similarity_search(query, k=k, **kwargs))

    async def asimilarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """The ``k`` documents nearest to a query."""
        return await self._aannounced(await self.vectorstore.asimilarity_search(query, k=k, **kwargs))

    def similarity_search_with_score(self, *args: Any, **kwargs: Any) -> list[tuple[Document, float]]:
        """The same with the distances or similarities that the wrapped store measures."""
        return self._announced(self.vectorstore.similarity_search_with_score(*args, **kwargs))

    async def asimilarity_search_with_score(self, *args: Any, **kwargs: Any) -> list[tuple[Document, float]]:
        """The same with the distances or similarities that the wrapped store measures."""
        return await self._aannounced(await self.vectorstore.asimilarity_search_with_score(*args, **kwargs))

    def similarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """The same with scores from 0 to 1."""
        return self._announced(self.vectorstore.similarity_search_with_relevance_scores(query, k=k, **kwargs))

    async def asimilarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """The same with scores from 0 to 1."""
        return await self._aannounced(
            await self.vectorstore.asimilarity_search_with_relevance_scores(query, k=k, **kwargs)
        )

    def max_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """``k`` of the ``fetch_k`` nearest documents, near to the query and unlike each other."""
        return self._announced(
            self.vectorstore.max_marginal_relevance_search(
                query, k=k, fetch_k=fetch_k, lambda_mult=lambda_mult, **kwargs
            )
        )

    async def amax_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """``k`` of the ``fetch_k`` nearest documents, near to the query and unlike each other."""
        return await self._aannounced(
            await self.vectorstore.amax_marginal_relevance_search(
                query, k=k, fetch_k=fetch_k, lambda_mult=lambda_mult, **kwargs
            )
        )

    def similarity_search_by_vector(self, embedding: list[float], k: int = 4, **kwargs: Any) -> list[Document]:
        """The ``k`` documents nearest to an embedding."""
        return self._announced(self.vectorstore.similarity_search_by_vector(embedding, k=k, **kwargs))

    async def asimilarity_search_by_vector(self, embedding: list[float], k: int = 4, **kwargs: Any) -> list[Document]:
        """The ``k`` documents nearest to an embedding."""
        return await self._aannounced(await self.vectorstore.asimilarity_search_by_vector(embedding, k=k, **kwargs))

    def max_marginal_relevance_search_by_vector(
        self, embedding: list[float], k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """As :meth:`max_marginal_relevance_search`, for an embedding."""
        return self._announced(
            self.vectorstore.max_marginal_relevance_search_by_vector(
                embedding, k=k, fetch_k=fetch_k, lambda_mult=lambda_mult, **kwargs
            )
        )

    async def amax_marginal_relevance_search_by_vector(
        self, embedding: list[float], k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """As :meth:`max_marginal_relevance_search`, for an embedding."""
        return await self._aannounced(
            await self.vectorstore.amax_marginal_relevance_search_by_vector(
                embedding, k=k, fetch_k=fetch_k, lambda_mult=lambda_mult, **kwargs
            )
        )

    # -- announcements ------------------------------------------------------------------------------

    def _announced(self, found: list[Found]) -> list[Found]:
        self._kv.announce(item[0] if isinstance(item, tuple) else item for item in found)
        return found

    async def _aannounced(self, found: list[Found]) -> list[Found]:
        return await run_in_thread_shielded(self._announced, found)
