"""A store in this process's memory, gone with it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping

from samkv_rag.chunk_cache import ChunkCache, ChunkReader
from samkv_rag.store.base import Entry, KVStore


class MemoryStore(KVStore):
    """Keeps chunk caches as tensors in a dictionary."""

    def __init__(self) -> None:
        self._caches: dict[str, tuple[Entry, ChunkCache, int]] = {}
        self._lock = threading.Lock()
        self._mark = 0
        self._last_removal = 0
        self._references: dict[str, dict[str, str]] = {}  # fingerprint -> source -> key

    def put(self, entry: Entry, cache: ChunkCache) -> None:
        """See :meth:`KVStore.put`."""
        with self._lock:
            self._mark += 1
            self._caches[entry.key] = (entry, cache, self._mark)

    def open(self, key: str, fingerprint: str) -> ChunkReader | None:
        """See :meth:`KVStore.open`."""
        with self._lock:
            found = self._caches.get(key)
        return found[1] if found is not None and found[1].fingerprint == fingerprint else None

    def remove(self, keys: Iterable[str]) -> int:
        """See :meth:`KVStore.remove`."""
        with self._lock:
            gone = set(keys)
            for fingerprint, known in self._references.items():
                self._references[fingerprint] = {source: key for source, key in known.items() if key not in gone}
            return self._remove(gone)

    def refer(self, fingerprint: str, references: Mapping[str, str]) -> int:
        """See :meth:`KVStore.refer`."""
        with self._lock:
            before = self._take(fingerprint, references)
            self._references.setdefault(fingerprint, {}).update(references)
            return self._remove(self._unreferred(before))

    def release(self, fingerprint: str, sources: Iterable[str]) -> int:
        """See :meth:`KVStore.release`."""
        with self._lock:
            return self._remove(self._unreferred(self._take(fingerprint, sources)))

    def references(self, fingerprint: str) -> dict[str, str]:
        """See :meth:`KVStore.references`."""
        with self._lock:
            return dict(self._references.get(fingerprint, {}))

    def changes(self, fingerprint: str, since: int) -> tuple[list[Entry], int] | None:
        """See :meth:`KVStore.changes`."""
        with self._lock:
            if since == self._mark:
                return [], since
            if 0 < since < self._last_removal:
                return None
            new = [e for e, cache, mark in self._caches.values() if mark > since and cache.fingerprint == fingerprint]
            return new, self._mark

    def nbytes(self) -> int:
        """See :meth:`KVStore.nbytes`."""
        with self._lock:
            return sum(cache.nbytes for _, cache, _ in self._caches.values())

    def _take(self, fingerprint: str, sources: Iterable[str]) -> set[str]:
        known = self._references.get(fingerprint, {})
        return {known.pop(source) for source in set(sources) & known.keys()}

    def _unreferred(self, keys: set[str]) -> set[str]:
        return keys.difference(*(known.values() for known in self._references.values())) if keys else keys

    def _remove(self, keys: Iterable[str]) -> int:
        removed = [key for key in keys if self._caches.pop(key, None) is not None]
        if removed:
            self._mark += 1
            self._last_removal = self._mark
        return len(removed)
