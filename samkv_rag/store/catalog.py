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
from typing import Any, NamedTuple, TypeVar

from samkv_rag.exceptions import DamagedCatalogWarning, DamagedChunkError, StoreError, StoreFullError
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
_OPTIONS: dict[str, Any] = {"check_same_thread": False, "isolation_level": None, "timeout": 60.0}
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
        self._kept: list[sqlite3.Connection] = []
        self._process = os.getpid()
        self._seen: dict[str, tuple[int, int]] = {}
        """Maps a fingerprint to the last id that was read, and the database's version at that time."""
        self._open()

    # Texts

    def news(self, fingerprint: str) -> list[KnownText]:
        """Return the texts that any process added since the last call for ``fingerprint``."""
        columns = ", ".join(KnownText._fields)

        def read() -> list[Any]:
            connection, (since, version_then) = self._connection, self._seen.get(fingerprint, (0, -1))
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

    def remove(self, keys: Iterable[str]) -> list[str]:
        """Forget chunks, and the sources that refer to them; return the digests of their texts."""
        gone = [(key,) for key in keys]

        def remove(connection: sqlite3.Connection) -> list[str]:
            select = "SELECT digest FROM chunks WHERE key = ?"
            digests = [row[0] for key in gone for row in connection.execute(select, key)]
            connection.executemany("DELETE FROM chunks WHERE key = ?", gone)
            connection.executemany("DELETE FROM sources WHERE key = ?", gone)
            return digests

        return self._write(remove)

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
        """Close the file."""
        with self._lock:
            self._connection.close()

    # SQLite

    def _open(self) -> None:
        try:
            self._connect()
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            self._require_damage(error)
            self._make_again(error)

    def _connect(self) -> None:
        if self._path is None:
            self._connection = _prepared(sqlite3.connect(":memory:", **_OPTIONS))
            return
        is_new = True
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))  # for its owner alone
        except FileExistsError:
            is_new = False
        except OSError as error:
            raise StoreError(f"{self._path} cannot be made: {error.strerror}; the store needs a catalog") from error
        if os.access(self._path, os.W_OK) and os.access(self._path.parent, os.W_OK):
            self._connection = _prepared(sqlite3.connect(self._path, **_OPTIONS))
            if is_new and not self._store.shared:
                self._add_stored()
        else:
            self._connection = sqlite3.connect(f"{self._path.as_uri()}?mode=ro&immutable=1", uri=True, **_OPTIONS)
            self._connection.execute("SELECT 1 FROM chunks LIMIT 1")

    def _add_stored(self) -> None:
        """Add every readable stored chunk. Chunks do not contain their sources."""
        found = []
        for stored in self._store.keys():
            with suppress(DamagedChunkError):
                if chunk := open_chunk(self._store, stored.key):
                    found.append(chunk.identity)
        if found:
            self.add(found)
            logger.info("rebuilt %s from %d chunks", self._path, len(found))

    def _make_again(self, error: Exception) -> None:
        """Put the damaged file aside and rebuild it."""
        assert self._path is not None
        aside = self._path.with_name(f"{self._path.name}.damaged-{time.time_ns()}")
        with suppress(FileNotFoundError):
            os.replace(self._path, aside)
        for suffix in ("-wal", "-shm"):
            with suppress(FileNotFoundError):
                os.unlink(f"{self._path}{suffix}")
        warnings.warn(
            f"{self._path} was damaged ({error}) and is made again from the stored chunks; which documents they came "
            f"from is lost. The damaged file is {aside.name}",
            DamagedCatalogWarning,
            stacklevel=2,
        )
        self._seen = {}
        try:
            self._connect()
        except (sqlite3.Error, UnicodeDecodeError) as again:
            raise self._as_store_error(again) from again

    def _select(self, statement: str, values: Sequence[str]) -> list[Any]:
        return self._run(lambda: self._connection.execute(statement, values).fetchall())

    def _write(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``function`` in one transaction."""

        def write() -> T:
            connection = self._connection
            connection.execute("BEGIN IMMEDIATE")
            try:
                result = function(connection)
            except BaseException:
                connection.rollback()
                raise
            connection.commit()
            return result

        return self._run(write)

    def _run(self, function: Callable[[], T]) -> T:
        with self._lock:
            # A file's connection must not be used or closed across a fork.
            if self._path and os.getpid() != self._process:
                self._kept.append(self._connection)
                self._process, self._seen = os.getpid(), {}
                self._open()
            try:
                return function()
            except sqlite3.ProgrammingError as error:
                raise StoreError(f"the store was closed ({error})") from error
            except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
                self._require_damage(error)
                with suppress(sqlite3.Error):
                    self._connection.close()
                self._make_again(error)
                return function()

    def _require_damage(self, error: Exception) -> None:
        """Raise ``error`` unless it means a damaged file."""
        if self._path is None or not _is_damage(error):
            raise self._as_store_error(error) from error

    def _as_store_error(self, error: Exception) -> StoreError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        place = self._path or "the catalog"
        if code == sqlite3.SQLITE_FULL:
            return StoreFullError(f"no space left for {place}; stored chunks are intact")
        if code == sqlite3.SQLITE_READONLY:
            return StoreError(f"{place} can only be read; chunks cannot be added or removed here")
        return StoreError(f"{place} cannot be used: {error}")


def _prepared(connection: sqlite3.Connection) -> sqlite3.Connection:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version not in (0, _SCHEMA_VERSION):
        raise sqlite3.DatabaseError(f"its schema is {version}, expected {_SCHEMA_VERSION}")
    if version == 0:
        connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT")
    return connection


def _is_damage(error: Exception) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:  # a damaged text, or an error without a code from sqlite3 itself
        return isinstance(error, UnicodeDecodeError) or "schema is" in str(error) or "decode to UTF-8" in str(error)
    return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_SCHEMA)


def _is_sound(columns: Iterable[str], row: Iterable[object]) -> bool:
    """Check the types of a row: a damaged file may have anything in any column."""
    return all(type(value).__name__ == _COLUMNS[name] for name, value in zip(columns, row, strict=True))
