"""A store behind a URL: S3, GCS, Azure, a shared folder, whatever fsspec reaches.

    URL/store.json                            format version
    URL/chunks/ab/abcd….safetensors           one object a chunk, as in a disk store
    URL/index/FINGERPRINT/…                   which there are, see ``remote.index``
    URL/references/FINGERPRINT/…              which sources refer to them

A chunk's object is put before it is listed: what the index names is whole, or has been removed since.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from samkv_rag.exceptions import (
    StoreError,
    StoreFormatError,
    StoreUnreachableError,
)
from samkv_rag.store.base import EncodedChunk, Entry
from samkv_rag.store.remote.files import RemoteFiles
from samkv_rag.store.remote.index import RemoteIndex
from samkv_rag.store.shared.hashes import require_hash, require_keys
from samkv_rag.store.shared.options import require_age, require_timeout, require_url
from samkv_rag.store.shared.whole import Found, WholeChunkStore, verified

LAYOUT_VERSION = 1
TIMEOUT_S = 30.0
REFRESH_S = 5.0


class RemoteStore(WholeChunkStore):
    """Keeps chunks as objects below a URL, shared by any number of machines.

    A chunk is read whole, in one request, and verified. What other machines add or remove is seen at most
    ``refresh_s`` seconds later. While the remote fails to answer, chunks are misses, with one warning.

    Args:
        url: anything fsspec understands; its options (credentials, endpoint) are ``storage_options``.
        timeout_s: the longest that one request may take.
        refresh_s: how old the list of chunks may become.

    Raises:
        ConfigurationError: the protocol is unknown, its package is not installed, or an option is out of range.
        StoreUnreachableError: no answer; a mistaken address is told here and not at the first question.
        StoreFormatError: another version's store, or something else.
    """

    def __init__(
        self, url: str, *, timeout_s: float = TIMEOUT_S, refresh_s: float = REFRESH_S, **storage_options: Any
    ) -> None:
        self._files = RemoteFiles(require_url(url), require_timeout("timeout_s", timeout_s), storage_options)
        self._index = RemoteIndex(self._files, require_age("refresh_s", refresh_s))
        self._require_layout()

    def put_encoded(self, chunk: EncodedChunk) -> None:
        """See :meth:`KVStore.put_encoded`.

        Raises:
            StoreUnreachableError: the remote does not answer; the chunk is not listed.
        """
        self._files.write(_path(chunk.entry.key), chunk.data)
        self._index.add(require_hash(chunk.fingerprint), chunk.entry, len(chunk.data))

    def remove(self, keys: Iterable[str]) -> int:
        """See :meth:`KVStore.remove`; the index forgets a chunk before its object goes."""
        gone = set(keys)
        self._index.drop_keys(gone)
        return self._remove(gone)

    def refer(self, fingerprint: str, references: Mapping[str, str]) -> int:
        """See :meth:`KVStore.refer`."""
        removed = self._remove(self._index.point(require_hash(fingerprint), require_keys(references)))
        # Who adds chunks looks next whether another machine's release took one of them.
        self._index.refresh(fingerprint, force=True)
        return removed

    def release(self, fingerprint: str, sources: Iterable[str]) -> int:
        """See :meth:`KVStore.release`."""
        return self._remove(self._index.drop(require_hash(fingerprint), sources))

    def references(self, fingerprint: str) -> dict[str, str]:
        """See :meth:`KVStore.references`."""
        return self._index.references(require_hash(fingerprint))

    def changes(self, fingerprint: str, since: int) -> tuple[list[Entry], int] | None:
        """See :meth:`KVStore.changes`."""
        try:
            self._index.refresh(require_hash(fingerprint))
        except StoreUnreachableError as error:
            self._files.outage.warn(error)
            raise
        return self._index.changes(fingerprint, since)

    def nbytes(self) -> int:
        """See :meth:`KVStore.nbytes`."""
        return self._index.num_bytes()

    def close(self) -> None:
        """See :meth:`KVStore.close`."""
        self._files.close()

    def _remove(self, keys: set[str]) -> int:
        removed = self._index.remove(keys) if keys else set()
        self._files.remove(_path(key) for key in removed)
        return len(removed)

    def _find(self, key: str, fingerprint: str) -> Found | None:
        try:
            self._index.refresh(require_hash(fingerprint))
            entry = self._index.find(fingerprint, key)
            data = None if entry is None else self._files.read(_path(key))
        except StoreUnreachableError as error:
            self._files.outage.warn(error)
            return None
        if entry is None:
            return None
        if data is None:
            self._unlist(key, fingerprint)
            return None
        return verified(key, EncodedChunk(entry, fingerprint, data), f"{self._files.name}/{_path(key)}")

    def _unlist(self, key: str, fingerprint: str) -> None:
        # Its object went without us: deleted by a rule of the bucket, say. Reading must not depend on
        # being allowed to write.
        with suppress(StoreError):
            self._index.remove({key}, fingerprint)

    def _require_layout(self) -> None:
        content = self._files.read("store.json")
        if content is None:
            self._files.write("store.json", json.dumps({"samkv_store": LAYOUT_VERSION}).encode())
            return
        try:
            version = json.loads(content)["samkv_store"]
        except (ValueError, KeyError, TypeError) as error:
            raise StoreFormatError(f"{self._files.name}/store.json is not samkv_rag's; use another place") from error
        if version != LAYOUT_VERSION:
            raise StoreFormatError(
                f"{self._files.name} has layout version {version}, this release reads {LAYOUT_VERSION}; "
                "use another place or the release that wrote it"
            )


def _path(key: str) -> str:
    return f"chunks/{require_hash(key)[:2]}/{key}.safetensors"
