"""Bytes to read from, wherever they lie: in a file or in memory. What is read is copied, never mapped."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

Buffer = Any
"""A writable object with the buffer protocol, C-contiguous: a NumPy array, a memoryview."""


class DamagedBytesError(Exception):
    """The bytes are not what they should be; the text says how."""


class ByteSource(Protocol):
    """Reads any part of a number of bytes, from many threads at once."""

    size: int
    """In bytes."""

    def read_into(self, start: int, buffers: Sequence[Buffer]) -> None:
        """Fill ``buffers`` one after another from byte ``start`` on.

        Raises:
            DamagedBytesError: there are fewer bytes.
        """

    def read(self, start: int, stop: int) -> bytes | memoryview:
        """Bytes ``start`` to ``stop``.

        Raises:
            DamagedBytesError: there are fewer bytes.
        """


class MemoryBytes:
    """Bytes in memory; what is read are views of them."""

    def __init__(self, data: bytes) -> None:
        self._view = memoryview(data).cast("B")
        self.size = len(self._view)

    def read_into(self, start: int, buffers: Sequence[Buffer]) -> None:
        """See :meth:`ByteSource.read_into`."""
        for buffer in buffers:
            target = memoryview(buffer)
            if target.nbytes:  # a buffer of no bytes cannot be cast
                target.cast("B")[:] = self.read(start, start + target.nbytes)
            start += target.nbytes

    def read(self, start: int, stop: int) -> memoryview:
        """See :meth:`ByteSource.read`."""
        if stop > self.size:
            raise DamagedBytesError(f"it ends after {self.size} bytes, {stop} are needed")
        return self._view[start:stop]


class FileBytes:
    """Bytes of an open file, or a part of them. A file renamed over it does not show through.

    Raises:
        FileNotFoundError: no such file.
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path, start: int = 0, size: int | None = None) -> None:
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self._file)  # closed with its reader, which lives as long as a request
        self._seek_lock = threading.Lock()
        self.status = os.fstat(self._file)
        self._start = start
        self.size = self.status.st_size - start if size is None else size

    def read_into(self, start: int, buffers: Sequence[Buffer]) -> None:
        """See :meth:`ByteSource.read_into`."""
        wanted = sum(memoryview(buffer).nbytes for buffer in buffers)
        read = self._read_at_once if hasattr(os, "preadv") else self._seek_and_read
        found = read(self._start + start, buffers)
        if found != wanted:
            raise DamagedBytesError(f"{found} of {wanted} bytes at {start} are there")

    def read(self, start: int, stop: int) -> memoryview:
        """See :meth:`ByteSource.read`."""
        buffer = memoryview(bytearray(stop - start))
        self.read_into(start, [buffer])
        return buffer

    def _read_at_once(self, start: int, buffers: Sequence[Buffer]) -> int:
        return os.preadv(self._file, buffers, start)

    def _seek_and_read(self, start: int, buffers: Sequence[Buffer]) -> int:
        found = 0
        with self._seek_lock:
            os.lseek(self._file, start, os.SEEK_SET)
            for buffer in buffers:
                content = os.read(self._file, memoryview(buffer).nbytes)
                memoryview(buffer).cast("B")[: len(content)] = content
                found += len(content)
        return found
