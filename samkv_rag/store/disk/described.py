"""What a chunk file says of itself, for an index that is made again, a check, an import."""

from __future__ import annotations

from pathlib import Path

from samkv_rag.store.base import ENTRY_METADATA, Entry
from samkv_rag.store.disk.index_table import StoredChunk
from samkv_rag.store.format.reading import ChunkFile, DamagedFileError, EncodedReader


class NoEntryError(DamagedFileError):
    """The file is whole, but of a release that did not write into it what an index needs."""


def entry_of(reader: EncodedReader) -> Entry:
    """The entry in an encoded chunk's metadata.

    Raises:
        DamagedFileError: the metadata is damaged, or the entry is another chunk's.
        NoEntryError: there is none.
    """
    reader.verify_metadata()
    if ENTRY_METADATA not in reader.metadata:
        raise NoEntryError("it was written by the first release, whose files an index cannot be made from")
    try:
        entry = Entry.from_json(reader.metadata[ENTRY_METADATA])
    except ValueError as error:
        raise DamagedFileError(f"its entry is unreadable ({error})") from error
    if (entry.key, entry.text_digest) != (reader.key, reader.text_digest):
        raise DamagedFileError("its entry is another chunk's")
    return entry


def describe_file(path: Path) -> StoredChunk:
    """A chunk file's line for the index; its tensors are not looked at.

    Raises:
        FileNotFoundError: no such file.
        DamagedFileError: as :func:`entry_of`.
    """
    reader = ChunkFile(path)
    status = reader.status
    last_use_s = max(status.st_atime, status.st_mtime)
    return StoredChunk(entry_of(reader), reader.fingerprint, reader.num_bytes, status.st_mtime, last_use_s)
