"""A store in a folder: one safetensors file a chunk, and an SQLite index of what is there.

    FOLDER/index.sqlite          entries and references; WAL mode, so that many processes share it
    FOLDER/chunks/ab/abcd….safetensors

A file is written under a temporary name and renamed, then indexed: what the index names is whole.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from samkv_rag.chunk_cache import ChunkCache, ChunkReader, Layout
from samkv_rag.exceptions import DamagedChunkWarning, StoreFormatError, StoreFullError
from samkv_rag.store import references as reference_table
from samkv_rag.store.base import Entry, KVStore
from samkv_rag.store.chunk_file import ChunkFile, DamagedFileError, write_chunk_file

SCHEMA_VERSION = 1

_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS chunks (
    mark INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT UNIQUE NOT NULL,
    fingerprint TEXT NOT NULL,
    text_digest TEXT NOT NULL,
    prefix TEXT NOT NULL,
    suffix TEXT NOT NULL,
    num_chars INTEGER NOT NULL,
    num_tokens INTEGER NOT NULL,
    layout TEXT NOT NULL,
    num_bytes INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS last_removal (id INTEGER PRIMARY KEY CHECK (id = 1), mark INTEGER NOT NULL);
{reference_table.SCHEMA}
PRAGMA user_version = {SCHEMA_VERSION};
"""
_COLUMNS = "key, text_digest, prefix, suffix, num_chars, num_tokens, layout"


