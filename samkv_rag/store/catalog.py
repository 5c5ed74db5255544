"""The catalog of a store on this machine: its texts, and the sources that refer to them.

It is one SQLite file that processes share: beside a disk store, in the user's cache folder for a remote store, in
memory for a store in memory. A lost catalog costs misses only. A damaged one is put aside and rebuilt from the
stored chunks.

Only SQLite opens the file: closing any other descriptor of it would drop this process's locks
(sqlite.org/howtocorrupt.html, section 2.2).
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from samkv_rag.exceptions import DamagedCatalogWarning, DamagedChunkError, StoreError, StoreFullError
from samkv_rag.forking import start_over_in_forks
from samkv_rag.store.base import Store
from samkv_rag.store.codec import ChunkIdentity, open_chunk

logger = logging.getLogger(__name__)
T = TypeVar("T")

_SCHEMA_VERSION = 5
_SCHEMA = """
CREATE TABLE IF NOT EXISTS chunks (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL UNIQUE,
    fingerprint TEXT NOT NULL, digest TEXT NOT NULL,
    num_chars INTEGER NOT NULL, prefix TEXT NOT NULL, suffix TEXT NOT NULL,
    num_tokens INTEGER NOT NULL,
    namespace TEXT NOT NULL, model TEXT NOT NULL, model_name TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS chunks_of ON chunks (fingerprint, id);
CREATE TABLE IF NOT EXISTS sources (
    fingerprint TEXT NOT NULL, source TEXT NOT NULL, key TEXT NOT NULL,
    PRIMARY KEY (fingerprint, source)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS sources_of ON sources (key);
"""
_BUSY_S = 60.0
_FORK_S = 5.0
"""A fork waits so long for another thread's use of the catalog."""
_OPTIONS: dict[str, Any] = {"check_same_thread": False, "isolation_level": None, "timeout": _BUSY_S}
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_SCHEMA)
_COLUMNS = {field.name: field.type for field in fields(ChunkIdentity)}


class KnownText(NamedTuple):
    """The properties of a text by which a prompt is searched for it."""

    digest: str
    num_chars: int
    prefix: str
    suffix: str
    num_tokens: int


class Catalog:
    """The texts and sources of all models that use ``store``. Thread-safe, and safe after a fork."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._path = store.catalog_path
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._file_id: tuple[int, int] | None = None
        """Device and number of the file that the connection has open."""
        self._inherited: list[sqlite3.Connection | None] = []
        self._is_held = False
        """Whether a fork in progress has the lock."""
        self._seen: dict[str, tuple[int, int]] = {}
        """Maps a fingerprint to the last id that was read, and the database's version at that time."""
        self._run(lambda connection: None)
        start_over_in_forks(self)

    def before_fork(self) -> None:
        """Close the connection to a file: SQLite's locks of it would be wrong in the child."""
        self._is_held = self._lock.acquire(timeout=_FORK_S)
        if self._is_held and self._path and self._connection:
            self._connection.close()
            self._connection = None
            self._seen = {fingerprint: (last, -1) for fingerprint, (last, _) in self._seen.items()}

    def after_fork(self) -> None:
        if self._is_held:
            self._lock.release()

    def start_over(self) -> None:
        """In a forked process. A connection that was in use then is left alone; it must not even be closed here."""
        self._lock = threading.RLock()
        if self._path:
            self._inherited.append(self._connection)
            self._connection, self._seen = None, {}

    # Texts

    def news(self, fingerprint: str) -> list[KnownText]:
        """Return the texts that any process added since the last call for ``fingerprint``."""
        columns = ", ".join(KnownText._fields)

        def read(connection: sqlite3.Connection) -> list[Any]:
            since, version_then = self._seen.get(fingerprint, (0, -1))
            version = connection.execute("PRAGMA data_version").fetchone()[0] + connection.total_changes
            if version == version_then:  # nobody, this connection included, has written since
                return []
            select = f"SELECT id, {columns} FROM chunks WHERE fingerprint = ? AND id > ? ORDER BY id"
            rows = connection.execute(select, (fingerprint, since)).fetchall()
            self._seen[fingerprint] = (rows[-1][0] if rows else since, version)
            return rows

        return [KnownText(*row[1:]) for row in self._run(read) if _is_sound(KnownText._fields, row[1:])]

    def add(self, chunks: Iterable[ChunkIdentity]) -> None:
        """Add stored chunks, replacing their old entries."""
        rows = [(chunk.key, *astuple(chunk)) for chunk in chunks]
        columns, places = ", ".join(_COLUMNS), ", ".join("?" * len(_COLUMNS))

        def add(connection: sqlite3.Connection) -> None:
            # A changed row gets a new id: other processes continue from the last id they saw.
            connection.executemany(f"DELETE FROM chunks WHERE key = ? AND ({columns}) IS NOT ({places})", rows)
            connection.executemany(f"INSERT OR IGNORE INTO chunks (key, {columns}) VALUES (?, {places})", rows)

        self._write(add)

    def remove(
        self, keys: Iterable[str], delete: Callable[[set[str]], object] | None = None
    ) -> tuple[set[str], list[str]]:
        """Forget chunks, and the sources that refer to them; return the forgotten keys, and the digests of their texts.

        With ``delete``, chunks that a source refers to by now are spared, and it is called with the keys of the others
        before other processes can go on: who refers to one later finds it gone.
        """
        wanted = set(keys)

        def remove(connection: sqlite3.Connection) -> tuple[set[str], list[str]]:
            def found(select: str, key: str) -> list[str]:
                return [row[0] for row in connection.execute(select, (key,))]

            gone = wanted
            if delete is not None:
                gone = {key for key in wanted if not found("SELECT source FROM sources WHERE key = ? LIMIT 1", key)}
                delete(gone)
            digests = [digest for key in gone for digest in found("SELECT digest FROM chunks WHERE key = ?", key)]
            rows = [(key,) for key in gone]
            connection.executemany("DELETE FROM chunks WHERE key = ?", rows)
            connection.executemany("DELETE FROM sources WHERE key = ?", rows)
            return gone, digests

        return self._write(remove)

    def missing(self, keys: Iterable[str]) -> set[str]:
        """Return those of ``keys`` that are not known."""
        wanted, select = set(keys), "SELECT 1 FROM chunks WHERE key = ?"
        return self._run(lambda connection: {k for k in wanted if not connection.execute(select, (k,)).fetchone()})

    def chunks(self, fingerprint: str | None = None) -> list[ChunkIdentity]:
        """Return the known chunks of one fingerprint, or of all, oldest first."""
        where, values = ("WHERE fingerprint = ?", (fingerprint,)) if fingerprint else ("", ())
        rows = self._select(f"SELECT {', '.join(_COLUMNS)} FROM chunks {where} ORDER BY id", values)
        return [ChunkIdentity(*row) for row in rows if _is_sound(_COLUMNS, row)]

    # Sources

    def refer(self, fingerprint: str, sources: Mapping[str, str]) -> set[str]:
        """Record the chunk key of each source; return the keys that have lost their last source."""
        rows = [(fingerprint, source, key) for source, key in sources.items()]
        return self._change("INSERT OR REPLACE INTO sources VALUES (?, ?, ?)", rows)

    def release(self, fingerprint: str, sources: Iterable[str]) -> set[str]:
        """Forget sources; return the keys that have lost their last source."""
        rows = [(fingerprint, source) for source in sources]
        return self._change("DELETE FROM sources WHERE fingerprint = ? AND source = ?", rows)

    def _change(self, statement: str, rows: Sequence[tuple[str, ...]]) -> set[str]:
        """Run ``statement`` for rows that start with fingerprint and source; return the keys without a source left."""

        def change(connection: sqlite3.Connection) -> set[str]:
            select = "SELECT key FROM sources WHERE fingerprint = ? AND source = ?"
            before = {found[0] for row in rows for found in connection.execute(select, row[:2])}
            connection.executemany(statement, rows)
            select = "SELECT 1 FROM sources WHERE key = ? LIMIT 1"
            return {key for key in before if connection.execute(select, (key,)).fetchone() is None}

        return self._write(change)

    def sources(self, fingerprint: str) -> dict[str, str]:
        """Return the chunk key of every source of a fingerprint."""
        rows = self._select("SELECT source, key FROM sources WHERE fingerprint = ?", (fingerprint,))
        return {source: key for source, key in rows if isinstance(source, str)}

    def close(self) -> None:
        with self._lock:
            if self._connection:
                self._connection.close()

    # SQLite

    def _current(self) -> sqlite3.Connection | None:
        """Return the open connection, or None if there is none or its file was replaced or deleted meanwhile."""
        if self._connection and self._path and self._file_id not in (None, _file_id(self._path)):
            self._connection.close()
            self._connection, self._seen = None, {}
        return self._connection

    def _connect(self) -> sqlite3.Connection:
        if self._path is None:
            self._connection = sqlite3.connect(":memory:", **_OPTIONS)
            _prepare(self._connection)
            return self._connection
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._path.touch(0o600, exist_ok=False)  # for its owner alone
        except FileExistsError:
            pass
        except OSError as error:
            raise StoreError(f"{self._path} cannot be made: {error.strerror}; the store needs a catalog") from error
        if _is_writable(self._path):
            self._file_id = _file_id(self._path)
            self._connection = sqlite3.connect(self._path, **_OPTIONS)
            if _prepare(self._connection):
                if not self._store.shared:
                    self._add_stored()
                # Last: whoever opens what was interrupted begins again.
                self._connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        else:
            self._connection = _read_only(self._path)
        return self._connection

    def _add_stored(self) -> None:
        """Add every readable stored chunk. Chunks do not contain their sources."""
        found = []
        for stored in self._store.keys():
            with suppress(DamagedChunkError):
                if chunk := open_chunk(self._store, stored.key, is_use=False):
                    found.append(chunk.identity)
        if found:
            self.add(found)
            logger.info("rebuilt %s from %d chunks", self._path, len(found))

    def _put_aside(self, path: Path, error: Exception) -> None:
        """Rename the damaged file, so that the next connection makes a new one."""
        if self._connection:
            with suppress(sqlite3.Error):
                self._connection.close()
        self._connection, self._seen = None, {}
        if _file_id(path) != self._file_id:  # another process has put it aside; its new file is sound
            return
        aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
        try:
            with suppress(FileNotFoundError):
                path.replace(aside)
            for suffix in ("-wal", "-shm"):
                Path(f"{path}{suffix}").unlink(missing_ok=True)
        except OSError as refused:
            reason = f"{path} is damaged ({error}) and cannot be put aside: {refused.strerror}"
            raise StoreError(f"{reason}; delete it, and it is made again") from refused
        warnings.warn(
            f"{path} was damaged ({error}) and is made again from the stored chunks; which documents they came from is "
            f"lost. The damaged file is {aside.name}",
            DamagedCatalogWarning,
            stacklevel=2,
        )

    def _select(self, statement: str, values: Sequence[str]) -> list[Any]:
        return self._run(lambda connection: connection.execute(statement, values).fetchall())

    def _write(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``function`` in one transaction."""

        def write(connection: sqlite3.Connection) -> T:
            with connection:  # commits, or rolls back after an error
                connection.execute("BEGIN IMMEDIATE")
                return function(connection)

        return self._run(write)

    def _run(self, function: Callable[[sqlite3.Connection], T], is_again: bool = False) -> T:
        """Return ``function(connection)``. If the file proves damaged, make another and run the function again."""
        with self._lock:
            try:
                return function(self._current() or self._connect())
            except sqlite3.ProgrammingError as error:
                raise StoreError(f"the store was closed ({error})") from error
            except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
                if is_again or self._path is None or _code(error) not in _DAMAGE or not _is_writable(self._path):
                    raise self._as_store_error(error) from error
                self._put_aside(self._path, error)
                return self._run(function, is_again=True)

    def _as_store_error(self, error: Exception) -> StoreError:
        place = self._path or "the catalog"
        if _code(error) == sqlite3.SQLITE_FULL:
            return StoreFullError(f"no space left for {place}; stored chunks are intact")
        if _code(error) == sqlite3.SQLITE_READONLY:
            return StoreError(f"{place} can only be read; chunks cannot be added or removed here")
        return StoreError(f"{place} cannot be used: {error}")


def _is_writable(path: Path) -> bool:
    return os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)


def _read_only(path: Path) -> sqlite3.Connection:
    """Open a file in a folder that can only be read."""
    # "immutable" does not read a writer's log, but needs no files beside the database.
    for options in ("mode=ro", "mode=ro&immutable=1"):
        address = f"{path.absolute().as_uri()}?{options}"
        connection: sqlite3.Connection = sqlite3.connect(address, uri=True, **_OPTIONS)
        with suppress(sqlite3.OperationalError):
            connection.execute("SELECT 1 FROM chunks LIMIT 1")
            return connection
        connection.close()
    raise StoreError(f"{path} cannot be read, and its folder is read-only; open it once where it can be written")


def _prepare(connection: sqlite3.Connection) -> bool:
    """Make the tables if they are missing, and return whether the file is new."""
    until = time.monotonic() + _BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:  # SQLite does not wait here
            if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.01)
    connection.execute("PRAGMA synchronous = NORMAL")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version not in (0, _SCHEMA_VERSION):
        raise sqlite3.DatabaseError(f"its schema is {version}, expected {_SCHEMA_VERSION}")
    if version == 0:
        connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT")
    return bool(version == 0)


def _file_id(path: Path) -> tuple[int, int] | None:
    with suppress(OSError):
        found = os.stat(path)
        return found.st_dev, found.st_ino
    return None


def _code(error: Exception) -> int:
    """Return SQLite's primary error code. Errors without one are those of damaged texts and of other schemas."""
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
    return code & 0xFF


def _is_sound(columns: Iterable[str], row: Iterable[object]) -> bool:
    """Check the types of a row: a damaged file may have anything in any column."""
    return all(type(value).__name__ == _COLUMNS[name] for name, value in zip(columns, row, strict=True))
