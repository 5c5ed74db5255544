"""A store in a folder: one file a key. Many processes may share it.

    FOLDER/samkv-store.json                 says that this folder is a store
    FOLDER/chunks/ab/abcd….safetensors      a chunk; 0600
    FOLDER/catalog.sqlite                   see ``catalog``

A file is written under a temporary name and renamed, so readers see a whole file or none. A file's access
time is its last use.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from samkv_rag.exceptions import ConfigurationError, DamagedChunkError, StoreError, StoreFormatError, StoreFullError
from samkv_rag.store.base import Blob, Buffer, Store, StoredBytes, require_key

logger = logging.getLogger(__name__)

FORMAT = 5
MARKER = "samkv-store.json"
_CATALOG = "catalog.sqlite"
_WRITING_PREFIX = ".writing-"
_ABANDONED_AFTER_S = 86_400
_RECOUNT_AFTER_S = 10.0
"""How old the count of a budgeted folder's bytes may become; other processes write to it, too."""
_FREED_AT_ONCE = 1 / 64  # of the budget
_FULL = (errno.ENOSPC, errno.EDQUOT)
_READ = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
"""Does not wait where a pipe lies in a file's place."""


class DiskStore(Store):
    """Keeps bytes in a folder that outlives the process.

    Args:
        folder: made where absent. ``~`` is the user's home.
        budget_bytes: where a new file does not fit, those used longest ago are deleted. Processes that
            write at the same time may together pass it by what they write within ten seconds. None: no bound.

    Raises:
        ConfigurationError: the folder is not a path.
        StoreFormatError: the folder holds other things, or a store of another format.
    """

    def __init__(self, folder: str | os.PathLike[str], budget_bytes: int | None = None) -> None:
        self.folder = as_folder("folder", folder)
        self.budget_bytes = budget_bytes
        self._chunks = self.folder / "chunks"
        self._num_bytes = 0
        self._counted_at = float("-inf")
        self._lock = threading.Lock()
        self._open_folder()

    @property
    def catalog_path(self) -> Path:
        return self.folder / _CATALOG

    def contains(self, keys: Iterable[str]) -> set[str]:
        return {key for key in keys if self._path(key).is_file()}

    def get(self, key: str) -> Blob | None:
        path = self._path(key)
        try:
            blob = FileBlob(path)
        except FileNotFoundError:
            return None
        with suppress(OSError):  # a mount that can only be read
            os.utime(path, ns=(time.time_ns(), blob.mtime_ns))
        return blob

    def put(self, key: str, data: bytes) -> None:
        path = self._path(key)
        self._make_room(key, len(data))
        try:
            path.parent.mkdir(exist_ok=True, mode=0o700)
            self._write(path, data)
        except OSError as error:
            raise self._as_store_error(error) from error
        with self._lock:
            self._num_bytes += len(data)

    def delete(self, keys: Iterable[str]) -> int:
        num_deleted = 0
        for key in set(keys):
            with suppress(FileNotFoundError):
                try:
                    self._path(key).unlink()
                except PermissionError as error:
                    raise self._as_store_error(error) from error
                num_deleted += 1
        self._counted_at = float("-inf")
        return num_deleted

    def keys(self) -> Iterator[StoredBytes]:
        now_s = time.time()
        for path, status in self._files():
            if status.st_atime > now_s:  # a clock was ahead, which must not keep a file for ever
                with suppress(OSError):
                    os.utime(path, ns=(time.time_ns(), status.st_mtime_ns))
            yield StoredBytes(path.stem, status.st_size, min(status.st_atime, now_s))

    def prefetch(self, keys: Iterable[str]) -> Callable[[], None]:
        """Ask the kernel to read the files ahead; where it takes no advice, nothing happens."""
        if hasattr(os, "posix_fadvise"):
            for key in keys:
                with suppress(OSError):
                    descriptor = os.open(self._path(key), _READ)
                    try:
                        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
                    finally:
                        os.close(descriptor)
        return lambda: None

    def remove_leftovers(self) -> int:
        """Delete the temporary files of writers that died over a day ago; return how many."""
        num_removed = 0
        for path in self._chunks.glob(f"*/{_WRITING_PREFIX}*"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _ABANDONED_AFTER_S:
                    path.unlink()
                    num_removed += 1
        return num_removed

    # The folder

    def _open_folder(self) -> None:
        try:
            if not self.folder.exists():
                self.folder.mkdir(parents=True, mode=0o700)
            self._require_own(set(os.listdir(self.folder)))
            if not self._chunks.is_dir():
                self._chunks.mkdir(exist_ok=True, mode=0o700)
            marker = self.folder / MARKER
            if not marker.exists():
                self._write(marker, json.dumps({"samkv_store": FORMAT}).encode())
        except OSError as error:
            raise self._as_store_error(error) from error
        if self.folder.stat().st_mode & 0o022:
            warnings.warn(
                f"{self.folder} can be written by other users, who could change stored chunks; chmod go-w it",
                stacklevel=4,
            )

    def _require_own(self, names: set[str]) -> None:
        """A folder with a marker is a store; one without must be empty but for what a killed opening left."""
        if MARKER in names:
            try:
                found = json.loads((self.folder / MARKER).read_text())["samkv_store"]
            except (ValueError, KeyError, TypeError) as error:
                raise StoreFormatError(
                    f"{self.folder / MARKER} is damaged; delete it or give another folder"
                ) from error
            if found != FORMAT:
                raise StoreFormatError(
                    f"{self.folder} is a store of format {found!r}, this release has {FORMAT}; give another folder"
                )
        elif others := sorted(name for name in names if name != "chunks" and not name.startswith(_WRITING_PREFIX)):
            raise StoreFormatError(
                f"{self.folder} holds other things ({', '.join(others[:3])}); a store needs a folder of its own"
            )

    def _path(self, key: str) -> Path:
        return self._chunks / require_key(key)[:2] / f"{key}.safetensors"

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for folder in sorted(self._chunks.glob("??")):
            with suppress(FileNotFoundError), os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.endswith(".safetensors") and not entry.name.startswith("."):
                        with suppress(FileNotFoundError):
                            yield Path(entry.path), entry.stat()

    def _write(self, path: Path, data: bytes) -> None:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=_WRITING_PREFIX)  # 0600
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise

    def _as_store_error(self, error: OSError) -> StoreError:
        if error.errno in _FULL:
            return StoreFullError(f"no space left for {self.folder}: {error.strerror}; stored chunks are intact")
        return StoreError(f"{self.folder} cannot be used: {error.strerror or error}")

    # The budget

    def _make_room(self, key: str, num_bytes: int) -> None:
        if self.budget_bytes is None:
            return
        if num_bytes > self.budget_bytes:
            raise StoreFullError(
                f"a chunk takes {num_bytes:,} bytes, the budget of {self.folder} is {self.budget_bytes:,}; raise "
                "disk_bytes or split the text into smaller chunks. Stored chunks are intact"
            )
        with self._lock:
            too_old = time.monotonic() - self._counted_at > _RECOUNT_AFTER_S
            if too_old or self._num_bytes + num_bytes > self.budget_bytes:
                self._evict(key, num_bytes, self.budget_bytes)

    def _evict(self, key: str, num_bytes: int, budget_bytes: int) -> None:
        """Count the folder's bytes; where ``num_bytes`` more do not fit, delete what was used longest ago."""
        stored = [found for found in self.keys() if found.key != key]
        total = sum(found.num_bytes for found in stored)
        if total + num_bytes > budget_bytes:
            target = min(budget_bytes - num_bytes, int(budget_bytes * (1 - _FREED_AT_ONCE)))
            num_evicted = 0
            for found in sorted(stored, key=lambda found: found.last_use_s):
                if total <= target:
                    break
                self._path(found.key).unlink(missing_ok=True)
                total -= found.num_bytes
                num_evicted += 1
            self.num_evicted += num_evicted
            logger.info("evicted %d chunks of %s to stay within %d bytes", num_evicted, self.folder, budget_bytes)
        self._num_bytes = total
        self._counted_at = time.monotonic()


