"""A store in a folder, one file per key. Many processes may share it.

    FOLDER/samkv-store.json                 marks the folder as a store
    FOLDER/chunks/ab/abcd….safetensors      a chunk, mode 0600
    FOLDER/catalog.sqlite                   see ``catalog``

A file is written under a temporary name and then renamed, so readers see a whole file or none. The access time of
a file is its last use.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import IO

from samkv_rag.exceptions import ConfigurationError, DamagedChunkError, StoreError, StoreFormatError, StoreFullError
from samkv_rag.forking import ProcessLock
from samkv_rag.store.base import Blob, Buffer, Store, StoredBytes, require_key

logger = logging.getLogger(__name__)

FORMAT = 5
MARKER = "samkv-store.json"
WRITING_PREFIX = ".writing-"
_ABANDONED_AFTER_S = 86_400
_RECOUNT_AFTER_S = 10.0
"""A count of the folder's bytes is repeated after this time, because other processes write to the folder too."""
_FREED_AT_ONCE = 1 / 64  # of the budget


class DiskStore(Store):
    """Keeps bytes in a folder.

    Args:
        folder: created if missing. ``~`` is the user's home.
        budget_bytes: if a new file does not fit, the least recently used files are deleted. Processes that write at
            the same time may exceed the budget by what they write in ten seconds. None: no limit.

    Raises:
        ConfigurationError: the folder is not a path.
        StoreFormatError: the folder contains other files, or a store of another format.
    """

    def __init__(self, folder: str | os.PathLike[str], budget_bytes: int | None = None) -> None:
        self.folder = as_folder("folder", folder)
        self.budget_bytes = budget_bytes
        self.catalog_path = self.folder / "catalog.sqlite"
        self._chunks = self.folder / "chunks"
        self._num_bytes = 0
        self._counted_at = float("-inf")
        self._lock = ProcessLock()
        self._open_folder()

    def contains(self, keys: Iterable[str]) -> set[str]:
        return {key for key in keys if os.path.isfile(self._path(key))}

    def get(self, key: str) -> Blob | None:
        if blob := self.peek(key):
            self._set_last_use(self._path(key), blob.mtime_ns)
        return blob

    def peek(self, key: str) -> FileBlob | None:
        try:
            return FileBlob(self._path(key))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DamagedChunkError(f"unreadable ({error.strerror})") from error

    def touch(self, key: str) -> None:
        path = self._path(key)
        with suppress(OSError):
            self._set_last_use(path, os.stat(path).st_mtime_ns)

    def put(self, key: str, data: bytes) -> None:
        path = self._path(key)
        try:
            if self.budget_bytes is not None:
                self._make_room(key, len(data), self.budget_bytes)
            path.parent.mkdir(exist_ok=True, mode=0o700)
            with written_whole(path) as file:
                file.write(data)
        except OSError as error:
            raise self._as_store_error(error) from error
        with self._lock:
            self._num_bytes += len(data)

    def delete(self, keys: Iterable[str]) -> int:
        num_deleted = 0
        for key in set(keys):
            try:
                self._path(key).unlink()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise self._as_store_error(error) from error
            num_deleted += 1
        self._counted_at = float("-inf")
        return num_deleted

    def keys(self) -> Iterator[StoredBytes]:
        now_s = time.time()
        for path in self._chunks.glob("??/*.safetensors"):
            with suppress(OSError, StoreError):  # deleted meanwhile, unreadable, or not named by a key
                key, found = require_key(path.stem), path.stat()
                if found.st_atime > now_s:  # written by a clock that was ahead; do not keep the file for ever
                    with suppress(OSError):
                        os.utime(path, ns=(time.time_ns(), found.st_mtime_ns))
                yield StoredBytes(key, found.st_size, min(found.st_atime, now_s))

    def prefetch(self, keys: Iterable[str]) -> Callable[[], None]:
        """Ask the kernel to read the files ahead, if it supports that."""
        if hasattr(os, "posix_fadvise"):
            for key in keys:
                with suppress(OSError), _opened(self._path(key)) as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
        return lambda: None

    def remove_leftovers(self) -> int:
        """Delete temporary files older than a day, left by killed writers; return how many."""
        num_removed = 0
        for path in self._chunks.glob(f"*/{WRITING_PREFIX}*"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _ABANDONED_AFTER_S:
                    path.unlink()
                    num_removed += 1
        return num_removed

    # The folder

    def _open_folder(self) -> None:
        marker = self.folder / MARKER
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            names = sorted(os.listdir(self.folder))
            if MARKER in names:
                found = json.loads(marker.read_text())["samkv_store"]
                if found != FORMAT:
                    raise StoreFormatError(
                        f"{self.folder} is a store of format {found!r}, this release has {FORMAT}; give another folder"
                    )
            # An interrupted opening leaves no more than "chunks" and a file that was being written.
            elif others := [name for name in names if name != "chunks" and not name.startswith(WRITING_PREFIX)]:
                raise StoreFormatError(
                    f"{self.folder} holds other things ({', '.join(others[:3])}); a store needs a folder of its own"
                )
            self._chunks.mkdir(exist_ok=True, mode=0o700)
            if MARKER not in names:
                with written_whole(marker) as file:
                    file.write(json.dumps({"samkv_store": FORMAT}).encode())
        except OSError as error:
            raise self._as_store_error(error) from error
        except (ValueError, KeyError, TypeError) as error:
            raise StoreFormatError(f"{marker} is damaged; delete it or give another folder") from error
        if self.folder.stat().st_mode & 0o022:
            warnings.warn(
                f"{self.folder} can be written by other users, who could change stored chunks; chmod go-w it",
                stacklevel=4,
            )

    @staticmethod
    def _set_last_use(path: Path, mtime_ns: int) -> None:
        with suppress(OSError):  # a read-only mount
            os.utime(path, ns=(time.time_ns(), mtime_ns))

    def _path(self, key: str) -> Path:
        return self._chunks / require_key(key)[:2] / f"{key}.safetensors"

    def _as_store_error(self, error: OSError) -> StoreError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StoreFullError(f"no space left for {self.folder}: {error.strerror}; stored chunks are intact")
        return StoreError(f"{self.folder} cannot be used: {error.strerror or error}")

    def _make_room(self, key: str, num_bytes: int, budget_bytes: int) -> None:
        """Delete the least recently used files if ``num_bytes`` more do not fit by a recent count."""
        if num_bytes > budget_bytes:
            raise StoreFullError(
                f"a chunk takes {num_bytes:,} bytes, the budget of {self.folder} is {budget_bytes:,}; raise "
                "disk_bytes or split the text into smaller chunks. Stored chunks are intact"
            )
        with self._lock:
            is_recent = time.monotonic() - self._counted_at <= _RECOUNT_AFTER_S
            if is_recent and self._num_bytes + num_bytes <= budget_bytes:
                return
            stored = sorted((found for found in self.keys() if found.key != key), key=lambda found: found.last_use_s)
            total, num_evicted = sum(found.num_bytes for found in stored), 0
            if total + num_bytes > budget_bytes:
                target = min(budget_bytes - num_bytes, int(budget_bytes * (1 - _FREED_AT_ONCE)))
                while total > target:
                    self._path(stored[num_evicted].key).unlink(missing_ok=True)
                    total -= stored[num_evicted].num_bytes
                    num_evicted += 1
                logger.info("evicted %d chunks of %s to stay within %d bytes", num_evicted, self.folder, budget_bytes)
            self.num_evicted += num_evicted
            self._num_bytes, self._counted_at = total, time.monotonic()


class FileBlob:
    """The bytes of a file. Each read opens the file, so thousands of blobs may exist at once."""

    is_near = True

    def __init__(self, path: Path) -> None:
        self._path = path
        status = os.stat(path)
        self.identity: object = _identity(status)
        self.size = status.st_size
        self.mtime_ns = status.st_mtime_ns

    def read(self, parts: Sequence[tuple[int, Buffer]]) -> None:
        runs: list[tuple[int, list[Buffer]]] = []
        stop = -1
        for start, buffer in parts:  # adjacent parts are read by one call
            if start != stop:
                runs.append((start, []))
            runs[-1][1].append(buffer)
            stop = start + memoryview(buffer).nbytes
        try:
            with _opened(self._path) as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise OSError(errno.EINVAL, "not a regular file")
                if _identity(status) != self.identity:
                    raise DamagedChunkError("it was replaced while it was read")
                found = sum(_read_at(file, start, buffers) for start, buffers in runs)
        except OSError as error:
            raise DamagedChunkError(f"unreadable ({error.strerror})") from error
        if found != (wanted := sum(memoryview(buffer).nbytes for _, buffer in parts)):
            raise DamagedChunkError(f"{found} of {wanted} bytes from {parts[0][0]} on are there")


@contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file, mode 0600, that is renamed to ``path`` at the end; on an error it is deleted."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=WRITING_PREFIX)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _opened(path: Path) -> FileIO:
    """Open a file to read; does not block on a pipe, and leaves its access time, which is set where it is used."""

    def open_it(name: str, flags: int) -> int:
        flags |= getattr(os, "O_NONBLOCK", 0)
        try:
            return os.open(name, flags | getattr(os, "O_NOATIME", 0))
        except PermissionError:  # another user's file
            return os.open(name, flags)

    return FileIO(path, opener=open_it)


def _read_at(file: FileIO, start: int, buffers: Sequence[Buffer]) -> int:
    if hasattr(os, "preadv"):
        whole = [memoryview(buffer) for buffer in buffers]
        views, total = [view.cast("B") for view in whole if view.nbytes], 0  # a buffer of no bytes cannot be cast
        while views and (found := os.preadv(file.fileno(), views, start + total)):  # at most 2 GiB at once
            total += found
            while views and found >= len(views[0]):
                found -= len(views.pop(0))
            if views:
                views[0] = views[0][found:]
        return total
    file.seek(start)
    return sum(file.readinto(buffer) or 0 for buffer in buffers)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_ino, status.st_mtime_ns, status.st_size)


def as_folder(name: str, value: object) -> Path:
    """Return the path of a folder, which need not exist."""
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    empty = isinstance(value, Path) and not value.parts
    if not isinstance(path, str) or empty or not path.strip() or "\0" in path or path == ":memory:" or "://" in path:
        raise ConfigurationError(f"{name} is {str(value)!r}; it must be the path of a folder")
    return Path(path).expanduser()
