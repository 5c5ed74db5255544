"""The KV of a collection's documents, counted by document id."""

from __future__ import annotations

import time
import uuid
import warnings
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

from samkv_rag.frameworks.handle import EngineHandle
from samkv_rag.frameworks.threads import run_in_thread_shielded
from samkv_rag.sources import ids_of, source_names

if TYPE_CHECKING:
    from samkv_rag import IngestionReport

T = TypeVar("T")
_RESERVED = "being added"
"""Scope of chunks whose documents have no id yet. Their names begin with the day, so that leftovers can be found."""


class DocumentKV:
    """The chunks in an engine's store that the documents of one collection refer to.

    Chunks are stored by content: documents with the same text share one, and it is removed with the last of them.
    """

    def __init__(self, handle: EngineHandle, id_scope: str) -> None:
        self.handle = handle
        self.id_scope = id_scope

    def record(self, ids: Iterable[str], texts: Iterable[str]) -> IngestionReport:
        """Store the KV of documents under their ids, in place of what these ids referred to before."""
        names = source_names(self.id_scope, ids)
        chunks = [(name, text) for name, text in zip(names, texts, strict=True) if text.strip()]
        engine = self.handle.get()
        report = engine.add_chunks([text for _, text in chunks], sources=[name for name, _ in chunks])
        engine.remove_sources(set(names) - {name for name, _ in chunks})  # their text is empty now
        return report

    def remove(self, ids: Iterable[str]) -> int:
        """Remove the KV of deleted documents; return how many chunks were removed."""
        return self.handle.get().remove_sources(source_names(self.id_scope, ids))

    def remove_abandoned(self) -> int:
        """Remove what killed processes left behind while adding; return how many chunks were removed."""
        engine, today = self.handle.get(), _today()
        reserved = ids_of(_RESERVED, engine.sources())
        abandoned = [name for name in reserved if not name[:5].isdigit() or int(name[:5]) < today - 1]
        return engine.remove_sources(source_names(_RESERVED, abandoned))

    def ids(self) -> list[str]:
        """Return the ids of all recorded documents."""
        return ids_of(self.id_scope, self.handle.get().sources())


class Reservation:
    """KV of texts that a vector store is about to add, stored under temporary names until their ids are known.

    What a document referred to before stays until the vector store has its new text.
    """

    def __init__(self, handle: EngineHandle, texts: Sequence[str]) -> None:
        self._handle = handle
        self._texts = texts
        self._chunks = [text for text in texts if text.strip()]
        self._names = source_names(_RESERVED, (f"{_today()}-{uuid.uuid4().hex}" for _ in self._chunks))

    def add_with(self, add: Callable[[], T]) -> T:
        """Store missing KV, then call ``add``; if either fails, remove what was stored."""
        try:
            self._store()
            return add()
        except BaseException:
            self._release()
            raise

    async def aadd_with(self, add: Callable[[], Awaitable[T]]) -> T:
        """As :meth:`add_with`, with the KV work off the event loop."""
        try:
            await run_in_thread_shielded(self._store)
            return await add()
        except BaseException:
            await run_in_thread_shielded(self._release)
            raise

    def settle(self, kv: DocumentKV, ids: Sequence[str]) -> None:
        """Record the KV under the ids that the vector store returned."""
        if len(ids) != len(self._texts):
            warnings.warn(
                f"the vector store returned {len(ids)} ids for {len(self._texts)} texts; "
                "the KV of these texts will not be removed when they are deleted",
                stacklevel=4,
            )
            return
        try:
            kv.record(ids, self._texts)
        finally:
            self._release()

    def _store(self) -> None:
        self._handle.get().add_chunks(self._chunks, sources=self._names)

    def _release(self) -> None:
        self._handle.get().remove_sources(self._names)


def _today() -> int:
    """Days since 1970."""
    return int(time.time() // 86_400)
