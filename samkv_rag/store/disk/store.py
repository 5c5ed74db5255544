"""A store in a folder: one file a chunk, and an index of what is there. Many processes may share it.

    FOLDER/index.sqlite                     entries and references; WAL mode
    FOLDER/chunks/ab/abcd….safetensors      see ``format``

A file is written under a temporary name, then renamed and indexed while the index is locked: readers
see a whole chunk or none, and what the index names is whole. Everything is private to its owner.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from samkv_rag.chunk_cache import ChunkReader
from samkv_rag.exceptions import StoreError, StoreFullError
from samkv_rag.store.base import EncodedChunk, Entry, KVStore, NoPrefetch, Prefetch
from samkv_rag.store.disk import index_references, index_table
from samkv_rag.store.disk.chunk_folder import ChunkFolder
from samkv_rag.store.disk.described import describe_file
from samkv_rag.store.disk.errors import disk_errors
from samkv_rag.store.disk.index import DiskIndex
from samkv_rag.store.disk.index_table import StoredChunk
from samkv_rag.store.disk.recency import Recency
from samkv_rag.store.format.reading import ChunkBytes, ChunkFile, DamagedFileError
from samkv_rag.store.shared.hashes import require_keys
from samkv_rag.store.shared.options import require_budget, require_folder
from samkv_rag.store.shared.whole import warn_damaged

_EVICTED_AT_ONCE = 1 / 64  # of the budget: readers of a model start over after each eviction


class DiskStore(KVStore):
    """Keeps chunk caches in a folder that outlives the process.

    ``budget_bytes`` bounds the chunk files; where a new one does not fit, those go that were not used
    for long and are cheap to compute again. Processes may give different budgets; each evicts by its own.

    Raises:
        ConfigurationError: the folder is no path, or the budget no positive number of bytes.
        StoreFormatError: the folder's index is another program's or of a newer schema version.
    """

    def __init__(self, folder: str | os.PathLike[str], budget_bytes: int | None = None) -> None:
        self.folder = Path(require_folder("folder", folder))
        self.budget_bytes = require_budget("disk_bytes", budget_bytes)
        self.files = ChunkFolder(self.folder / "chunks")
        self._verified: dict[str, tuple[int, ...]] = {}
        self._recency = Recency(self.flush_uses)
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.index = DiskIndex(self.folder, self._chunks_of_files)
            self.files.create()

    def put_encoded(self, chunk: EncodedChunk) -> None:
        """See :meth:`KVStore.put_encoded`."""
        self.put_pieces(chunk.entry, chunk.fingerprint, len(chunk.data), [chunk.data])

    def put_pieces(self, entry: Entry, fingerprint: str, num_bytes: int, pieces: Iterable[bytes | memoryview]) -> None:
        """Like :meth:`put_encoded`, of a chunk file that need not be in memory whole."""
        now_s = time.time()
        self._require_room(num_bytes)
        stored = StoredChunk(entry, fingerprint, num_bytes, created_s=now_s, last_use_s=now_s)
        with disk_errors(self.folder), self.files.written(entry.key, pieces) as temporary:
            self._write_uses()
            self.index.write(lambda index: self._place(index, stored, temporary))

    def open(self, key: str, fingerprint: str) -> ChunkReader | None:
        """See :meth:`KVStore.open`; a file's checksums are verified when a process first reads it."""
        path = self.files.path(key)
        try:
            reader = ChunkFile(path, fingerprint)
            self._verify_once(key, reader)
        except FileNotFoundError:
            return None
        except DamagedFileError as error:
            warn_damaged(path.name, error)
            return None
        self._recency.note(key)
        return reader

    def fetch(self, key: str, fingerprint: str) -> EncodedChunk | None:
        """See :meth:`KVStore.fetch`."""
        chunk = self.copy(key, fingerprint)
        if chunk is not None:
            self._recency.note(key)
        return chunk

    def copy(self, key: str, fingerprint: str) -> EncodedChunk | None:
        """Like :meth:`fetch`, without being a use of the chunk: a copy of a store keeps nothing from being evicted."""
        stored = self.index.read(lambda index: index_table.get(index, key))
        path = self.files.path(key)
        try:
            data = path.read_bytes()
            ChunkBytes(data, fingerprint, key).verify()
        except FileNotFoundError:
            return None
        except (DamagedFileError, OSError) as error:
            warn_damaged(path.name, f"unreadable ({error.strerror})" if isinstance(error, OSError) else error)
            return None
        return None if stored is None else EncodedChunk(stored.entry, fingerprint, data)

    def holds(self, key: str, fingerprint: str) -> bool:
        """Whether :meth:`copy` would hand over a chunk, which takes no memory here; a damaged one is reported."""
        path = self.files.path(key)
        try:
            ChunkFile(path, fingerprint).verify()
        except FileNotFoundError:
            return False
        except DamagedFileError as error:
            warn_damaged(path.name, error)
            return False
        return self.index.read(lambda index: index_table.get(index, key)) is not None

    def remove(self, keys: Iterable[str]) -> int:
        """See :meth:`KVStore.remove`."""
        gone = set(keys)

        def remove(index: sqlite3.Connection) -> int:
            index_references.drop_keys(index, gone)
            return self._remove(index, gone)

        return self.index.write(remove)

    def evict(self, keys: Iterable[str]) -> int:
        """Delete chunks and return how many there were; references stay, for when they are computed again."""
        gone = set(keys)
        return self.index.write(lambda index: self._remove(index, gone))

    def refer(self, fingerprint: str, references: Mapping[str, str]) -> int:
        """See :meth:`KVStore.refer`."""
        require_keys(references)
        return self.index.write(
            lambda index: self._remove(index, index_references.point(index, fingerprint, references))
        )

    def release(self, fingerprint: str, sources: Iterable[str]) -> int:
        """See :meth:`KVStore.release`."""
        gone = list(sources)
        return self.index.write(lambda index: self._remove(index, index_references.drop(index, fingerprint, gone)))

    def references(self, fingerprint: str) -> dict[str, str]:
        """See :meth:`KVStore.references`."""
        return self.index.read(lambda index: index_references.read(index, fingerprint))

    def changes(self, fingerprint: str, since: int) -> tuple[list[Entry], int] | None:
        """See :meth:`KVStore.changes`."""
        return self.index.read(lambda index: index_table.changes(index, fingerprint, since))

    def nbytes(self) -> int:
        """See :meth:`KVStore.nbytes`."""
        return self.index.read(index_table.total_bytes)

    def prefetch(self, keys: Iterable[str], fingerprint: str) -> Prefetch:
        """Ask the kernel to read the files ahead; where it takes no advice, nothing happens."""
        if hasattr(os, "posix_fadvise"):
            for key in keys:
                _read_ahead(self.files.path(key))
        return NoPrefetch()

    def flush_uses(self) -> None:
        """Write down what was used since the last time; on a full disk that waits for the next time."""
        with suppress(StoreError):
            self._write_uses()

    def close(self) -> None:
        """See :meth:`KVStore.close`."""
        self._recency.close()
        self.flush_uses()
        self.index.close()

    # -- writing, within a transaction of the index ------------------------------------------------

    def _place(self, index: sqlite3.Connection, stored: StoredChunk, temporary: Path) -> None:
        self._evict(index, stored)
        if temporary.exists():  # else it was renamed before the index proved damaged, and this is the second try
            os.replace(temporary, self.files.path(stored.entry.key))
        index_table.insert(index, stored)

    def _evict(self, index: sqlite3.Connection, coming: StoredChunk) -> None:
        if self.budget_bytes is None:
            return
        replaced = index_table.get(index, coming.entry.key)
        total = index_table.total_bytes(index) - (replaced.num_bytes if replaced else 0)
        excess = total + coming.num_bytes - self.budget_bytes
        if excess > 0:
            excess = max(excess, int(self.budget_bytes * _EVICTED_AT_ONCE))
            self._remove(index, index_table.least_valuable(index, excess, time.time(), but=coming.entry.key))

    def _remove(self, index: sqlite3.Connection, keys: Iterable[str]) -> int:
        removed = index_table.remove(index, keys)
        for key in removed:
            self.files.path(key).unlink(missing_ok=True)
            self._verified.pop(key, None)
        return len(removed)

    def _write_uses(self) -> None:
        if not (last_uses_s := self._recency.take()):
            return
        try:
            self.index.write(lambda index: index_table.note_uses(index, last_uses_s))
        except BaseException:
            self._recency.give_back(last_uses_s)
            raise

    def _require_room(self, num_bytes: int) -> None:
        if self.budget_bytes is not None and num_bytes > self.budget_bytes:
            raise StoreFullError(
                f"a chunk takes {num_bytes:,} bytes, the budget of {self.folder} is {self.budget_bytes:,}; raise the "
                "budget or split the text into smaller chunks. Stored chunks are intact"
            )

    # -- reading -----------------------------------------------------------------------------------

    def _verify_once(self, key: str, reader: ChunkFile) -> None:
        """Verify a file that this process has not read, or that has changed since."""
        status = reader.status
        identity = (status.st_ino, status.st_mtime_ns, status.st_size)
        if self._verified.get(key) != identity:
            reader.verify()
            self._verified[key] = identity

    def _chunks_of_files(self) -> Iterator[StoredChunk] | None:
        """What the chunk files say themselves; None where the folder holds none and is not a store."""
        if not self.files.folder.is_dir():
            return None
        return (chunk for path in self.files.files() if (chunk := _described(path)) is not None)


def _described(path: Path) -> StoredChunk | None:
    """None for a file that an index cannot be made from: damaged, gone, or the first release's."""
    try:
        return describe_file(path)
    except (DamagedFileError, FileNotFoundError):
        return None


def _read_ahead(path: Path) -> None:
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(file)
