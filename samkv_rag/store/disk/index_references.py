"""Which source refers to which chunk: one table, in the SQLite connection of the store that owns it.

The functions run inside the owner's transaction, so that a chunk and its last reference go together.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping

SCHEMA = """
CREATE TABLE IF NOT EXISTS chunk_references (
    fingerprint TEXT NOT NULL,
    source TEXT NOT NULL,
    key TEXT NOT NULL,
    PRIMARY KEY (fingerprint, source)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS chunk_references_by_key ON chunk_references (key);
"""


def read(index: sqlite3.Connection, fingerprint: str) -> dict[str, str]:
    """Every source of a model and the chunk key that it refers to."""
    rows = index.execute("SELECT source, key FROM chunk_references WHERE fingerprint = ?", (fingerprint,))
    return {_text(source): key for source, key in rows}


def point(index: sqlite3.Connection, fingerprint: str, references: Mapping[str, str]) -> set[str]:
    """Point sources at chunk keys; return the keys that thereby lost their last reference."""
    before = _take(index, fingerprint, references)
    rows = [(fingerprint, _bound(source), key) for source, key in references.items()]
    index.executemany("INSERT INTO chunk_references (fingerprint, source, key) VALUES (?, ?, ?)", rows)
    return _unreferred(index, before)


def drop(index: sqlite3.Connection, fingerprint: str, sources: Iterable[str]) -> set[str]:
    """Forget sources; return the keys that thereby lost their last reference."""
    return _unreferred(index, _take(index, fingerprint, sources))


def drop_keys(index: sqlite3.Connection, keys: Iterable[str]) -> None:
    """Forget every source that refers to one of ``keys``."""
    index.executemany("DELETE FROM chunk_references WHERE key = ?", [(key,) for key in keys])


def _take(index: sqlite3.Connection, fingerprint: str, sources: Iterable[str]) -> set[str]:
    """Delete the rows of ``sources`` and return the keys that stood there."""
    wanted = [(fingerprint, _bound(source)) for source in sources]
    where = "WHERE fingerprint = ? AND source = ?"
    found = [index.execute(f"SELECT key FROM chunk_references {where}", one).fetchone() for one in wanted]
    index.executemany(f"DELETE FROM chunk_references {where}", wanted)
    return {row[0] for row in found if row is not None}


def _unreferred(index: sqlite3.Connection, keys: Iterable[str]) -> set[str]:
    query = "SELECT 1 FROM chunk_references WHERE key = ? LIMIT 1"
    return {key for key in keys if index.execute(query, (key,)).fetchone() is None}


def _bound(source: str) -> str | bytes:
    """As SQLite takes it: lone surrogates, as in paths that are no valid text, are no text to it either."""
    try:
        source.encode()
    except UnicodeEncodeError:
        return source.encode("utf-8", "surrogatepass")
    return source


def _text(source: str | bytes) -> str:
    return source if isinstance(source, str) else source.decode("utf-8", "surrogatepass")
