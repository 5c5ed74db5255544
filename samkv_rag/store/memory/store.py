"""A store in this process's memory, gone with it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping

from samkv_rag.exceptions import StoreFullError
from samkv_rag.store.base import EncodedChunk, Entry
from samkv_rag.store.format.reading import ChunkBytes
from samkv_rag.store.memory.reference_map import ReferenceMap
from samkv_rag.store.shared.hashes import require_keys
from samkv_rag.store.shared.ledger import Ledger
from samkv_rag.store.shared.options import require_budget
from samkv_rag.store.shared.whole import Found, WholeChunkStore

_EVICTED_AT_ONCE = 1 / 64  # of the budget


class MemoryStore(WholeChunkStore):
    """Keeps encoded chunks in memory, at most ``budget_bytes`` of them; the least recently read go first.

    A reader keeps its own chunk's bytes as long as it lives, evicted or not: beyond the budget there are
    at most the chunks of the prompts being read.

    Raises:
        ConfigurationError: the budget is no positive number of bytes.
    """

    def __init__(self, budget_bytes: int | None = None) -> None:
        self.budget_bytes = require_budget("memory_bytes", budget_bytes)
        self._chunks: OrderedDict[str, Found] = OrderedDict()
        self._num_bytes = 0
        self._ledger = Ledger()
        self._references = ReferenceMap()
        self._lock = threading.Lock()

    def put_encoded(self, chunk: EncodedChunk) -> None:
        """See :meth:`KVStore.put_encoded`.

        Raises:
            StoreFullError: the chunk alone is past the budget; nothing was evicted.
        """
        if self.budget_bytes is not None and len(chunk.data) > self.budget_bytes:
            raise StoreFullError(
                f"a chunk of {len(chunk.data)} bytes does not fit the memory budget of {self.budget_bytes}; "
                "raise memory_bytes or split the text into smaller chunks"
            )
        reader = ChunkBytes(chunk.data, chunk.fingerprint, chunk.entry.key)
        with self._lock:
            self._drop(chunk.entry.key)
            self._chunks[chunk.entry.key] = chunk, reader
            self._num_bytes += len(chunk.data)
            self._ledger.add(chunk.fingerprint, [chunk.entry])
            self._evict()

    def remove(self, keys: Iterable[str]) -> int:
        """See :meth:`KVStore.remove`."""
        with self._lock:
            gone = set(keys)
            self._references.drop_keys(gone)
            return self._remove(gone)

    def refer(self, fingerprint: str, references: Mapping[str, str]) -> int:
        """See :meth:`KVStore.refer`; references take no part of the budget."""
        with self._lock:
            return self._remove(self._references.point(fingerprint, require_keys(references)))

    def release(self, fingerprint: str, sources: Iterable[str]) -> int:
        """See :meth:`KVStore.release`."""
        with self._lock:
            return self._remove(self._references.drop(fingerprint, sources))

    def references(self, fingerprint: str) -> dict[str, str]:
        """See :meth:`KVStore.references`."""
        with self._lock:
            return self._references.read(fingerprint)

    def changes(self, fingerprint: str, since: int) -> tuple[list[Entry], int] | None:
        """See :meth:`KVStore.changes`; an evicted chunk is a removed one."""
        return self._ledger.changes(fingerprint, since)

    def nbytes(self) -> int:
        """See :meth:`KVStore.nbytes`."""
        return self._num_bytes

    def _find(self, key: str, fingerprint: str) -> Found | None:
        with self._lock:
            found = self._chunks.get(key)
            if found is None or found[0].fingerprint != fingerprint:
                return None
            self._chunks.move_to_end(key)
            return found

    def _evict(self) -> None:
        """Make room, and a little more: readers of a model start over after each eviction."""
        if self.budget_bytes is None or self._num_bytes <= self.budget_bytes:
            return
        evicted = []
        while len(self._chunks) > 1 and self._num_bytes > self.budget_bytes * (1 - _EVICTED_AT_ONCE):
            evicted.append(next(iter(self._chunks)))
            self._drop(evicted[-1])
        self._ledger.remove(evicted)  # references stay, for when they are computed again

    def _remove(self, keys: Iterable[str]) -> int:
        removed = [key for key in keys if self._drop(key)]
        self._ledger.remove(removed)
        return len(removed)

    def _drop(self, key: str) -> bool:
        found = self._chunks.pop(key, None)
        if found is not None:
            self._num_bytes -= len(found[0].data)
        return found is not None
