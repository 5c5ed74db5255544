"""The SQLite file behind a disk store's index: its tables, its versions, how it is opened."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from samkv_rag.exceptions import StoreFormatError

SCHEMA_VERSION = 2
BUSY_TIMEOUT_S = 30.0
_COMPANION_BYTES = 64 * 1024

# AUTOINCREMENT: a mark is never given twice, so readers can ask for what came after one.
_SCHEMA = """
CREATE TABLE chunks (
    mark INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT UNIQUE NOT NULL,
    text_digest TEXT NOT NULL,
    prefix BLOB NOT NULL,
    suffix BLOB NOT NULL,
    num_chars INTEGER NOT NULL,
    num_tokens INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    fingerprint TEXT NOT NULL,
    num_bytes INTEGER NOT NULL,
    created_s REAL NOT NULL,
    last_use_s REAL NOT NULL
);
"""
_BOOKKEEPING = """
CREATE TABLE kinds (
    id INTEGER PRIMARY KEY,
    layout TEXT NOT NULL,
    namespace TEXT NOT NULL,
    model TEXT NOT NULL,
    model_name TEXT NOT NULL,
    UNIQUE (layout, namespace, model, model_name)
);
CREATE INDEX chunks_of_fingerprint ON chunks (fingerprint, mark);
CREATE TABLE removals (fingerprint TEXT PRIMARY KEY, mark INTEGER NOT NULL);
CREATE TABLE store (schema_version INTEGER NOT NULL, first_mark INTEGER NOT NULL, num_bytes INTEGER NOT NULL);
CREATE TRIGGER chunk_added AFTER INSERT ON chunks BEGIN
    UPDATE store SET num_bytes = num_bytes + new.num_bytes;
END;
CREATE TRIGGER chunk_removed AFTER DELETE ON chunks BEGIN
    UPDATE store SET num_bytes = num_bytes - old.num_bytes;
END;
"""
# Version 1 knew no namespaces and no times, and one mark of the last removal for all models.
_FROM_VERSION_1 = f"""
ALTER TABLE chunks RENAME TO chunks_of_version_1;
{_SCHEMA}
{_BOOKKEEPING}
INSERT INTO kinds (layout, namespace, model, model_name)
    SELECT DISTINCT layout, '', fingerprint, '' FROM chunks_of_version_1;
INSERT INTO store SELECT {SCHEMA_VERSION}, 0, 0;
INSERT INTO chunks SELECT old.mark, key, text_digest, CAST(prefix AS BLOB), CAST(suffix AS BLOB), num_chars, num_tokens,
    kinds.id, fingerprint, num_bytes, {{now_s}}, {{now_s}}
    FROM chunks_of_version_1 AS old JOIN kinds ON kinds.layout = old.layout AND kinds.model = old.fingerprint;
DROP TABLE chunks_of_version_1;
DROP TABLE last_removal;
"""


def connect(path: Path) -> sqlite3.Connection:
    """Open the file, private to its owner, and set how it is shared.

    Raises:
        sqlite3.DatabaseError: not a database, or a damaged one.
    """
    # SQLite gives its -wal and -shm files the mode of the database file. One that is there is opened through SQLite
    # alone: to close any other descriptor of it would drop the locks that this process holds on it.
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    index = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        index.execute("PRAGMA journal_mode = WAL")
        index.execute("PRAGMA synchronous = NORMAL")
        return index
    except BaseException:
        index.close()
        raise


def connect_reading(path: Path) -> sqlite3.Connection:
    """Open the file as it is, without the companions that a full disk has no room for.

    What processes that wrote last did not yet move into it is not seen; that is a miss or two, no error.
    """
    return sqlite3.connect(f"{path.resolve().as_uri()}?immutable=1", uri=True, check_same_thread=False)


def has_room(folder: Path) -> bool:
    """Whether the disk under ``folder`` takes what SQLite's companion files need; a quota counts too."""
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            return file.write(bytes(_COMPANION_BYTES)) == _COMPANION_BYTES
    except OSError:
        return False


def schema_version(index: sqlite3.Connection, path: Path) -> int:
    """The version of what is there; 0 where nothing is yet.

    Raises:
        StoreFormatError: a newer release's, or another program's database.
        sqlite3.DatabaseError: the database is damaged.
    """
    version = int(index.execute("PRAGMA user_version").fetchone()[0])
    tables = {name for (name,) in index.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if version == 0 and tables and "chunks" not in tables:
        raise StoreFormatError(f"{path} is another program's database; use another folder")
    if version != _recorded_version(index, tables, otherwise=version):
        raise sqlite3.DatabaseError("its header is malformed")
    if version > SCHEMA_VERSION:
        raise StoreFormatError(
            f"{path} has schema version {version}, this release reads {SCHEMA_VERSION}; "
            "use another folder or the release that wrote it"
        )
    return version


def _recorded_version(index: sqlite3.Connection, tables: set[str], otherwise: int) -> int:
    """The version as a table has it too, to tell a newer release from a damaged header."""
    if "store" in tables:
        return int(index.execute("SELECT schema_version FROM store").fetchone()[0])
    return otherwise if otherwise == 1 or not tables else -1


def create_tables(index: sqlite3.Connection) -> None:
    """Make an empty index; its marks are higher than those of one it may stand in for."""
    run_script(index, _SCHEMA + _BOOKKEEPING)
    first_mark = time.time_ns() // 1000
    index.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('chunks', ?)", (first_mark,))
    index.execute("INSERT INTO store VALUES (?, ?, 0)", (SCHEMA_VERSION, first_mark))
    index.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def migrate_from_1(index: sqlite3.Connection) -> None:
    """Bring an index of the first release to this one's schema; readers will read it again."""
    seq = index.execute("SELECT seq FROM sqlite_sequence WHERE name = 'chunks'").fetchone()
    mark = seq[0] if seq else 0
    run_script(index, _FROM_VERSION_1.replace("{now_s}", str(time.time())))
    index.execute("DELETE FROM sqlite_sequence")
    index.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('chunks', ?)", (mark + 1,))
    index.execute("INSERT INTO removals SELECT DISTINCT fingerprint, ? FROM chunks", (mark,))
    index.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def run_script(index: sqlite3.Connection, script: str) -> None:
    """Run statements one by one: ``executescript`` would commit the transaction they belong to."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            index.execute(statement)
            statement = ""
