"""The contract of a store: bytes by key. Every implementation runs the suite in ``testing.py``."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

from samkv_rag.exceptions import DamagedChunkError, StoreError

Buffer = Any
"""A writable, C-contiguous object with the buffer protocol: a NumPy array, a memoryview."""

_KEY = re.compile(r"[0-9a-f]{64}")


class Blob(Protocol):
    """The bytes of a key. Reads any part without the rest, and keeps no file open."""

    size: int
    """In bytes."""
    identity: object
    """Equal only for blobs of the same, unchanged bytes."""

    @property
    def is_near(self) -> bool:
        """Whether all bytes can be read without a request to a remote store."""

    def read(self, parts: Sequence[tuple[int, Buffer]]) -> None:
        """Fill each buffer with the bytes from its start offset on, in one request if the backend can.

        Raises:
            DamagedChunkError: there are too few bytes, or they have changed.
        """


class BytesBlob:
    """Bytes in memory."""

    is_near = True

    def __init__(self, data: bytes | bytearray) -> None:
        self._view = memoryview(data)
        self.size = len(data)
        self.identity = object()

    def read(self, parts: Sequence[tuple[int, Buffer]]) -> None:
        for start, buffer in parts:
            target = memoryview(buffer)
            if start + target.nbytes > self.size:
                raise DamagedChunkError(f"it ends after {self.size} bytes, {start + target.nbytes} are needed")
            if target.nbytes:  # a buffer of no bytes cannot be cast
                target.cast("B")[:] = self._view[start : start + target.nbytes]


def read_bytes(blob: Blob, start: int = 0, stop: int | None = None) -> bytearray:
    """Return bytes ``start`` to ``stop`` of a blob; ``None`` is its end."""
    data = bytearray((blob.size if stop is None else stop) - start)
    blob.read([(start, data)])
    return data


class StoredBytes(NamedTuple):
    """An entry of a store's listing."""

    key: str
    num_bytes: int
    last_use_s: float
    """Seconds since 1970; 0 if unknown."""


class Store(ABC):
    """Maps keys to bytes. Any number of threads and processes may use a store at once.

    A key is a hash of 64 hexadecimal digits. An entry is stored whole or not at all. The reader checks what it
    reads, so a store need not. A remote store that does not answer raises ``StoreUnreachableError`` within its
    time limit; its chunks are then computed again.
    """

    shared: bool = False
    """Whether other machines keep chunks here. They must survive the removal of this machine's documents."""
    num_evicted: int = 0
    """Entries that this process deleted to stay within a budget."""
    catalog_path: Path | None = None
    """This machine's catalog file for the store; None keeps the catalog in memory."""

    @abstractmethod
    def contains(self, keys: Iterable[str]) -> set[str]:
        """Return those of ``keys`` that are stored."""

    @abstractmethod
    def get(self, key: str) -> Blob | None:
        """Return the bytes of ``key``, or None if it is not stored. Counts as a use."""

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Store ``data`` under ``key``, replacing what was there.

        Raises:
            StoreFullError: there is no room; stored chunks are intact.
        """

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> int:
        """Delete ``keys``, and return how many were stored."""

    @abstractmethod
    def keys(self) -> Iterator[StoredBytes]:
        """Yield every key with its size, in any order."""

    def close(self) -> None:  # noqa: B027 - most stores hold nothing open
        """Close connections and threads. The store must not be used afterwards."""

    def peek(self, key: str) -> Blob | None:
        """Like :meth:`get`, but not counted as a use where the store can tell."""
        return self.get(key)

    def touch(self, key: str) -> None:  # noqa: B027 - for stores that know the last use of a key
        """Count a use of ``key``, which was read from a nearer tier."""

    # Slow stores override these

    def get_beginning(self, key: str, num_bytes: int) -> Blob | None:
        """Like :meth:`get`, for a reader that needs the first ``num_bytes`` and rarely more."""
        return self.get(key)

    def prefetch(self, keys: Iterable[str]) -> Callable[[], None]:
        """Start to fetch ``keys`` into a nearer tier, and return at once. Call the result to stop."""
        return lambda: None

    def flush(self, keys: Iterable[str] | None = None) -> None:  # noqa: B027 - most stores write at once
        """Wait until everything that was put is stored beyond this process.

        Raises:
            StoreError: one of ``keys`` could not be written; None: any.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def require_key(key: object) -> str:
    """Return ``key``, which is safe to use in a path.

    Raises:
        StoreError: it is not 64 hexadecimal digits.
    """
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise StoreError(f"{key!r} is not a key; keys are 64 hexadecimal digits")
    return key
