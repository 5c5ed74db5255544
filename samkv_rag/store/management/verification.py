"""Every file of a disk store against its checksums, and the index against the files."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

from samkv_rag.store.disk import index_table
from samkv_rag.store.disk.described import NoEntryError, describe_file
from samkv_rag.store.disk.index import INDEX_NAME
from samkv_rag.store.disk.index_table import StoredChunk
from samkv_rag.store.disk.store import DiskStore
from samkv_rag.store.format.reading import ChunkFile, DamagedFileError, NewerFormatError


@dataclass(frozen=True)
class DamagedFile:
    """A file that is not what it should be."""

    name: str
    problem: str


@dataclass
class Verification:
    """What a check found, and what it put right."""

    num_files: int = 0
    """Chunk files looked at, damaged ones included."""
    num_bytes: int = 0
    damaged: list[DamagedFile] = field(default_factory=list)
    """None of them is ever served; each is replaced as soon as its chunk is computed again."""
    newer: list[str] = field(default_factory=list)
    """Files of a newer release, which this one cannot check."""
    leftovers_removed: list[str] = field(default_factory=list)
    """Temporary files of processes that died while they wrote."""
    lines_corrected: int = 0
    """Chunks that the index lacked or had wrong."""
    lines_removed: int = 0
    """Chunks in the index whose files are gone."""


def verify(store: DiskStore, remove_damaged: bool = False) -> Verification:
    """Read every chunk file in full and bring the index in line with the files.

    Others may go on storing and reading meanwhile. Damaged files stay where they are, unless
    ``remove_damaged``.
    """
    found = Verification(leftovers_removed=store.files.remove_leftovers())
    _verify_index(store, found)
    for path in store.files.files():
        try:
            _verify_file(store, path, found)
        except FileNotFoundError:  # evicted since it was listed
            continue
    found.lines_removed = _forget_absent(store)
    if remove_damaged:
        _remove(store, found.damaged)
    return found


def _verify_index(store: DiskStore, found: Verification) -> None:
    problems = store.index.read(lambda index: [row[0] for row in index.execute("PRAGMA integrity_check(1)")])
    if problems != ["ok"]:
        found.damaged.append(DamagedFile(INDEX_NAME, f"{problems[0]}; it was made again from the files"))
        store.index.rebuild()


def _verify_file(store: DiskStore, path: Path, found: Verification) -> None:
    found.num_bytes += path.stat().st_size
    found.num_files += 1
    try:
        ChunkFile(path).verify()
        _correct_line(store, describe_file(path), path, found)
    except NoEntryError:  # it is whole, and still found by whoever knows its text
        return
    except NewerFormatError:
        found.newer.append(path.name)
    except DamagedFileError as error:
        found.damaged.append(DamagedFile(path.name, str(error)))


def _correct_line(store: DiskStore, described: StoredChunk, path: Path, found: Verification) -> None:
    if _agrees(store.index.read(lambda index: index_table.get(index, described.entry.key)), described):
        return

    def correct(index: sqlite3.Connection) -> bool:
        # Whoever places or removes files does so with the index locked, as it is now: this is the file that stays.
        try:
            now = describe_file(path)
        except (FileNotFoundError, DamagedFileError):
            return False
        wrong = not _agrees(index_table.get(index, now.entry.key), now)
        if wrong:
            index_table.insert(index, now)
        return wrong

    found.lines_corrected += store.index.write(correct)


def _agrees(line: StoredChunk | None, described: StoredChunk) -> bool:
    known = (described.entry, described.fingerprint, described.num_bytes)
    return line is not None and (line.entry, line.fingerprint, line.num_bytes) == known


def _forget_absent(store: DiskStore) -> int:
    def forget(index: sqlite3.Connection) -> int:
        chunks = index_table.all_chunks(index)
        keys = [chunk.entry.key for chunk in chunks if not store.files.path(chunk.entry.key).exists()]
        return len(index_table.remove(index, keys))

    return store.index.write(forget)


def _remove(store: DiskStore, damaged: list[DamagedFile]) -> None:
    keys = [Path(file.name).stem for file in damaged if file.name != INDEX_NAME]
    store.evict(keys)
    for key in keys:  # those that the index did not know
        store.files.path(key).unlink(missing_ok=True)
