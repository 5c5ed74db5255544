"""Every kind of store that the contract holds for, and tiers of them, empty."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from uuid import uuid4

import pytest

import servers
from samkv_rag.chunk_cache import ChunkReader
from samkv_rag.store import DiskStore, Entry, KVStore, MemoryStore, RedisStore, RemoteStore, TieredStore
from samkv_rag.store.base import EncodedChunk

BUDGET_BYTES = 1 << 20


class WrappedStore(KVStore):
    """Does what another store does; to be derived from."""

    def __init__(self, wrapped: KVStore) -> None:
        self.wrapped = wrapped

    def put_encoded(self, chunk: EncodedChunk) -> None:
        self.wrapped.put_encoded(chunk)

    def open(self, key: str, fingerprint: str) -> ChunkReader | None:
        return self.wrapped.open(key, fingerprint)

    def fetch(self, key: str, fingerprint: str) -> EncodedChunk | None:
        return self.wrapped.fetch(key, fingerprint)

    def remove(self, keys: Iterable[str]) -> int:
        return self.wrapped.remove(keys)

    def changes(self, fingerprint: str, since: int) -> tuple[list[Entry], int] | None:
        return self.wrapped.changes(fingerprint, since)

    def refer(self, fingerprint: str, references: Mapping[str, str]) -> int:
        return self.wrapped.refer(fingerprint, references)

    def release(self, fingerprint: str, sources: Iterable[str]) -> int:
        return self.wrapped.release(fingerprint, sources)

    def references(self, fingerprint: str) -> dict[str, str]:
        return self.wrapped.references(fingerprint)

    def nbytes(self) -> int:
        return self.wrapped.nbytes()


def _memory(request: pytest.FixtureRequest, folder: Path) -> KVStore:
    return MemoryStore()


def _budgeted_memory(request: pytest.FixtureRequest, folder: Path) -> KVStore:
    return MemoryStore(BUDGET_BYTES)


def _disk(request: pytest.FixtureRequest, folder: Path) -> KVStore:
    return DiskStore(folder / "store")


def _budgeted_disk(request: pytest.FixtureRequest, folder: Path) -> KVStore:
    return DiskStore(folder / "store", BUDGET_BYTES)


def _remote(request: pytest.FixtureRequest, folder: Path) -> KVStore:
    return RemoteStore(f"memory://{uuid4().hex}/store")


def _remote_folder(request: pytest.FixtureRequest, folder: Path) -> KVStore:
    return RemoteStore(f"file://{folder}/remote")


def _s3(request: pytest.FixtureRequest, folder: Path) -> KVStore:
    options = request.getfixturevalue("s3_options")
    return RemoteStore(f"s3://{servers.BUCKET}/{uuid4().hex}", **options)


def _redis(request: pytest.FixtureRequest, folder: Path) -> KVStore:
    store = RedisStore(request.getfixturevalue("redis").url)
    store._client.flushall()
    return store


def _tiers(near: Callable[..., KVStore], far: Callable[..., KVStore]) -> Callable[..., KVStore]:
    return lambda request, folder: TieredStore(near(request, folder), far(request, folder))


KINDS: dict[str, Callable[[pytest.FixtureRequest, Path], KVStore]] = {
    "memory": _memory,
    "memory, budgeted": _budgeted_memory,
    "disk": _disk,
    "disk, budgeted": _budgeted_disk,
    "remote": _remote,
    "remote folder": _remote_folder,
    "s3": _s3,
    "redis": _redis,
    "memory before disk": _tiers(_budgeted_memory, _disk),
    "memory before remote": _tiers(_budgeted_memory, _remote),
    "memory before redis": _tiers(_budgeted_memory, _redis),
    "disk before s3": _tiers(_budgeted_disk, _s3),
    "memory before disk before remote": _tiers(_budgeted_memory, _tiers(_disk, _remote)),
}
