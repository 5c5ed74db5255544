"""Chunks carried from one disk store to another: in one tar file, or as a folder of chunk files.

What comes in is verified chunk by chunk and filed under the key that its own contents give. Names and
paths in an archive are never used.
"""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from samkv_rag.exceptions import ConfigurationError, StoreFormatError
from samkv_rag.store.base import EncodedChunk
from samkv_rag.store.disk.described import entry_of
from samkv_rag.store.disk.errors import disk_errors
from samkv_rag.store.disk.index_table import StoredChunk
from samkv_rag.store.disk.store import DiskStore
from samkv_rag.store.format.reading import ChunkBytes, DamagedFileError
from samkv_rag.store.management.inventory import EVERYTHING, Amount, Scope, list_chunks
from samkv_rag.store.shared.private_files import WRITING_PREFIX, write_atomically

_MAX_CHUNK_BYTES = 4 * 1024**3


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
    for name, data in _read_folder(source) if source.is_dir() else _read_tar(source, done):
        try:
            reader = ChunkBytes(data)
            reader.verify()
            chunk = EncodedChunk(entry_of(reader), reader.fingerprint, data)
        except DamagedFileError as error:
            done.refused.append(Refused(name, str(error)))
            continue
        _take_in(store, chunk, done)
    return done


def _take_in(store: DiskStore, chunk: EncodedChunk, done: Import) -> None:
    if store.copy(chunk.entry.key, chunk.fingerprint) is not None:
        done.num_present += 1
        return
    store.put_encoded(chunk)
    done.num_added += 1
    done.num_bytes += len(chunk.data)


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


def _read_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*.safetensors")):
        yield path.name, path.read_bytes()


def _read_tar(path: Path, done: Import) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isreg() else None  # follows no link
                if file is None or member.size > _MAX_CHUNK_BYTES:
                    done.refused.append(Refused(member.name, "it is no chunk file"))
                else:
                    yield member.name, file.read()
    except (tarfile.TarError, FileNotFoundError, IsADirectoryError) as error:
        raise StoreFormatError(f"{path} is not a tar file of chunks, or not a whole one ({error})") from error


def _name(chunk: StoredChunk) -> str:
    return f"{chunk.entry.key}.safetensors"
