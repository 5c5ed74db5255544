"""A near store in front of a far one. Chunks read from far are kept near; chunks put go to both."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress

from samkv_rag.exceptions import SamKVError, StoreError
from samkv_rag.forking import start_over_in_forks
from samkv_rag.store.base import Blob, BytesBlob, Store, StoredBytes, read_bytes

logger = logging.getLogger(__name__)

_PARALLEL = 8
_MAX_PENDING_BYTES = 1 << 30
"""Limit of the bytes waiting for the far store; beyond it, :meth:`TieredStore.put` blocks."""


class TieredStore(Store):
    """Reads from ``near`` if possible, else from ``far``. Writes to both, to ``far`` in the background.

    If the far store refuses a chunk, it stays near and :meth:`flush` raises the error.
    """

    def __init__(self, near: Store, far: Store) -> None:
        self.near = near
        self.far = far
        self.shared = far.shared
        self.catalog_path = far.catalog_path
        self.start_over()
        start_over_in_forks(self)

    def start_over(self) -> None:
        """Reset what belongs to a process: at first, and in a forked one."""
        self._writers = ThreadPoolExecutor(_PARALLEL, "samkv-write")
        self._readers = ThreadPoolExecutor(_PARALLEL, "samkv-prefetch")
        self._changed = threading.Condition()
        self._pending: dict[str, bytes] = {}
        self._errors: dict[str, tuple[type[SamKVError], str]] = {}
        """Maps a key to the reason why its last write failed; without the error, whose traceback holds the bytes."""
        self._fetching: dict[str, Future[None]] = {}
        self._num_deletions = 0

    @property
    def num_evicted(self) -> int:  # type: ignore[override]
        return self.near.num_evicted + self.far.num_evicted

    def contains(self, keys: Iterable[str]) -> set[str]:
        wanted = set(keys)
        with self._changed:
            found = wanted & self._pending.keys()
        return found | (self.far.contains(wanted - found) if wanted - found else set())  # near alone is not stored

    def get(self, key: str) -> Blob | None:
        with self._changed:
            fetching, pending = self._fetching.get(key), self._pending.get(key)
        if pending is not None:
            return BytesBlob(pending)
        if fetching is not None:
            with suppress(SamKVError, CancelledError):
                fetching.result()
        if blob := self.near.get(key):
            self.far.touch(key)
        return blob or self._fetch(key)

    def peek(self, key: str) -> Blob | None:
        return self.far.peek(key)

    def touch(self, key: str) -> None:
        self.near.touch(key)
        self.far.touch(key)

    def put(self, key: str, data: bytes) -> None:
        try:
            self.near.put(key, data)
        except StoreError:  # it may be full; only the far store gets it, so no older bytes may stay in front
            with suppress(StoreError):
                self.near.delete([key])
        with self._changed:
            while self._pending and sum(map(len, self._pending.values())) + len(data) > _MAX_PENDING_BYTES:
                self._changed.wait()
            if key not in self._pending:  # else the running write continues with the new data
                self._writers.submit(self._write, key)
            self._pending[key] = data

    def delete(self, keys: Iterable[str]) -> int:
        gone = set(keys)
        self._wait_for_writes()  # a later write would bring a chunk back
        there = self.near.contains(gone) | self.far.contains(gone)
        self.far.delete(gone)
        self._num_deletions += 1  # after the one and before the other: a running _fetch deletes what it put near
        self.near.delete(gone)
        return len(there)

    def keys(self) -> Iterator[StoredBytes]:
        self._wait_for_writes()
        return self.far.keys()

    def prefetch(self, keys: Iterable[str]) -> Callable[[], None]:
        wanted = list(dict.fromkeys(keys))
        near = self.near.contains(wanted)
        self.near.prefetch(near)
        started: list[Future[None]] = []
        for key in wanted:
            with self._changed:
                if key in near or key in self._pending or key in self._fetching:
                    continue
                fetch = self._fetching[key] = self._readers.submit(self._bring_near, key)
            fetch.add_done_callback(lambda _, key=key: self._fetching.pop(key, None))  # type: ignore[misc]
            started.append(fetch)

        def cancel() -> None:
            for fetch in started:
                fetch.cancel()

        return cancel

    def flush(self, keys: Iterable[str] | None = None) -> None:
        self._wait_for_writes()
        self.near.flush()
        self.far.flush()
        with self._changed:
            failed = [key for key in (list(self._errors) if keys is None else keys) if key in self._errors]
            errors = [self._errors.pop(key) for key in failed]
        if errors:
            more = f" (and {len(errors) - 1} more chunks)" if len(errors) > 1 else ""
            kind, reason = errors[0]
            raise kind(f"{reason}{more}")

    def close(self) -> None:
        with suppress(StoreError):
            self.flush()
        for pool in (self._readers, self._writers):
            pool.shutdown(wait=True, cancel_futures=True)
        self.near.close()
        self.far.close()

    def _bring_near(self, key: str) -> None:
        self._fetch(key)  # the result is dropped, because an announcement keeps the future

    def _fetch(self, key: str) -> Blob | None:
        num_deletions = self._num_deletions
        blob = self.far.get(key)
        if blob is None:
            return None
        data = bytes(read_bytes(blob))
        with suppress(StoreError):  # the near store may be full; the next read goes to far again
            self.near.put(key, data)
        if self._num_deletions != num_deletions:  # perhaps this key was deleted meanwhile
            self.near.delete([key])
        return BytesBlob(data)

    def _write(self, key: str) -> None:
        """Write the pending data of ``key``, and again if it was replaced meanwhile."""
        is_written = False
        while not is_written:
            failure: tuple[type[SamKVError], str] | None = None
            with self._changed:
                data = self._pending[key]
            try:
                self.far.put(key, data)
            except Exception as error:  # any error at all, or flush would wait for ever
                failure = (type(error), str(error)) if isinstance(error, SamKVError) else (StoreError, repr(error))
                logger.warning("%s was not stored: %s", key, failure[1])
            with self._changed:
                self._errors.pop(key, None)
                if failure is not None:
                    self._errors[key] = failure
                is_written = self._pending[key] is data
                if is_written:
                    del self._pending[key]
                    self._changed.notify_all()

    def _wait_for_writes(self) -> None:
        started = time.monotonic()
        with self._changed:
            awaited = set(self._pending)
            self._changed.wait_for(lambda: awaited.isdisjoint(self._pending))
        if (waited_s := time.monotonic() - started) > 1:
            logger.info("waited %.1f s for writes to the far store", waited_s)
