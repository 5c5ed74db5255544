"""Empty stores of every kind, by name."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from samkv_rag.exceptions import StoreUnreachableError
from samkv_rag.store import Blob, BytesBlob, Store, open_store
from samkv_rag.store.base import StoredBytes, read_bytes
from samkv_rag.store.disk import DiskStore
from samkv_rag.store.memory import MemoryStore
from samkv_rag.store.objects import ObjectStore
from samkv_rag.store.tiers import TieredStore
from samkv_rag.store.unreachable import Part, RemoteStore

Make = Callable[[pytest.FixtureRequest, Path], Store]


class DictStore(Store):
    """A third-party backend: the minimum of the contract."""

    def __init__(self) -> None:
        self._data: dict[str, bytes] = {}

    def contains(self, keys: Iterable[str]) -> set[str]:
        return {key for key in keys if key in self._data}

    def get(self, key: str) -> Blob | None:
        data = self._data.get(key)
        return None if data is None else BytesBlob(data)

    def put(self, key: str, data: bytes) -> None:
        self._data[key] = bytes(data)

    def delete(self, keys: Iterable[str]) -> int:
        return sum(self._data.pop(key, None) is not None for key in set(keys))

    def keys(self) -> Iterator[StoredBytes]:
        return (StoredBytes(key, len(data), 0.0) for key, data in list(self._data.items()))


class Remote(RemoteStore):
    """A remote store in memory that records requests, and may be slow, unreachable or full."""

    def __init__(self) -> None:
        super().__init__("test://remote", (OSError,))
        self.catalog_path = None
        self.kept = MemoryStore()
        self.requests: list[tuple[str, int]] = []
        """Key and number of bytes of each request."""
        self.away = False
        self.refusal: Exception | None = None
        """Raised by ``put``."""
        self.go = threading.Event()
        """Answers wait for this event."""
        self.go.set()
        self.at_once = threading.Barrier(1)
        """Answers wait until this many requests are made."""

    def contains(self, keys: Iterable[str]) -> set[str]:
        self._answer()
        return self.kept.contains(keys)

    def _get_part(self, key: str, start: int, stop: int, version: str | None = None) -> Part | None:
        blob = self.kept.get(key)
        data = bytes(read_bytes(blob))[start:stop] if blob else b""
        self.requests.append((key, len(data)))
        self._answer()
        self.at_once.wait(10)
        return Part(data, blob.size) if blob else None

    def put(self, key: str, data: bytes) -> None:
        self._answer()
        if self.refusal:
            raise self.refusal
        self.kept.put(key, data)

    def delete(self, keys: Iterable[str]) -> int:
        return self.kept.delete(keys)

    def keys(self) -> Iterator[StoredBytes]:
        return self.kept.keys()

    def _answer(self) -> None:
        self.go.wait(10)
        if self.away:
            raise StoreUnreachableError("it is away")


def _s3(request: pytest.FixtureRequest, folder: Path) -> Store:
    options: dict[str, Any] = request.getfixturevalue("s3_options")
    return ObjectStore(f"s3://samkv/{uuid4().hex}", **options)


def _redis(request: pytest.FixtureRequest, folder: Path) -> Store:
    server = request.getfixturevalue("redis")
    store = open_store(server.url, memory_bytes=0)
    store.delete(found.key for found in store.keys())
    return store


KINDS: dict[str, Make] = {
    "memory": lambda request, folder: MemoryStore(),
    "memory-budget": lambda request, folder: MemoryStore(10_000_000),
    "disk": lambda request, folder: DiskStore(folder / "kv"),
    "disk-budget": lambda request, folder: DiskStore(folder / "kv", 10_000_000),
    "s3": _s3,
    "redis": _redis,
    "memory-disk": lambda request, folder: TieredStore(MemoryStore(3_000), DiskStore(folder / "kv")),
    "disk-s3": lambda request, folder: TieredStore(DiskStore(folder / "near"), _s3(request, folder)),
    "memory-redis": lambda request, folder: TieredStore(MemoryStore(), _redis(request, folder)),
    "third-party": lambda request, folder: DictStore(),
}
