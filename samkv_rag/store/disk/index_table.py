"""The rows of a disk store's index and the questions asked of them, each on a given connection."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from samkv_rag.chunk_cache import Layout
from samkv_rag.store.base import Entry, Origin

_ENTRY = "key, text_digest, prefix, suffix, num_chars, num_tokens, kind"  # see _entry
_NUM_ENTRY_COLUMNS = 7
_COLUMNS = f"{_ENTRY}, fingerprint, num_bytes, created_s, last_use_s"
# The order of StoredChunk.value.
_LEAST_VALUABLE_FIRST = "ORDER BY num_tokens / (num_bytes * (max(:now_s - last_use_s, 0.0) + 1.0)), mark"

Kinds = dict[int, tuple[Layout, Origin]]


@dataclass(frozen=True)
class StoredChunk:
    """A chunk in a disk store; times are seconds since 1970."""

    entry: Entry
    fingerprint: str
    num_bytes: int
    """Of its file."""
    created_s: float
    last_use_s: float

    def value(self, now_s: float) -> float:
        """What a byte of its file is worth: tokens that need not be computed, the less the longer it lay idle.

        Where all chunks take the same bytes a token, this is the order of last use.
        """
        return self.entry.num_tokens / (self.num_bytes * (max(now_s - self.last_use_s, 0.0) + 1.0))


def insert(index: sqlite3.Connection, chunk: StoredChunk) -> None:
    """Add a chunk under a new mark, in place of an older one of its key."""
    index.execute("DELETE FROM chunks WHERE key = ?", (chunk.entry.key,))  # REPLACE would run no trigger
    index.execute(f"INSERT INTO chunks ({_COLUMNS}) VALUES (?{', ?' * 10})", _row(chunk, _kind_of(index, chunk.entry)))


def insert_all(index: sqlite3.Connection, chunks: Iterable[StoredChunk]) -> int:
    """Add chunks and return how many."""
    number = 0
    for chunk in chunks:
        insert(index, chunk)
        number += 1
    return number


def remove(index: sqlite3.Connection, keys: Iterable[str]) -> list[str]:
    """Forget chunks and return the keys of those that were there; readers of their models start over."""
    rows = [index.execute("SELECT key, fingerprint FROM chunks WHERE key = ?", (key,)).fetchone() for key in set(keys)]
    found = [row for row in rows if row is not None]
    if found:
        index.executemany("DELETE FROM chunks WHERE key = ?", [(key,) for key, _ in found])
        seen = index.execute("SELECT seq FROM sqlite_sequence WHERE name = 'chunks'").fetchone()[0]
        models = {(fingerprint, seen) for _, fingerprint in found}
        index.executemany("INSERT OR REPLACE INTO removals VALUES (?, ?)", models)
        # A removal moves the mark too, so that readers notice it.
        index.execute("UPDATE sqlite_sequence SET seq = seq + 1 WHERE name = 'chunks'")
    return [key for key, _ in found]


def changes(index: sqlite3.Connection, fingerprint: str, since: int) -> tuple[list[Entry], int] | None:
    """See :meth:`KVStore.changes`; mark 0 is that of a store into which nothing was ever put."""
    query = "SELECT seq, first_mark FROM sqlite_sequence, store WHERE name = 'chunks'"
    seq, first_mark = index.execute(query).fetchone()
    mark = 0 if seq == first_mark else seq
    if mark == since:
        return [], since
    if since and not max(first_mark, _last_removal(index, fingerprint)) < since < mark:
        return None
    rows = index.execute(f"SELECT {_ENTRY} FROM chunks WHERE fingerprint = ? AND mark > ?", (fingerprint, since))
    kinds = _kinds(index)
    return [_entry(row, kinds) for row in rows], mark


def count(index: sqlite3.Connection) -> int:
    """Number of chunks."""
    return int(index.execute("SELECT count(*) FROM chunks").fetchone()[0])


def total_bytes(index: sqlite3.Connection) -> int:
    """Bytes of all chunk files."""
    return int(index.execute("SELECT num_bytes FROM store").fetchone()[0])


def get(index: sqlite3.Connection, key: str) -> StoredChunk | None:
    """The chunk of ``key``."""
    row = index.execute(f"SELECT {_COLUMNS} FROM chunks WHERE key = ?", (key,)).fetchone()
    return None if row is None else _stored_chunk(row, _kinds(index))


def all_chunks(index: sqlite3.Connection) -> list[StoredChunk]:
    """Every chunk, oldest first."""
    kinds = _kinds(index)
    return [_stored_chunk(row, kinds) for row in index.execute(f"SELECT {_COLUMNS} FROM chunks ORDER BY mark")]


def least_valuable(index: sqlite3.Connection, num_bytes: int, now_s: float, but: str = "") -> list[str]:
    """Keys, ``but`` not among them, whose files take ``num_bytes``: not used for long, cheap to compute again."""
    chosen, freed = [], 0
    query = f"SELECT key, num_bytes FROM chunks WHERE key != :but {_LEAST_VALUABLE_FIRST}"
    rows = index.execute(query, {"now_s": now_s, "but": but})
    while freed < num_bytes and (row := rows.fetchone()):
        chosen.append(row[0])
        freed += row[1]
    return chosen


def note_uses(index: sqlite3.Connection, last_uses_s: dict[str, float]) -> None:
    """Record when chunks were last used."""
    rows = [(last_use_s, key) for key, last_use_s in last_uses_s.items()]
    index.executemany("UPDATE chunks SET last_use_s = max(last_use_s, ?) WHERE key = ?", rows)


def _last_removal(index: sqlite3.Connection, fingerprint: str) -> int:
    row = index.execute("SELECT mark FROM removals WHERE fingerprint = ?", (fingerprint,)).fetchone()
    return -1 if row is None else int(row[0])


def _kind_of(index: sqlite3.Connection, entry: Entry) -> int:
    """The number under which the entry's layout and origin stand, once for all chunks that share them."""
    origin = entry.origin
    kind = (entry.layout.to_json(), origin.namespace, origin.model, origin.model_name)
    index.execute("INSERT OR IGNORE INTO kinds (layout, namespace, model, model_name) VALUES (?, ?, ?, ?)", kind)
    where = "layout = ? AND namespace = ? AND model = ? AND model_name = ?"
    return int(index.execute(f"SELECT id FROM kinds WHERE {where}", kind).fetchone()[0])


