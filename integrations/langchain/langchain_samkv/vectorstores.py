"""A vector store that keeps the KV of its documents in step with them."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore

from samkv_rag.exceptions import ConfigurationError
from samkv_rag.frameworks.documents import DocumentKV, Reservation
from samkv_rag.frameworks.handle import resolve_handle
from samkv_rag.frameworks.threads import run_in_thread_shielded

if TYPE_CHECKING:
    from langchain_samkv.chat_models import ChatSamKV
    from samkv_rag import IngestionReport, SamKVEngine

_Search = TypeVar("_Search", bound=Callable[..., Any])
_LLM = "ChatSamKV"
_IDS_AT_ONCE = 1000


def _announced(search: _Search) -> _Search:
    """Call the wrapped store's ``search`` and announce what it finds."""

    @wraps(search, updated=())  # do not copy the mark of an abstract method
    def announcing(self: SamKVVectorStore, *args: Any, **options: Any) -> Any:
        found = getattr(self.vectorstore, search.__name__)(*args, **options)
        self._announce(found)
        return found

    return cast(_Search, announcing)


def _aannounced(search: _Search) -> _Search:
    """Do the same for an async search; announce off the event loop."""

    @wraps(search)
    async def announcing(self: SamKVVectorStore, *args: Any, **options: Any) -> Any:
        found = await getattr(self.vectorstore, search.__name__)(*args, **options)
        await run_in_thread_shielded(self._announce, found)
        return found

    return cast(_Search, announcing)


