"""Inspect, check, prune and copy a store; `samkv store` is built on this."""

from __future__ import annotations

import io
import lzma
import os
import tarfile
import time
import zlib
from collections.abc import Callable, Collection
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from samkv_rag.exceptions import DamagedChunkError, StoreError, StoreFormatError, StoreFullError
from samkv_rag.store.base import BytesBlob, Store, StoredBytes, read_bytes
from samkv_rag.store.catalog import Catalog
from samkv_rag.store.codec import ChunkIdentity, StoredChunk, open_chunk
from samkv_rag.store.disk import MARKER, DiskStore, as_folder, written_whole

_MAX_CHUNK_BYTES = 8 << 30
"""Larger members of an archive are refused; no chunk is that large."""


@dataclass(frozen=True)
class Amount:
    """A number of chunks and their size."""

    num_chunks: int = 0
    num_bytes: int = 0
    num_chars: int = 0
    """Characters of the chunks' texts, as far as the catalog knows them."""

    def plus(self, num_bytes: int, num_chars: int = 0) -> Amount:
        """Return this amount and one more chunk."""
        return Amount(self.num_chunks + 1, self.num_bytes + num_bytes, self.num_chars + num_chars)


class Entry(NamedTuple):
    """A stored chunk and its identity, None if it is not in the catalog."""

    stored: StoredBytes
    identity: ChunkIdentity | None


@dataclass(frozen=True)
class Verification:
    """The result of checking every chunk."""

    sound: Amount
    damaged: dict[str, str]
    """Maps a key to the reason."""
    num_leftovers: int = 0
    """Temporary files of killed writers that were deleted."""


def open_existing(folder: str | os.PathLike[str]) -> DiskStore:
    """Open a disk store that already exists.

    Raises:
        StoreFormatError: the folder is not a store.
    """
    path = as_folder("store", folder)
    if not (path / MARKER).is_file():
        raise StoreFormatError(f"{path} is not a store; give the folder that an engine was opened with")
    return DiskStore(path)


def entries(store: Store, namespace: str | None = None, model: str | None = None) -> list[Entry]:
    """Return the stored chunks, least recently used first.

    ``namespace`` keeps the chunks of one namespace, ``model`` those of models whose fingerprint starts with it.
    """
    with closing(Catalog(store)) as catalog:
        known = {identity.key: identity for identity in catalog.chunks()}
    found = [Entry(stored, known.get(stored.key)) for stored in store.keys()]
    if namespace is not None or model is not None:
        found = [
            entry
            for entry in found
            if (who := entry.identity) and namespace in (None, who.namespace) and who.model.startswith(model or "")
        ]
    return sorted(found, key=lambda entry: (entry.stored.last_use_s, entry.stored.key))


def amounts(store: Store) -> dict[tuple[str, str, str], Amount]:
    """Return what is stored by namespace, model and model name; chunks not in the catalog are under ``""``."""
    found: dict[tuple[str, str, str], Amount] = {}
    for stored, who in entries(store):
        group = (who.namespace, who.model, who.model_name) if who else ("", "", "")
        found[group] = found.get(group, Amount()).plus(stored.num_bytes, who.num_chars if who else 0)
    return dict(sorted(found.items()))


def verify(store: Store, remove_damaged: bool = False) -> Verification:
    """Read every chunk in full and compare its checksums; add the sound ones to the catalog."""
    sound, damaged, identities = Amount(), dict[str, str](), []
    for found in store.keys():
        if chunk := _sound(found.key, damaged, partial(open_chunk, store, found.key, is_use=False)):
            sound = sound.plus(found.num_bytes)
            identities.append(chunk.identity)
    if remove_damaged and damaged:
        store.delete(damaged)
    with closing(Catalog(store)) as catalog, suppress(StoreFullError):  # a full disk does not change the result
        catalog.add(identities)
    return Verification(sound, damaged, store.remove_leftovers() if isinstance(store, DiskStore) else 0)