def _kinds(index: sqlite3.Connection) -> Kinds:
    rows = index.execute("SELECT id, layout, namespace, model, model_name FROM kinds")
    try:
        return {number: (Layout.from_json(layout), Origin(*origin)) for number, layout, *origin in rows}
    except (ValueError, TypeError) as error:
        raise sqlite3.DatabaseError(f"a row is malformed: {error}") from error


def _row(chunk: StoredChunk, kind: int) -> tuple[Any, ...]:
    entry = chunk.entry
    # Lone surrogates, which a text may hold, are no valid text for SQLite.
    ends = (text.encode("utf-8", "surrogatepass") for text in (entry.prefix, entry.suffix))
    known = (entry.key, entry.text_digest, *ends, entry.num_chars, entry.num_tokens, kind)
    return (*known, chunk.fingerprint, chunk.num_bytes, chunk.created_s, chunk.last_use_s)


def _entry(row: Sequence[Any], kinds: Kinds) -> Entry:
    """The first columns of a row, in the order of ``_ENTRY``.

    Raises:
        sqlite3.DatabaseError: they hold what was never written there.
    """
    key, digest, prefix, suffix, num_chars, num_tokens, kind = row[:_NUM_ENTRY_COLUMNS]
    try:
        begin, end = prefix.decode("utf-8", "surrogatepass"), suffix.decode("utf-8", "surrogatepass")
        return Entry(key, digest, begin, end, int(num_chars), int(num_tokens), *kinds[kind])
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise sqlite3.DatabaseError(f"a row is malformed: {error}") from error


def _stored_chunk(row: Sequence[Any], kinds: Kinds) -> StoredChunk:
    return StoredChunk(_entry(row, kinds), *row[_NUM_ENTRY_COLUMNS:])