class DiskStore(KVStore):
    """Keeps chunk caches in a folder that outlives the process.

    Raises:
        StoreFormatError: the folder's index is not one, or of another schema version.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._chunks = self.folder / "chunks"
        self._lock = threading.RLock()
        self._verified: set[str] = set()
        with _disk_errors(self.folder):
            self._chunks.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._index = self._open_index()

    def put(self, entry: Entry, cache: ChunkCache) -> None:
        """See :meth:`KVStore.put`."""
        path = self._path(entry.key)
        with _disk_errors(self.folder):
            path.parent.mkdir(exist_ok=True, mode=0o700)
            num_bytes = write_chunk_file(path, cache, entry.text_digest)
            self._insert(entry, cache.fingerprint, num_bytes)
        self._verified.discard(entry.key)

    def open(self, key: str, fingerprint: str) -> ChunkReader | None:
        """See :meth:`KVStore.open`; a file's checksums are verified when a process first reads it."""
        path = self._path(key)
        try:
            reader = ChunkFile(path, fingerprint)
            if key not in self._verified:
                reader.verify()
                self._verified.add(key)
            return reader
        except FileNotFoundError:
            return None
        except DamagedFileError as error:
            warnings.warn(f"{path.name}: {error}; computed again", DamagedChunkWarning, stacklevel=2)
            return None

    def remove(self, keys: Iterable[str]) -> int:
        """See :meth:`KVStore.remove`; the index forgets a chunk before its file goes."""
        gone = set(keys)
        with self._writing() as index:
            reference_table.drop_keys(index, gone)
            return self._remove(index, gone)

    def refer(self, fingerprint: str, references: Mapping[str, str]) -> int:
        """See :meth:`KVStore.refer`."""
        with self._writing() as index:
            return self._remove(index, reference_table.point(index, fingerprint, references))

    def release(self, fingerprint: str, sources: Iterable[str]) -> int:
        """See :meth:`KVStore.release`."""
        with self._writing() as index:
            return self._remove(index, reference_table.drop(index, fingerprint, sources))

    def references(self, fingerprint: str) -> dict[str, str]:
        """See :meth:`KVStore.references`."""
        with self._lock:
            return reference_table.read(self._index, fingerprint)

    def changes(self, fingerprint: str, since: int) -> tuple[list[Entry], int] | None:
        """See :meth:`KVStore.changes`."""
        with self._lock:
            mark = self._scalar("SELECT seq FROM sqlite_sequence WHERE name = 'chunks'")
            if mark == since:
                return [], since
            if 0 < since <= self._scalar("SELECT mark FROM last_removal", default=-1):
                return None
            query = f"SELECT {_COLUMNS} FROM chunks WHERE fingerprint = ? AND mark > ?"
            rows = self._index.execute(query, (fingerprint, since))
            return [_entry(row) for row in rows], mark

    def nbytes(self) -> int:
        """See :meth:`KVStore.nbytes`."""
        with self._lock:
            return self._scalar("SELECT sum(num_bytes) FROM chunks")

    def prefetch(self, keys: Iterable[str]) -> None:
        """Ask the kernel to read the files ahead; where it takes no advice, nothing happens."""
        if not hasattr(os, "posix_fadvise"):
            return
        for key in keys:
            try:
                file = os.open(self._path(key), os.O_RDONLY)
            except OSError:
                continue
            try:
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(file)

    def close(self) -> None:
        """See :meth:`KVStore.close`."""
        with self._lock:
            self._index.close()

    def _path(self, key: str) -> Path:
        return self._chunks / key[:2] / f"{key}.safetensors"

    def _open_index(self) -> sqlite3.Connection:
        path = self.folder / "index.sqlite"
        try:
            index = sqlite3.connect(path, timeout=30, check_same_thread=False)
            version = index.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, SCHEMA_VERSION):
                raise StoreFormatError(
                    f"{path} has schema version {version}, this release reads {SCHEMA_VERSION}; "
                    "use another folder or the release that wrote it"
                )
            index.execute("PRAGMA journal_mode = WAL")
            index.execute("PRAGMA synchronous = NORMAL")
            index.executescript(_SCHEMA)
            os.chmod(path, 0o600)
            return index
        except sqlite3.DatabaseError as error:
            raise StoreFormatError(f"{path} is not a samkv_rag index ({error}); use another folder") from error

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that no other writer, thread or process, comes between."""
        with _disk_errors(self.folder), self._lock, self._index as index:
            index.execute("BEGIN IMMEDIATE")
            yield index

    def _remove(self, index: sqlite3.Connection, keys: Iterable[str]) -> int:
        removed = 0
        for key in keys:
            removed += index.execute("DELETE FROM chunks WHERE key = ?", (key,)).rowcount
            self._path(key).unlink(missing_ok=True)
            self._verified.discard(key)
        if removed:
            index.execute("INSERT OR REPLACE INTO last_removal SELECT 1, max(seq) FROM sqlite_sequence")
            # A removal moves the mark too, so that readers notice it.
            index.execute("UPDATE sqlite_sequence SET seq = seq + 1 WHERE name = 'chunks'")
        return removed

    def _insert(self, entry: Entry, fingerprint: str, num_bytes: int) -> None:
        known = (entry.key, entry.text_digest, entry.prefix, entry.suffix, entry.num_chars, entry.num_tokens)
        row = (*known, entry.layout.to_json(), fingerprint, num_bytes)
        with self._lock, self._index as index:
            index.execute(
                f"INSERT OR REPLACE INTO chunks ({_COLUMNS}, fingerprint, num_bytes) VALUES (?{', ?' * 8})", row
            )

    def _scalar(self, query: str, default: int = 0) -> int:
        row = self._index.execute(query).fetchone()
        return int(row[0]) if row is not None and row[0] is not None else default


def _entry(row: Sequence[Any]) -> Entry:
    """An index row in the order of ``_COLUMNS``."""
    *known, layout = row
    return Entry(*known, Layout.from_json(layout))  # type: ignore[call-arg]


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Map the disk's errors to ours, where they can be told apart."""
    try:
        yield
    except (NotADirectoryError, FileExistsError, PermissionError) as error:
        raise StoreFormatError(f"{folder} cannot hold a store ({error.strerror}); use another folder") from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StoreFullError(
            f"the disk under {folder} is full; free some space or prune the store. Stored chunks are intact"
        ) from error
    except sqlite3.OperationalError as error:
        if "full" not in str(error):
            raise
        raise StoreFullError(f"the disk under {folder} is full; free some space or prune the store") from error
