"""The KV of a collection's documents: computed, counted by document id, released."""

from __future__ import annotations

import time
import uuid
import warnings
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

from langchain_core.documents import Document

from samkv_rag.frameworks.handle import EngineHandle
from samkv_rag.frameworks.threads import run_in_thread_shielded
from samkv_rag.sources import ids_of, source_names

if TYPE_CHECKING:
    from samkv_rag import IngestionReport

T = TypeVar("T")
_RESERVED = "being added"
"""Scope of chunks whose documents have no id yet; behind it the day, so that what a killed process left can go."""
_SECONDS_A_DAY = 86_400


class DocumentKV:
    """The chunks that the documents of one collection refer to, in an engine's store.

    Chunks are kept by content: two documents of one text share a chunk, which goes with the last of them.
    """

    def __init__(self, handle: EngineHandle, id_scope: str) -> None:
        self.handle = handle
        self.id_scope = id_scope

    def record(self, ids: Iterable[str], texts: Iterable[str]) -> IngestionReport:
        """Store the KV of documents under their ids, instead of what stood there before."""
        names = source_names(self.id_scope, ids)
        chunks = [(name, text) for name, text in zip(names, texts, strict=True) if text.strip()]
        engine = self.handle.get()
        report = engine.add_chunks([text for _, text in chunks], sources=[name for name, _ in chunks])
        engine.remove_sources(set(names) - {name for name, _ in chunks})  # their text is empty now
        return report

    def remove(self, ids: Iterable[str]) -> int:
        """Release what deleted documents referred to; return how many chunks went."""
        return self.handle.get().remove_sources(source_names(self.id_scope, ids))

    def drop_abandoned(self) -> int:
        """Let go of what processes that were killed while adding left behind; return how many chunks went."""
        engine, today = self.handle.get(), _today()
        begun = ids_of(_RESERVED, engine.sources())
        abandoned = [name for name in begun if not name[:5].isdigit() or int(name[:5]) < today - 1]
        return engine.remove_sources(source_names(_RESERVED, abandoned))

    def ids(self) -> list[str]:
        """Ids of all documents recorded and not removed."""
        return ids_of(self.id_scope, self.handle.get().sources())

    def announce(self, documents: Iterable[Document]) -> None:
        """Announce documents that a prompt is about to hold."""
        self.handle.get().announce([document.page_content for document in documents])


class Reservation:
    """KV of texts on their way into a vector store, held under names of its own until ids are known.

    What a document referred to before stays until the vector store has taken its new text.
    """

    def __init__(self, handle: EngineHandle, texts: Sequence[str]) -> None:
        self._handle = handle
        self._texts = texts
        self._chunks = [text for text in texts if text.strip()]
        self._names = source_names(_RESERVED, (f"{_today()}-{uuid.uuid4().hex}" for _ in self._chunks))

    def held_while(self, add: Callable[[], T]) -> T:
        """Compute and store what is missing, then ``add``; where either fails, let go of what was taken."""
        try:
            self._take()
            return add()
        except BaseException:
            self._let_go()
            raise

    async def aheld_while(self, add: Callable[[], Awaitable[T]]) -> T:
        """The same, with KV work off the event loop."""
        try:
            await run_in_thread_shielded(self._take)
            return await add()
        except BaseException:
            await run_in_thread_shielded(self._let_go)
            raise

    def settle(self, kv: DocumentKV, ids: Sequence[str]) -> None:
        """Hand over to the documents, by the ids that the vector store has given them."""
        if len(ids) != len(self._texts):
            warnings.warn(
                f"the vector store returned {len(ids)} ids for {len(self._texts)} texts; "
                "their KV stays stored, but will not go when they are deleted",
                stacklevel=4,
            )
            return
        try:
            kv.record(ids, self._texts)
        finally:
            self._let_go()

    def _take(self) -> None:
        self._handle.get().add_chunks(self._chunks, sources=self._names)

    def _let_go(self) -> None:
        self._handle.get().remove_sources(self._names)


def _today() -> int:
    """Days since 1970."""
    return int(time.time() // _SECONDS_A_DAY)
