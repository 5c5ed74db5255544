"""The contract of a store: bytes by key. Every implementation runs the suite in ``testing.py``."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from samkv_rag.exceptions import DamagedChunkError, StoreError

Buffer = Any
"""A writable, C-contiguous object with the buffer protocol: a NumPy array, a memoryview."""
Self = TypeVar("Self", bound="Store")

_KEY = re.compile(r"[0-9a-f]{64}")


class Blob(Protocol):
    """The bytes under a key. Any part is read without reading the rest; holds no file open."""

    size: int
    """In bytes."""
    identity: object
    """Equal only for blobs of the same, unchanged bytes."""

    def read(self, parts: Sequence[tuple[int, Buffer]]) -> None:
        """Fill every buffer with the bytes from its start on, by one request where the backend can.

        Raises:
            DamagedChunkError: there are fewer bytes, or others than there were.
        """


class BytesBlob:
    """Bytes in memory."""

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
    """Bytes ``start`` to ``stop`` of a blob; its end unless given."""
    data = bytearray((blob.size if stop is None else stop) - start)
    blob.read([(start, data)])
    return data


class StoredBytes(NamedTuple):
    """What a store says of a key without reading it."""

    key: str
    num_bytes: int
    last_use_s: float
    """Seconds since 1970; 0: not known."""


class Store(ABC):
    """Maps keys to bytes. Any number of threads and processes may use one at once.

    A key is 64 hexadecimal digits, a hash. What is put is there whole or not at all; what is read is
    checked by the reader, so a store need not. A remote that gives no answer raises
    ``StoreUnreachableError`` within its time limit, and its chunks are computed again.
    """

    shared: bool = False
    """Whether other machines keep chunks here, which must outlive the documents of this one."""
    num_evicted: int = 0
    """Entries that this process deleted to stay within a budget."""
    catalog_path: Path | None = None
    """Where this machine writes down what is known of the store; None: in memory."""

    @abstractmethod
    def contains(self, keys: Iterable[str]) -> set[str]:
        """Return those of ``keys`` under which something is stored."""

    @abstractmethod
    def get(self, key: str) -> Blob | None:
        """Return the bytes under ``key``, or None where there are none. Counts as a use."""

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Store ``data``, in place of what stood under ``key``.

        Raises:
            StoreFullError: no room; what was stored before is intact.
        """

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> int:
        """Delete what stands under ``keys``, and return under how many something stood."""

    @abstractmethod
    def keys(self) -> Iterator[StoredBytes]:
        """Every key with its size, in any order."""

    def close(self) -> None:  # noqa: B027 - most stores hold nothing open
        """Let go of connections and threads; the store is not used afterwards."""

    # What slow stores do better than this

    def get_beginning(self, key: str, num_bytes: int) -> Blob | None:
        """Like :meth:`get`, where the first ``num_bytes`` will be read and the others hardly."""
        return self.get(key)

    def prefetch(self, keys: Iterable[str]) -> Callable[[], None]:
        """Start bringing bytes nearer; returns at once. Calling what is returned stops it."""
        return lambda: None

    def flush(self) -> None:  # noqa: B027 - most stores have written when they return
        """Wait until everything put is where it outlives this process.

        Raises:
            StoreError: something could not be written there.
        """

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def require_key(key: object) -> str:
    """Return a key; nothing else may become a path.

    Raises:
        StoreError: it is not 64 hexadecimal digits.
    """
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise StoreError(f"{key!r} is not a key; keys are 64 hexadecimal digits")
    return key