def prune(
    store: Store,
    namespace: str | None = None,
    model: str | None = None,
    *,
    older_than_s: float | None = None,
    max_bytes: int | None = None,
    keep_sources: Collection[str] | None = None,
    id_scope: str = "",
    dry_run: bool = False,
) -> Amount:
    """Delete the chunks that any rule names, and return how much was deleted; ``dry_run`` only counts.

    Args:
        namespace, model: as in :func:`entries`; other chunks stay.
        older_than_s: delete chunks that were not used for this long.
        max_bytes: delete the least recently used chunks until the rest takes no more than this.
        keep_sources: forget all sources that start with ``id_scope`` except these, and delete the chunks that
            have no source left.
    """
    with closing(Catalog(store)) as catalog:
        listed, now_s = entries(store, namespace, model), time.time()
        sizes = {stored.key: stored.num_bytes for stored, _ in listed}
        going = set()
        if older_than_s is not None:
            going = {stored.key for stored, _ in listed if now_s - stored.last_use_s > older_than_s}
        if keep_sources is not None:
            for fingerprint in {identity.fingerprint for _, identity in listed if identity}:
                references = catalog.sources(fingerprint)
                leaving = {name for name in references if name.startswith(id_scope) and name not in keep_sources}
                staying = {key for source, key in references.items() if source not in leaving}
                going |= {references[source] for source in leaving} - staying
                if not dry_run:
                    catalog.release(fingerprint, leaving)
        if max_bytes is not None:
            total = sum(num_bytes for key, num_bytes in sizes.items() if key not in going)
            for key, num_bytes in sizes.items():
                if total > max_bytes and key not in going:
                    going.add(key)
                    total -= num_bytes
        if not dry_run:
            store.delete(going)
            catalog.remove(going)
    gone = sizes.keys() & going
    return Amount(len(gone), sum(sizes[key] for key in gone))


def export_chunks(store: Store, target: Path, namespace: str | None = None, model: str | None = None) -> Amount:
    """Copy the sound chunks into a new ``.tar`` file, which appears whole or not at all.

    Raises:
        StoreError: the file exists already, or cannot be written.
    """
    if target.exists():
        raise StoreError(f"{target} exists already; give a new file")
    copied = Amount()
    try:
        with written_whole(target) as file, tarfile.open(fileobj=file, mode="w") as tar:
            for stored, _ in entries(store, namespace, model):
                if chunk := _sound(stored.key, {}, partial(open_chunk, store, stored.key, is_use=False)):
                    member = tarfile.TarInfo(f"{stored.key}.safetensors")
                    member.size = chunk.blob.size
                    tar.addfile(member, io.BytesIO(read_bytes(chunk.blob)))
                    copied = copied.plus(chunk.blob.size)
    except OSError as error:
        raise StoreError(f"{target} cannot be written: {error.strerror}") from error
    return copied


def import_chunks(store: Store, source: Path) -> tuple[Amount, dict[str, str]]:
    """Add the chunks of an exported file to ``store``; return how much, and the refused members with the reason.

    Checksums find damage, not forgery: import only files that you trust. A chunk that does not fit the model is
    noticed when it is first read, and computed again.

    Raises:
        StoreError: the file cannot be read.
    """
    copied, refused, identities = Amount(), dict[str, str](), []
    try:
        with tarfile.open(source, "r:*") as tar:
            for member in tar:
                if chunk := _sound(member.name, refused, partial(_open_member, tar, member)):
                    store.put(chunk.identity.key, bytes(read_bytes(chunk.blob)))
                    identities.append(chunk.identity)
                    copied = copied.plus(chunk.blob.size)
            # tarfile takes a damaged header for the end, which two blocks of zeros mark.
            assert tar.fileobj is not None
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"it is cut or damaged behind {len(identities)} sound chunks")
    except (OSError, tarfile.TarError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise StoreError(f"{source} cannot be read as an exported file: {error}") from error
    finally:
        store.flush()
        with closing(Catalog(store)) as catalog:
            catalog.add(identities)
    return copied, refused


def _open_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> StoredChunk:
    if not member.isreg() or member.issparse() or member.size > _MAX_CHUNK_BYTES:
        raise DamagedChunkError(f"it is not a plain file of at most {_MAX_CHUNK_BYTES:,} bytes")
    file = tar.extractfile(member)
    data = file.read(member.size) if file else b""
    if len(data) != member.size:
        raise DamagedChunkError(f"{len(data)} of {member.size} bytes are there")
    return StoredChunk(BytesBlob(data))


def _sound(name: str, damaged: dict[str, str], open_it: Callable[[], StoredChunk | None]) -> StoredChunk | None:
    """Open a chunk and compare all checksums; for a damaged one return None and put the reason into ``damaged``."""
    for is_last in (False, True):  # another process may have evicted or replaced it while it was read
        try:
            if chunk := open_it():
                chunk.verify()
            return chunk
        except DamagedChunkError as error:
            if is_last:
                damaged[name] = str(error)
    return None