class FileBlob:
    """The bytes of a file, which is opened for each read, so that thousands may be at hand.

    Raises:
        FileNotFoundError: no such file.
    """

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        status = os.stat(path)
        self.identity: object = _identity(status)
        self.size = status.st_size
        self.mtime_ns = status.st_mtime_ns

    def read(self, parts: Sequence[tuple[int, Buffer]]) -> None:
        runs: list[tuple[int, list[Buffer]]] = []
        stop = -1
        for start, buffer in parts:  # what lies side by side is read by one call
            if start != stop:
                runs.append((start, []))
            runs[-1][1].append(buffer)
            stop = start + memoryview(buffer).nbytes
        try:
            descriptor = os.open(self._path, _READ)
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    raise OSError(errno.EINVAL, "not a regular file")
                if _identity(status) != self.identity:
                    raise DamagedChunkError("it was replaced while it was read")
                found = sum(_read_at(descriptor, start, buffers) for start, buffers in runs)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise DamagedChunkError(f"unreadable ({error.strerror})") from error
        if found != (wanted := sum(memoryview(buffer).nbytes for _, buffer in parts)):
            raise DamagedChunkError(f"{found} of {wanted} bytes from {parts[0][0]} on are there")


def _read_at(descriptor: int, start: int, buffers: Sequence[Buffer]) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, buffers, start)
    os.lseek(descriptor, start, os.SEEK_SET)  # the descriptor is this call's own
    found = 0
    for buffer in buffers:
        content = os.read(descriptor, memoryview(buffer).nbytes)
        memoryview(buffer).cast("B")[: len(content)] = content
        found += len(content)
    return found


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_ino, status.st_mtime_ns, status.st_size)


def as_folder(name: str, value: object) -> Path:
    """Return a folder's path, which need not be there.

    Raises:
        ConfigurationError: not a path, an empty one, or another kind of location.
    """
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    empty = isinstance(value, Path) and not value.parts
    if not isinstance(path, str) or empty or not path.strip() or "\0" in path or path == ":memory:" or "://" in path:
        raise ConfigurationError(f"{name} is {str(value)!r}; it must be the path of a folder")
    return Path(path).expanduser()
