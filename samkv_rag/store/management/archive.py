"""Chunks carried from one disk store to another: in one tar file, or as a folder of chunk files.

What comes in is verified chunk by chunk, a piece of one in memory at a time, and filed under the key that
its own contents give. Names and paths in an archive are never used.
"""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from samkv_rag.exceptions import ConfigurationError
from samkv_rag.store.base import Entry
from samkv_rag.store.disk.described import entry_of
from samkv_rag.store.disk.errors import disk_errors
from samkv_rag.store.disk.index_table import StoredChunk
from samkv_rag.store.disk.store import DiskStore
from samkv_rag.store.format.reading import DamagedFileError, EncodedReader
from samkv_rag.store.management.candidates import Candidate, candidates
from samkv_rag.store.management.inventory import EVERYTHING, Amount, Scope, list_chunks
from samkv_rag.store.shared.private_files import WRITING_PREFIX, write_atomically


@dataclass(frozen=True)
class Refused:
    """A file that was not taken in."""

    name: str
    problem: str


@dataclass
class Import:
    """What an import did."""

    num_added: int = 0
    num_present: int = 0
    """Chunks that the store had already."""
    num_bytes: int = 0
    """Of those added."""
    refused: list[Refused] = field(default_factory=list)


def export_chunks(store: DiskStore, target: Path, scope: Scope = EVERYTHING) -> Amount:
    """Write the chunks of a scope to ``target``: one tar file where its name ends so, else a new folder.

    A damaged chunk is left out, with a DamagedChunkWarning.

    Raises:
        ConfigurationError: there is something at ``target`` already.
        StoreFullError: no room there.
    """
    if target.exists():
        raise ConfigurationError(f"{target} is there already; give a new name")
    with disk_errors(target.parent):
        write = _write_tar if target.suffix == ".tar" else _write_folder
        return Amount.of(list(write(target, _verified(store, list_chunks(store, scope)))))


def import_chunks(store: DiskStore, source: Path) -> Import:
    """Take in the chunk files of a tar file, or of a folder and those below it, that the store lacks.

    Raises:
        StoreFormatError: no such file, or it is not a tar file.
        StoreFullError: no room; what was taken in until then stays.
    """
    done = Import()
    for candidate in candidates(source):
        try:
            chunk = _checked(candidate)
        except DamagedFileError as error:
            done.refused.append(Refused(candidate.name, str(error)))
            continue
        _take_in(store, *chunk, done)
    return done


def _checked(candidate: Candidate) -> tuple[Entry, EncodedReader]:
    if candidate.problem:
        raise DamagedFileError(candidate.problem)
    try:
        reader = EncodedReader(candidate.open(), None, None)
    except OSError as error:
        raise DamagedFileError(f"unreadable ({error.strerror})") from error
    reader.verify()
    return entry_of(reader), reader


def _take_in(store: DiskStore, entry: Entry, reader: EncodedReader, done: Import) -> None:
    if store.holds(entry.key, reader.fingerprint):
        done.num_present += 1
        return
    store.put_pieces(entry, reader.fingerprint, reader.num_bytes, reader.pieces())
    done.num_added += 1
    done.num_bytes += reader.num_bytes


def _verified(store: DiskStore, chunks: list[StoredChunk]) -> Iterator[tuple[StoredChunk, bytes]]:
    """The bytes of those that are whole."""
    for chunk in chunks:
        copy = store.copy(chunk.entry.key, chunk.fingerprint)
        if copy is not None:
            yield chunk, copy.data


def _write_folder(target: Path, chunks: Iterable[tuple[StoredChunk, bytes]]) -> Iterator[StoredChunk]:
    target.mkdir(mode=0o700)
    for chunk, data in chunks:
        write_atomically(target / _name(chunk), data)
        yield chunk


def _write_tar(target: Path, chunks: Iterable[tuple[StoredChunk, bytes]]) -> Iterator[StoredChunk]:
    """Written beside its place first: what stands at ``target`` in the end is whole."""
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=WRITING_PREFIX)  # 0600
    try:
        with os.fdopen(handle, "wb") as file, tarfile.open(fileobj=file, mode="w") as archive:
            for chunk, data in chunks:
                member = tarfile.TarInfo(_name(chunk))
                member.size, member.mode, member.mtime = len(data), 0o600, int(chunk.created_s)
                archive.addfile(member, io.BytesIO(data))
                yield chunk
        os.replace(temporary, target)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _name(chunk: StoredChunk) -> str:
    return f"{chunk.entry.key}.safetensors"
