"""What a store holds, in the order in which it came, for stores that have no index of their own."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from samkv_rag.store.base import Entry


class Ledger:
    """Entries by model, each with the mark at which it was last changed. Thread-safe."""

    def __init__(self) -> None:
        self._marked: dict[str, dict[str, tuple[Entry, int]]] = {}
        self._mark = 0
        self._last_removal = 0
        self._lock = threading.Lock()

    def add(self, fingerprint: str, entries: Iterable[Entry]) -> None:
        """Take over entries; one that is known already as it is keeps its mark."""
        with self._lock:
            known = self._marked.setdefault(fingerprint, {})
            for entry in entries:
                old = known.get(entry.key)
                if old is None or old[0] != entry:
                    known.pop(entry.key, None)  # the newest stands last
                    self._mark += 1
                    known[entry.key] = entry, self._mark

    def remove(self, keys: Iterable[str]) -> list[str]:
        """Forget entries and return the keys of those that were there."""
        with self._lock:
            removed = [key for key in set(keys) if self._pop(key)]
            if removed:
                self._mark += 1
                self._last_removal = self._mark
            return removed

    def keys(self, fingerprint: str) -> set[str]:
        """Keys of a model's chunks."""
        with self._lock:
            return set(self._marked.get(fingerprint, ()))

    def get(self, fingerprint: str, key: str) -> Entry | None:
        """One entry."""
        with self._lock:
            found = self._marked.get(fingerprint, {}).get(key)
        return None if found is None else found[0]

    def changes(self, fingerprint: str, since: int) -> tuple[list[Entry], int] | None:
        """See :meth:`KVStore.changes`."""
        with self._lock:
            if since == self._mark:
                return [], since
            if since > self._mark or 0 < since < self._last_removal:
                return None
            new = []
            for entry, mark in reversed(self._marked.get(fingerprint, {}).values()):
                if mark <= since:
                    break
                new.append(entry)
            return new[::-1], self._mark

    def _pop(self, key: str) -> bool:
        popped = [entries.pop(key, None) for entries in self._marked.values()]
        return any(entry is not None for entry in popped)
