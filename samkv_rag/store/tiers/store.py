"""A small near store in front of a large far one: memory before disk, disk before S3."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress

from samkv_rag.chunk_cache import ChunkReader
from samkv_rag.exceptions import ConfigurationError, StoreError, StoreFullError, StoreUnreachableError
from samkv_rag.store.base import EncodedChunk, Entry, KVStore, Prefetch
from samkv_rag.store.format.reading import ChunkBytes
from samkv_rag.store.shared.ledger import Ledger
from samkv_rag.store.tiers.prefetching import Prefetcher
from samkv_rag.store.tiers.write_back import WriteBack


class TieredStore(KVStore):
    """Reads what ``near`` has there, else from ``far``, and then keeps it in ``near`` too.

    ``far`` says what is stored; ``near`` is a copy that may lose anything, by its budget or for good. A
    chunk put is in ``near`` at once and goes to ``far`` in the background, so that no question waits for a
    far store; :meth:`flush`, which ingestion ends with, returns when all are there. So a process that is
    killed loses at most chunks computed for a question in its last moments, or those of an ingestion that
    has not returned. Closing the store closes both.

    Raises:
        ConfigurationError: one of the two is no store, or they are one and the same.
    """

    def __init__(self, near: KVStore, far: KVStore) -> None:
        _require_two_stores(near, far)
        self.near = near
        self.far = far
        self._write_back = WriteBack(self._put_far)
        self._prefetcher = Prefetcher(self._bring)
        self._ledger = Ledger()
        self._far_marks: dict[str, int] = {}
        self._coming: dict[tuple[str, str], Future[EncodedChunk | None]] = {}
        self._lock = threading.Lock()
        self._syncing = threading.Lock()

    def put_encoded(self, chunk: EncodedChunk) -> None:
        """See :meth:`KVStore.put_encoded`; what fails on the way to ``far`` is raised by :meth:`flush`.

        Raises:
            StoreError: the store is closed.
        """
        self._write_back.require_open()
        self._keep_near(chunk)
        self._write_back.put(chunk, lambda: self._ledger.add(chunk.fingerprint, [chunk.entry]))

    def open(self, key: str, fingerprint: str) -> ChunkReader | None:
        """See :meth:`KVStore.open`."""
        reader = self.near.open(key, fingerprint)
        if reader is not None or (chunk := self._fetch_once(key, fingerprint)) is None:
            return reader
        # A reader of the near store rather than of the bytes just fetched: on a disk they need no memory.
        return self.near.open(key, fingerprint) or ChunkBytes(chunk.data, fingerprint, key)

    def fetch(self, key: str, fingerprint: str) -> EncodedChunk | None:
        """See :meth:`KVStore.fetch`."""
        return self.near.fetch(key, fingerprint) or self._fetch_once(key, fingerprint)

    def remove(self, keys: Iterable[str]) -> int:
        """See :meth:`KVStore.remove`; chunks on their way to ``far`` arrive there first."""
        wanted = set(keys)
        self._write_back.wait_for(wanted)
        removed = self.far.remove(wanted)
        self.near.remove(wanted)
        self._ledger.remove(wanted)
        return removed

    def refer(self, fingerprint: str, references: Mapping[str, str]) -> int:
        """See :meth:`KVStore.refer`; ``far`` keeps the references."""
        self._write_back.wait_for(self._write_back.pending_keys())
        removed = self.far.refer(fingerprint, references)
        self._sync(fingerprint)
        return removed

    def release(self, fingerprint: str, sources: Iterable[str]) -> int:
        """See :meth:`KVStore.release`; chunks on their way to ``far`` arrive there first."""
        self._write_back.wait_for(self._write_back.pending_keys())
        removed = self.far.release(fingerprint, sources)
        self._sync(fingerprint)
        return removed

    def references(self, fingerprint: str) -> dict[str, str]:
        """See :meth:`KVStore.references`; of ``far``."""
        return self.far.references(fingerprint)

    def changes(self, fingerprint: str, since: int) -> tuple[list[Entry], int] | None:
        """See :meth:`KVStore.changes`; what ``far`` says, or said last, and what is on its way there."""
        with suppress(StoreUnreachableError):
            self._sync(fingerprint)
        return self._ledger.changes(fingerprint, since)

    def nbytes(self) -> int:
        """See :meth:`KVStore.nbytes`; of ``far``."""
        return self.far.nbytes()

    def prefetch(self, keys: Iterable[str], fingerprint: str) -> Prefetch:
        """Bring chunks into ``near`` on a few threads."""
        return self._prefetcher.start(keys, fingerprint)

    def flush(self) -> None:
        """See :meth:`KVStore.flush`."""
        self._write_back.flush()
        self.far.flush()

    def close(self) -> None:
        """See :meth:`KVStore.close`; waits for what is on its way to ``far``."""
        self._prefetcher.close()
        try:
            self._write_back.close()
            self.far.flush()
        except StoreError as error:
            warnings.warn(f"{error}; such chunks are computed again", stacklevel=2)
        self.near.close()
        self.far.close()

    def _bring(self, key: str, fingerprint: str) -> None:
        """What a prefetch does: a chunk that is near is read ahead, another is fetched."""
        self.near.prefetch([key], fingerprint)
        if self.near.open(key, fingerprint) is None:
            self._fetch_once(key, fingerprint)

    def _fetch_once(self, key: str, fingerprint: str) -> EncodedChunk | None:
        """Fetch from ``far``; threads that want the same chunk meanwhile wait for the one that fetches it."""
        own: Future[EncodedChunk | None] = Future()
        with self._lock:
            coming = self._coming.setdefault((key, fingerprint), own)
        if coming is not own:
            return coming.result()
        try:
            own.set_result(self._fetch_far(key, fingerprint))
        except BaseException as error:
            own.set_exception(error)
        finally:
            with self._lock:
                del self._coming[key, fingerprint]
        return own.result()

    def _fetch_far(self, key: str, fingerprint: str) -> EncodedChunk | None:
        if (pending := self._write_back.get(key, fingerprint)) is not None:
            return pending  # evicted from the near store before it arrived in the far one
        chunk = self.far.fetch(key, fingerprint)
        if chunk is not None:
            self._keep_near(chunk)
        return chunk

    def _keep_near(self, chunk: EncodedChunk) -> None:
        try:
            self.near.put_encoded(chunk)
        except StoreFullError:  # then it stays far
            return
        except StoreError as error:
            warnings.warn(f"{error}; the chunk is not kept near", stacklevel=2)

    def _sync(self, fingerprint: str) -> None:
        """Take over what was added to ``far`` and removed from it."""
        with self._syncing:
            mark = self._far_marks.get(fingerprint)
            found = None if mark is None else self.far.changes(fingerprint, mark)
            if found is None:
                self._start_over(fingerprint)
            elif found[1] != mark:
                self._ledger.add(fingerprint, found[0])
                self._far_marks[fingerprint] = found[1]

    def _put_far(self, chunk: EncodedChunk) -> None:
        try:
            self.far.put_encoded(chunk)
        except BaseException:
            self._ledger.remove([chunk.entry.key])  # near it is a copy of nothing: to be computed again
            raise

    def _start_over(self, fingerprint: str) -> None:
        """Chunks were removed from ``far``, maybe: find out which, and remove them here too."""
        # In this order: what is known, and neither on its way then nor listed after that, is gone.
        known = self._ledger.keys(fingerprint) | self._keys_near(fingerprint)
        pending = self._write_back.pending_keys()
        entries, mark = self.far.changes(fingerprint, 0) or ([], 0)
        gone = known - pending - {entry.key for entry in entries}
        self.near.remove(gone)
        self._ledger.remove(gone)
        self._ledger.add(fingerprint, entries)
        self._far_marks[fingerprint] = mark

    def _keys_near(self, fingerprint: str) -> set[str]:
        """A near store that outlives processes may hold what was removed from ``far`` between two of them."""
        entries, _ = self.near.changes(fingerprint, 0) or ([], 0)
        return {entry.key for entry in entries}


def _require_two_stores(near: object, far: object) -> None:
    for name, store in (("near", near), ("far", far)):
        if not isinstance(store, KVStore):
            raise ConfigurationError(f"{name} is {store!r}; it must be a store, such as open_store returns")
    if near is far:
        raise ConfigurationError("near and far are one and the same store; give two, or use it without tiers")
