"""Passages of files and their vectors, in one SQLite file.

    files     path, digest           what was read, and the hash of its bytes then
    places    path, number, page, digest of the passage that stands there
    passages  digest, text, num_tokens, vectors float32 [windows, dimensions], or NULL while not embedded

A text that stands in several places is one passage. Search is exact: a product with all vectors. All of it can
be made again from the files, so a damaged index is discarded.
"""

from __future__ import annotations

import sqlite3
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from samkv_rag.ask.nearest import Vectors, as_bytes, nearest
from samkv_rag.documents import Chunk
from samkv_rag.exceptions import DamagedIndexWarning, StoreError, StoreFormatError, StoreFullError
from samkv_rag.prompt.recognition import text_digest

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE files (path TEXT PRIMARY KEY, digest TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE places (
    path TEXT NOT NULL, number INTEGER NOT NULL, page INTEGER, digest TEXT NOT NULL, PRIMARY KEY (path, number)
) WITHOUT ROWID;
CREATE INDEX places_by_digest ON places (digest);
CREATE TABLE passages (digest TEXT PRIMARY KEY, text TEXT NOT NULL, num_tokens INTEGER NOT NULL, vectors BLOB);
"""
_TIMEOUT_S = 60.0  # how long to wait while another process writes
_DAMAGE = ("malformed", "not a database", "no such table", "no such column", "no column named", "decode")
_PASSAGES = "SELECT digest, text, num_tokens, path, page FROM places JOIN passages USING (digest)"
_IN_ORDER = "ORDER BY path, number"


class DamagedIndexError(StoreFormatError):
    """The index is not what was written; discarded, it is made again from the files."""


@dataclass(frozen=True)
class Place:
    """Where a passage stands."""

    path: str
    page: int | None = None


@dataclass(frozen=True)
class StoredPassage:
    """A passage and every place it stands in."""

    text: str
    num_tokens: int
    places: tuple[Place, ...]


class PassageIndex:
    """An SQLite file, made where absent; processes may share it.

    Every method raises DamagedIndexError where the file is damaged, StoreFullError where the disk is full, and
    StoreError where SQLite cannot work for another reason.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._errors():
            path.touch(mode=0o600)  # it holds the documents' text
            self._db = sqlite3.connect(path, timeout=_TIMEOUT_S, isolation_level=None)
            try:
                self._create_tables()
            except BaseException:
                self._db.close()
                raise

    # -- what stands where -------------------------------------------------------------------------

    def digests(self) -> dict[str, str]:
        """Every file's path and the digest of what was read of it."""
        with self._errors():
            return dict(self._db.execute("SELECT path, digest FROM files").fetchall())

    def replace(self, path: str, digest: str, chunks: Iterable[tuple[Chunk, int]]) -> None:
        """Put a file's chunks, each with its number of tokens, in the place of those it had."""
        rows = [(text_digest(chunk.text), chunk, num_tokens) for chunk, num_tokens in chunks]
        places = [(path, number, chunk.page, key) for number, (key, chunk, _) in enumerate(rows)]
        passages = [(key, chunk.text, num_tokens) for key, chunk, num_tokens in rows]
        with self._transaction() as db:
            db.execute("DELETE FROM places WHERE path = ?", (path,))
            db.execute("INSERT OR REPLACE INTO files VALUES (?, ?)", (path, digest))
            db.executemany("INSERT INTO places VALUES (?, ?, ?, ?)", places)
            db.executemany("INSERT OR IGNORE INTO passages (digest, text, num_tokens) VALUES (?, ?, ?)", passages)

    def keep_only(self, paths: Iterable[str]) -> None:
        """Forget all other files, and the passages that stand nowhere any more."""
        gone = [(path,) for path in self.digests().keys() - set(paths)]
        with self._transaction() as db:
            db.executemany("DELETE FROM places WHERE path = ?", gone)
            db.executemany("DELETE FROM files WHERE path = ?", gone)
            db.execute("DELETE FROM passages WHERE digest NOT IN (SELECT digest FROM places)")

    def passages(self) -> list[StoredPassage]:
        """Every passage, in the order of files and of their text."""
        with self._errors():
            return _as_passages(self._db.execute(f"{_PASSAGES} {_IN_ORDER}").fetchall())

    # -- vectors -----------------------------------------------------------------------------------

    def not_embedded(self) -> list[str]:
        """The texts that have no vectors yet."""
        with self._errors():
            return [row[0] for row in self._db.execute("SELECT text FROM passages WHERE vectors IS NULL").fetchall()]

    def add_vectors(self, vectors: Sequence[tuple[str, Vectors]]) -> None:
        """Store unit vectors, float32 ``[windows, dimensions]``, of texts."""
        rows = [(as_bytes(array), text_digest(text)) for text, array in vectors]
        with self._transaction() as db:
            db.executemany("UPDATE passages SET vectors = ? WHERE digest = ?", rows)

    def search(self, query: Vectors, top_k: int) -> list[tuple[StoredPassage, float]]:
        """Return the passages nearest to the unit vector ``query``, best first, and their cosines."""
        with self._transaction("DEFERRED") as db:
            rows = db.execute("SELECT digest, vectors FROM passages WHERE vectors NOTNULL ORDER BY digest").fetchall()
            try:
                best = nearest([vectors for _, vectors in rows], query, top_k)
            except ValueError as error:
                raise DamagedIndexError(f"{self.path} is damaged ({error})") from error
            return [(self._passage(rows[i][0]), score) for i, score in best]

    def _passage(self, digest: str) -> StoredPassage:
        (found,) = _as_passages(self._db.execute(f"{_PASSAGES} WHERE digest = ? {_IN_ORDER}", (digest,)).fetchall())
        if text_digest(found.text) != digest:
            raise DamagedIndexError(f"{self.path} is damaged (a passage's text)")
        return found

    # -- the file ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def __enter__(self) -> PassageIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _create_tables(self) -> None:
        with self._transaction() as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version == 0:
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
            elif version != _SCHEMA_VERSION:
                raise DamagedIndexError(f"{self.path} is of another version ({version})")

    @contextmanager
    def _transaction(self, kind: str = "IMMEDIATE") -> Iterator[sqlite3.Connection]:
        with self._errors():
            self._db.execute(f"BEGIN {kind}")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # some errors have ended it already
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            if isinstance(error, UnicodeDecodeError) or any(words in str(error) for words in _DAMAGE):
                raise DamagedIndexError(f"{self.path} is damaged ({error})") from error
            if "full" in str(error):
                raise StoreFullError(f"{self.path} cannot grow, the disk is full; free some room") from error
            raise StoreError(f"{self.path} cannot be used ({error}); give another --store") from error


def open_index(path: Path) -> PassageIndex:
    """Open the index at ``path``; a damaged one gives way to a new one, with a DamagedIndexWarning."""
    try:
        return PassageIndex(path)
    except DamagedIndexError as error:
        discard(path, error)
        return PassageIndex(path)


def discard(path: Path, why: DamagedIndexError) -> None:
    """Delete an index, with a DamagedIndexWarning."""
    warnings.warn(f"{why}; it is made again from the files", DamagedIndexWarning, stacklevel=2)
    for companion in ("", "-journal"):
        Path(f"{path}{companion}").unlink(missing_ok=True)


def _as_passages(rows: Iterable[tuple[str, str, int, str, int | None]]) -> list[StoredPassage]:
    """Rows of one place each to passages, in the order of their first places."""
    places: dict[str, list[Place]] = {}
    passages: dict[str, tuple[str, int]] = {}
    for digest, text, num_tokens, path, page in rows:
        passages[digest] = text, num_tokens
        places.setdefault(digest, []).append(Place(path, page))
    return [StoredPassage(*passages[digest], tuple(found)) for digest, found in places.items()]
