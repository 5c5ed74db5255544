"""A vector store that keeps the KV of its nodes in step with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryResult,
)
from llama_index.llms.samkv._nodes import node_text

from samkv_rag.frameworks.documents import DocumentKV, Reservation
from samkv_rag.frameworks.handle import resolve_handle
from samkv_rag.frameworks.threads import run_in_thread_shielded

if TYPE_CHECKING:
    from llama_index.llms.samkv.base import SamKVLLM

    from samkv_rag import IngestionReport, SamKVEngine

_NODES = "llama_index nodes"
"""Begins the scope of the sources. A source is a document's id and a node's id, so nodes are deleted by either."""
_SEPARATOR = "\x1f"


class SamKVVectorStore(BasePydanticVectorStore):
    """Wrap any vector store: adding nodes computes their KV, deleting a document removes it.

    This covers ``VectorStoreIndex.delete_ref_doc`` and an ``IngestionPipeline`` whose docstore deletes or replaces
    documents. A chunk that nodes of several documents share stays until the last of them is deleted.

    Args:
        vector_store: the store to wrap.
        llm: the SamKVLLM that will answer.
        engine: instead of ``llm``, its engine.
        id_scope: a name of this collection; give one if several collections share the engine's KV store, so that
            deleting from one leaves the others' KV.

    Raises:
        ConfigurationError: not exactly one of ``llm`` and ``engine``.
    """

    stores_text: bool = True
    is_embedding_query: bool = True
    vector_store: BasePydanticVectorStore
    id_scope: str = ""

    _kv: DocumentKV = PrivateAttr()

    def __init__(
        self,
        vector_store: BasePydanticVectorStore,
        llm: SamKVLLM | None = None,
        *,
        engine: SamKVEngine | None = None,
        id_scope: str = "",
    ) -> None:
        super().__init__(
            vector_store=vector_store,
            stores_text=vector_store.stores_text,
            is_embedding_query=vector_store.is_embedding_query,
            id_scope=id_scope,
        )
        self._kv = DocumentKV(resolve_handle(llm, engine, "SamKVLLM"), f"{_NODES} {id_scope}".rstrip())

    @classmethod
    def class_name(cls) -> str:
        return "SamKVVectorStore"

    @property
    def client(self) -> Any:
        return self.vector_store.client

    def ingest(self, nodes: Sequence[BaseNode]) -> IngestionReport:
        """Compute and record the KV of nodes that the wrapped store already holds."""
        return self._kv.record(_ids(nodes), map(node_text, nodes))

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Compute the nodes' KV and add them; return their ids. If they cannot be added, KV stays as it was."""
        reservation = Reservation(self._kv.handle, [*map(node_text, nodes)])
        added = reservation.add_with(partial(self.vector_store.add, list(nodes), **kwargs))
        reservation.settle(self._kv, _ids(nodes))
        return added

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """As :meth:`add`, with the KV work off the event loop."""
        reservation = Reservation(self._kv.handle, [*map(node_text, nodes)])
        added = await reservation.aadd_with(partial(self.vector_store.async_add, list(nodes), **kwargs))
        await run_in_thread_shielded(reservation.settle, self._kv, _ids(nodes))
        return added

    def delete(self, ref_doc_id: str, **kwargs: Any) -> None:
        """Delete a document's nodes, then their KV where no other node has the same text."""
        self.vector_store.delete(ref_doc_id, **kwargs)
        self._release(ref_doc_id)

    async def adelete(self, ref_doc_id: str, **kwargs: Any) -> None:
        """As :meth:`delete`, with the KV work off the event loop."""
        await self.vector_store.adelete(ref_doc_id, **kwargs)
        await run_in_thread_shielded(self._release, ref_doc_id)

    def delete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **kwargs: Any
    ) -> None:
        """Delete nodes, then their KV. With filters, KV stays if the wrapped store cannot ``get_nodes``."""
        try:
            gone = node_ids if filters is None else [n.node_id for n in self.get_nodes(node_ids, filters)]
        except NotImplementedError:
            gone = []
        self.vector_store.delete_nodes(node_ids, filters, **kwargs)
        self._release(node_ids=gone)

    async def adelete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **kwargs: Any
    ) -> None:
        """As :meth:`delete_nodes`, with the KV work off the event loop."""
        try:
            gone = node_ids if filters is None else [n.node_id for n in await self.aget_nodes(node_ids, filters)]
        except NotImplementedError:
            gone = []
        await self.vector_store.adelete_nodes(node_ids, filters, **kwargs)
        await run_in_thread_shielded(self._release, node_ids=gone)

    def clear(self) -> None:
        """Delete all nodes and their KV."""
        self.vector_store.clear()
        self._release_all()

    async def aclear(self) -> None:
        """As :meth:`clear`, with the KV work off the event loop."""
        await self.vector_store.aclear()
        await run_in_thread_shielded(self._release_all)

    def get_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        return self.vector_store.get_nodes(node_ids, filters)

    async def aget_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        return await self.vector_store.aget_nodes(node_ids, filters)

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        return self.vector_store.query(query, **kwargs)

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        return await self.vector_store.aquery(query, **kwargs)

    def persist(self, persist_path: str, fs: Any = None) -> None:
        self.vector_store.persist(persist_path, fs)

    def _release(self, ref_doc_id: str | None = None, node_ids: Iterable[str] | None = None) -> None:
        """Remove the KV of a document's nodes, or of the given nodes."""
        named = set(node_ids or ())
        parts = ((both, *both.partition(_SEPARATOR)) for both in self._kv.ids())
        self._kv.remove(both for both, document, _, node in parts if document == ref_doc_id or node in named)

    def _release_all(self) -> None:
        self._kv.remove(self._kv.ids())
        self._kv.remove_abandoned()


def _ids(nodes: Iterable[BaseNode]) -> list[str]:
    return [f"{node.ref_doc_id or ''}{_SEPARATOR}{node.node_id}" for node in nodes]