class SamKVVectorStore(VectorStore):
    """Wrap any vector store: adding documents computes their KV, deleting them removes it.

    Searches are the wrapped store's own. What they find is announced to the engine, which reads its KV while the
    prompt is being built. ``langchain_core.indexing.index()`` works as on the wrapped store.

    KV is stored by content: documents with the same text share it, and it is removed with the last of them. The counts
    are part of the KV store and last as long as it does. KV is computed before the wrapped store adds and removed
    after it has deleted. If adding fails, the KV computed for it is removed.

    Changes made directly to the wrapped store (its ``vectorstore``) do not reach the KV; call :meth:`ingest` or
    :meth:`prune` after them. Answers are right in any case: a chunk without KV is computed when a prompt holds it.

    Args:
        vectorstore: the store to wrap.
        llm: the ChatSamKV that will answer.
        engine: instead of ``llm``, its engine.
        id_scope: keeps the ids of several collections apart in one KV store. The default is made of the wrapped
            store's type, folder and collection name. A store without a collection name (FAISS, for example) gets a
            scope that is valid in this process only; give one if the store outlives the process.

    Raises:
        ConfigurationError: not exactly one of ``llm`` and ``engine``, or ``vectorstore`` is not a VectorStore.
    """

    def __init__(
        self,
        vectorstore: VectorStore,
        llm: ChatSamKV | None = None,
        *,
        engine: SamKVEngine | None = None,
        id_scope: str | None = None,
    ) -> None:
        if not isinstance(vectorstore, VectorStore):
            raise ConfigurationError(f"vectorstore is a {type(vectorstore).__name__}; it must be a VectorStore")
        self.vectorstore = vectorstore
        self._kv = DocumentKV(resolve_handle(llm, engine, _LLM), id_scope or _name_of(vectorstore))

    @property
    def engine(self) -> SamKVEngine:
        """The engine, loaded on first use."""
        return self._kv.handle.get()

    @property
    def embeddings(self) -> Embeddings | None:
        return self.vectorstore.embeddings

    # Searching

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        return self.vectorstore.get_by_ids(ids)

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        return await self.vectorstore.aget_by_ids(ids)

    similarity_search = _announced(VectorStore.similarity_search)
    asimilarity_search = _aannounced(VectorStore.asimilarity_search)
    similarity_search_with_score = _announced(VectorStore.similarity_search_with_score)
    asimilarity_search_with_score = _aannounced(VectorStore.asimilarity_search_with_score)
    # Not derived here from scores: the wrapped store knows its metric.
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
        self.engine.announce(document.page_content for document in documents)

    # Adding

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        vectorstore_cls: type[VectorStore] = InMemoryVectorStore,
        llm: ChatSamKV | None = None,
        engine: SamKVEngine | None = None,
        id_scope: str | None = None,
        **kwargs: Any,
    ) -> SamKVVectorStore:
        """Build a ``vectorstore_cls`` from texts and wrap it; other arguments are passed on to it."""
        reservation, named = Reservation(resolve_handle(llm, engine, _LLM), texts), _with_ids(texts, ids)
        build = partial(vectorstore_cls.from_texts, texts, embedding, metadatas, ids=named, **kwargs)
        wrapper = cls(reservation.add_with(build), llm, engine=engine, id_scope=id_scope)
        reservation.settle(wrapper._kv, named)
        return wrapper

    @classmethod
    async def afrom_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        vectorstore_cls: type[VectorStore] = InMemoryVectorStore,
        llm: ChatSamKV | None = None,
        engine: SamKVEngine | None = None,
        id_scope: str | None = None,
        **kwargs: Any,
    ) -> SamKVVectorStore:
        """As :meth:`from_texts`."""
        reservation, named = Reservation(resolve_handle(llm, engine, _LLM), texts), _with_ids(texts, ids)
        build = partial(vectorstore_cls.afrom_texts, texts, embedding, metadatas, ids=named, **kwargs)
        wrapper = cls(await reservation.aadd_with(build), llm, engine=engine, id_scope=id_scope)
        await run_in_thread_shielded(reservation.settle, wrapper._kv, named)
        return wrapper

    def add_documents(self, documents: list[Document], **kwargs: Any) -> list[str]:
        """Compute the documents' KV, add the documents and return their ids.

        Raises:
            ChunkTooLongError: a document does not fit the model's context window; nothing was added.
            StoreFullError: the KV store has no room; nothing was added.
        """
        texts = [document.page_content for document in documents]
        return self._add(texts, partial(self.vectorstore.add_documents, documents, **kwargs))

    async def aadd_documents(self, documents: list[Document], **kwargs: Any) -> list[str]:
        """As :meth:`add_documents`; KV is computed off the event loop."""
        texts = [document.page_content for document in documents]
        return await self._aadd(texts, partial(self.vectorstore.aadd_documents, documents, **kwargs))

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """As :meth:`add_documents`."""
        listed, given = list(texts), kwargs if ids is None else kwargs | {"ids": ids}
        return self._add(listed, partial(self.vectorstore.add_texts, listed, metadatas, **given))

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """As :meth:`add_documents`; KV is computed off the event loop."""
        listed, given = list(texts), kwargs if ids is None else kwargs | {"ids": ids}
        return await self._aadd(listed, partial(self.vectorstore.aadd_texts, listed, metadatas, **given))

    def ingest(self, documents: Iterable[Document]) -> IngestionReport:
        """Compute and record the KV of documents that the wrapped store already holds.

        Raises:
            ConfigurationError: a document has no id.
        """
        listed = list(documents)
        ids = [document.id for document in listed if document.id]
        if len(ids) != len(listed):
            raise ConfigurationError(f"{len(listed) - len(ids)} documents have no id; ingest what a search returned")
        return self._kv.record(ids, [document.page_content for document in listed])

    # Deleting

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool | None:
        """Delete documents in the wrapped store by its rules, then the KV of those that were deleted."""
        deleted = self.vectorstore.delete(ids, **kwargs)
        if deleted is not False:
            self._remove_deleted(ids, criteria=kwargs)
        return deleted

    async def adelete(self, ids: list[str] | None = None, **kwargs: Any) -> bool | None:
        """As :meth:`delete`."""
        deleted = await self.vectorstore.adelete(ids, **kwargs)
        if deleted is not False:
            await run_in_thread_shielded(self._remove_deleted, ids, criteria=kwargs)
        return deleted

    def prune(self, *, unreferenced: bool = False) -> int:
        """Remove the KV of documents that the wrapped store no longer holds; return how many chunks were removed.

        Chunks that other scopes refer to stay. So do chunks without a document (computed for a question, for example),
        unless ``unreferenced`` is True: then all of those are removed, whoever computed them.

        Raises:
            NotImplementedError: the wrapped store has no ``get_by_ids``.
        """
        num_removed = self._kv.remove(self._gone(self._kv.ids())) + self._kv.remove_abandoned()
        return num_removed + (self.engine.prune((), unreferenced_only=True) if unreferenced else 0)

    def _add(self, texts: Sequence[str], add: Callable[[], list[str]]) -> list[str]:
        reservation = Reservation(self._kv.handle, texts)
        ids = reservation.add_with(add)
        reservation.settle(self._kv, ids)
        return ids

    async def _aadd(self, texts: Sequence[str], add: Callable[[], Awaitable[list[str]]]) -> list[str]:
        reservation = Reservation(self._kv.handle, texts)
        ids = await reservation.aadd_with(add)
        await run_in_thread_shielded(reservation.settle, self._kv, ids)
        return ids

    def _remove_deleted(self, ids: Sequence[str] | None, criteria: dict[str, Any]) -> None:
        """Remove the KV of ``ids`` or, if other criteria decided what was deleted, of the ids that are gone."""
        gone = candidates = self._kv.ids() if ids is None else ids
        if ids is None or criteria:
            try:
                gone = self._gone(candidates)
            except NotImplementedError:  # without ids and criteria, everything was deleted
                gone = [] if criteria else candidates
        self._kv.remove(gone)

    def _gone(self, ids: Sequence[str]) -> list[str]:
        """Return those of ``ids`` that the wrapped store does not hold."""
        batches = (ids[start : start + _IDS_AT_ONCE] for start in range(0, len(ids), _IDS_AT_ONCE))
        held = set[str]().union(*map(self._held, batches))
        return [identifier for identifier in ids if identifier not in held]

    def _held(self, ids: Sequence[str]) -> set[str]:
        try:
            return {document.id for document in self.vectorstore.get_by_ids(ids) if document.id}
        except ValueError:  # a document is there but cannot be read, such as one without metadata in Chroma
            half = len(ids) // 2
            return self._held(ids[:half]) | self._held(ids[half:]) if half else set(ids)


def _with_ids(texts: Sequence[str], ids: Sequence[str | None] | None) -> list[str]:
    """Return an id for every text: the given one, or a new one."""
    return [identifier or str(uuid.uuid4()) for identifier in ids or [None] * len(texts)]


def _name_of(vectorstore: VectorStore) -> str:
    """Return a name that no other collection has; without a collection name it is valid in this process only."""
    names = (getattr(vectorstore, name, None) for name in ("collection_name", "_collection_name", "index_name"))
    collection = next((name for name in names if isinstance(name, str) and name), None)
    if collection is None:
        return f"{type(vectorstore).__name__}:{uuid.uuid4().hex}"
    folder = getattr(vectorstore, "_persist_directory", None) or ""
    return f"{type(vectorstore).__name__}:{Path(folder).resolve() if folder else ''}:{collection}"
