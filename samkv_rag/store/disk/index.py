"""The index of a disk store: which chunks there are, without opening their files.

It knows nothing that the files do not say themselves, save when chunks were last used and what refers to
them. So where it is lost or damaged it is made again from them, with what references can still be read,
and processes that have the old one open change over. A lost reference only keeps its chunk from being
deleted with its source, until the source is ingested again.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
import warnings
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from samkv_rag.exceptions import DamagedIndexWarning, StoreFormatError
from samkv_rag.store.disk import index_references, index_table
from samkv_rag.store.disk.errors import disk_errors
from samkv_rag.store.disk.index_schema import (
    SCHEMA_VERSION,
    connect,
    connect_reading,
    create_tables,
    has_room,
    migrate_from_1,
    run_script,
    schema_version,
)
from samkv_rag.store.disk.index_table import StoredChunk

INDEX_NAME = "index.sqlite"
_LOCK_NAME = "index.lock"
_ASIDE_NAME = "index.aside.sqlite"
_COMPANIONS = ("", "-wal", "-shm")

Result = TypeVar("Result")
Reference = tuple[str, str, str]
"""Fingerprint, source and chunk key."""
Operation = Callable[[sqlite3.Connection], Result]


class DiskIndex:
    """An SQLite file in WAL mode, shared by threads (one at a time) and processes.

    ``stored_chunks`` lists what the files hold; None from it means that the folder is no store, so that a
    foreign file in the index's place is not written over.

    Raises:
        StoreFormatError: the file is of a newer schema version or another program's.
    """

    def __init__(self, folder: Path, stored_chunks: Callable[[], Iterable[StoredChunk] | None]) -> None:
        self.path = folder / INDEX_NAME
        self._aside = folder / _ASIDE_NAME
        self._lock_path = folder / _LOCK_NAME
        self._stored_chunks = stored_chunks
        self._lock = threading.RLock()
        self._rescued: list[Reference] = []
        self._announced = False
        self._only_reads = False
        """Opened on a full disk; it is opened again as soon as there is room."""
        self._connection = self._open()
        self._identity = _identity(self.path)

    def read(self, operation: Operation[Result]) -> Result:
        """Run ``operation`` on the connection; where the index proves damaged, once more on a new one."""
        return self._run(operation)

    def write(self, operation: Operation[Result]) -> Result:
        """Like :meth:`read`, in a transaction that no other writer's overlaps.

        It runs again where another process discarded the index meanwhile.
        """
        return self._run(lambda index: _in_transaction(index, operation), writes=True)

    def rebuild(self) -> int:
        """Make the index again from the files and return how many chunks it holds."""
        with self._lock:
            self._announced = True
            self._reopen(discard=True)
            return self.read(index_table.count)

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._connection.close()

    def _run(self, operation: Operation[Result], writes: bool = False) -> Result:
        with self._lock, disk_errors(self.path.parent):
            if self._only_reads and has_room(self.path.parent):
                self._reopen()
            if self._only_reads and writes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if self._identity != _identity(self.path):  # lost, made again by another process, or we are its fork
                self._reopen()
            try:
                result = operation(self._connection)
            except _ERRORS as error:
                if not _is_damage(error) or self._only_reads:
                    raise
                self._reopen(discard=True, reason=str(error))
                result = operation(self._connection)
            if writes and self._identity != _identity(self.path):
                # Who made it again meanwhile may have read the old one before this was in it.
                return self._run(operation, writes)
            return result

    def _reopen(self, discard: bool = False, reason: str | None = None) -> None:
        """Open the file that is there now; ``discard`` throws away the one that was open, if it still is there."""
        if self._identity is not None and self._identity[0] == os.getpid():  # else the connection is our parent's
            with suppress(sqlite3.Error):
                self._connection.close()
        with self._opening():
            if discard and self._identity == _identity(self.path):
                self._discard(reason)
            self._connection = self._repaired()
            self._identity = _identity(self.path)

    def _open(self) -> sqlite3.Connection:
        with self._opening():
            return self._repaired()

    def _repaired(self) -> sqlite3.Connection:
        """The file, or one made again where it is damaged."""
        try:
            return self._opened()
        except _ERRORS as error:
            if not _is_damage(error) or self._only_reads:
                raise
            if self._stored_chunks() is None:
                raise StoreFormatError(f"{self.path} is not a samkv_rag index ({error}); use another folder") from error
            self._discard(str(error))
            return self._opened()

    def _opening(self) -> FileLock:
        """Opening processes take turns, so that none opens what another is about to discard."""
        return FileLock(self._lock_path, mode=0o600)

    def _discard(self, reason: str | None) -> None:
        if reason is not None:
            _warn(f"{self.path} is damaged ({reason}); it is made again from the chunk files")
            self._announced = True
        if self.path.exists():  # else what was put aside may be there still, by a process killed since
            self._put_aside()
        self._rescued = _rescue_references(self._aside) or self._rescued
        _delete(self._aside)
        _delete(self.path)

    def _put_aside(self) -> None:
        """Whoever has it open sees from now on that it is gone: what is committed later is written again."""
        _delete(self._aside)
        for suffix in _COMPANIONS:
            with suppress(FileNotFoundError):
                os.replace(f"{self.path}{suffix}", f"{self._aside}{suffix}")

    def _opened(self) -> sqlite3.Connection:
        if not self.path.exists():  # SQLite would take a lost index's -wal for the new one's
            self._discard(reason=None)
        index = self._connected()
        try:
            if schema_version(index, self.path) != SCHEMA_VERSION:
                _in_transaction(index, self._bring_up_to_date)
            run_script(index, index_references.SCHEMA)  # the first release's indexes lack them
            return index
        except BaseException:
            index.close()
            raise

    def _connected(self) -> sqlite3.Connection:
        self._only_reads = False
        try:
            return connect(self.path)
        except sqlite3.OperationalError as error:
            if _is_damage(error) or has_room(self.path.parent):
                raise
            self._only_reads = True
            return connect_reading(self.path)

    def _bring_up_to_date(self, index: sqlite3.Connection) -> None:
        version = schema_version(index, self.path)
        if version == 1:
            migrate_from_1(index)
        elif version == 0:
            create_tables(index)
            run_script(index, index_references.SCHEMA)
            index.executemany("INSERT OR IGNORE INTO chunk_references VALUES (?, ?, ?)", self._rescued)
            num_chunks = index_table.insert_all(index, self._stored_chunks() or ())
            if num_chunks and not self._announced:
                _warn(f"{self.path} was made again from {num_chunks} chunk files")
            self._rescued, self._announced = [], False


def _delete(path: Path) -> None:
    for suffix in _COMPANIONS:
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def _rescue_references(path: Path) -> list[Reference]:
    """What can still be read of the one thing that the chunk files do not say."""
    rescued: list[Reference] = []
    if path.exists():
        with suppress(sqlite3.Error, UnicodeDecodeError), closing(sqlite3.connect(path)) as index:
            rescued.extend(index.execute("SELECT fingerprint, source, key FROM chunk_references"))
    return rescued


def _in_transaction(index: sqlite3.Connection, operation: Operation[Result]) -> Result:
    index.execute("BEGIN IMMEDIATE")
    try:
        result = operation(index)
        index.execute("COMMIT")
        return result
    except BaseException:
        with suppress(sqlite3.Error):  # some errors have ended the transaction already
            index.execute("ROLLBACK")
        raise


# SQLite quotes a damaged schema in its message, which then is no text.
_ERRORS = (sqlite3.DatabaseError, UnicodeDecodeError)
_DAMAGE = ("malformed", "not a database", "no such table", "no such column", "Could not decode")


def _is_damage(error: sqlite3.DatabaseError | UnicodeDecodeError) -> bool:
    return isinstance(error, UnicodeDecodeError) or any(words in str(error) for words in _DAMAGE)


def _identity(path: Path) -> tuple[int, ...] | None:
    """Which file it is, and whose connection: SQLite must not be carried over a fork."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return os.getpid(), status.st_dev, status.st_ino


def _warn(message: str) -> None:
    warnings.warn(message, DamagedIndexWarning, stacklevel=2)
