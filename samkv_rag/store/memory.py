"""A store in memory, for one process."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator

from samkv_rag.exceptions import StoreFullError
from samkv_rag.forking import ProcessLock
from samkv_rag.store.base import Blob, BytesBlob, Store, StoredBytes, require_key


class MemoryStore(Store):
    """Keeps bytes in a dictionary.

    Args:
        budget_bytes: if a new entry does not fit, the least recently used entries are deleted. None: no limit.
    """

    def __init__(self, budget_bytes: int | None = None) -> None:
        self.budget_bytes = budget_bytes
        self._entries: OrderedDict[str, tuple[BytesBlob, float]] = OrderedDict()
        self._num_bytes = 0
        self._lock = ProcessLock()

    def contains(self, keys: Iterable[str]) -> set[str]:
        with self._lock:
            return {key for key in keys if key in self._entries}

    def get(self, key: str) -> Blob | None:
        with self._lock:
            entry = self._entries.pop(key, None)
            if entry is None:
                return None
            self._entries[key] = (entry[0], time.time())
        return entry[0]

    def put(self, key: str, data: bytes) -> None:
        require_key(key)
        if self.budget_bytes is not None and len(data) > self.budget_bytes:
            raise StoreFullError(
                f"a chunk takes {len(data):,} bytes, the memory budget is {self.budget_bytes:,}; "
                "raise memory_bytes or split the text into smaller chunks"
            )
        with self._lock:
            self._pop(key)
            while self.budget_bytes is not None and self._num_bytes + len(data) > self.budget_bytes:
                self.num_evicted += self._pop(next(iter(self._entries)))
            self._entries[key] = (BytesBlob(bytes(data)), time.time())
            self._num_bytes += len(data)

    def delete(self, keys: Iterable[str]) -> int:
        with self._lock:
            return sum(self._pop(key) for key in set(keys))

    def keys(self) -> Iterator[StoredBytes]:
        with self._lock:
            entries = list(self._entries.items())
        return (StoredBytes(key, blob.size, last_use_s) for key, (blob, last_use_s) in entries)

    def _pop(self, key: str) -> bool:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._num_bytes -= entry[0].size
        return entry is not None
