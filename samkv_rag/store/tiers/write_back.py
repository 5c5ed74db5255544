"""Chunks on their way to a far store, while who put them goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from samkv_rag.exceptions import SamKVError, StoreError
from samkv_rag.store.base import EncodedChunk
from samkv_rag.store.shared.background import BackgroundPool

NUM_THREADS = 4
MAX_PENDING_BYTES = 256 * 1024 * 1024


class WriteBack:
    """Writes chunks by ``write`` on a few threads; at most ``max_pending_bytes`` wait, then :meth:`put` waits."""

    def __init__(self, write: Callable[[EncodedChunk], None], max_pending_bytes: int = MAX_PENDING_BYTES) -> None:
        self._write = write
        self._max_pending_bytes = max_pending_bytes
        self._pool = BackgroundPool(NUM_THREADS, "samkv-write-back")
        self._pending: dict[str, list[EncodedChunk]] = {}
        """By key, the oldest first; the oldest is the one being written."""
        self._pending_bytes = 0
        self._errors: list[SamKVError] = []
        self._changed = threading.Condition()

    def put(self, chunk: EncodedChunk, note: Callable[[], None]) -> None:
        """Have a chunk written; waits while too many bytes are pending.

        ``note`` is called when the chunk is among :meth:`pending_keys` and before it is written.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._pending or self._fits(len(chunk.data)))
            waiting = self._pending.setdefault(chunk.entry.key, [])
            waiting.append(chunk)
            self._pending_bytes += len(chunk.data)
            note()
            if len(waiting) == 1:  # else its turn comes when the earlier one is written: the last put must win
                self._pool.submit(self._write_next, chunk.entry.key)

    def get(self, key: str, fingerprint: str) -> EncodedChunk | None:
        """A chunk that is not written yet."""
        with self._changed:
            waiting = self._pending.get(key)
            return waiting[-1] if waiting and waiting[-1].fingerprint == fingerprint else None

    def pending_keys(self) -> set[str]:
        """Chunks that are not written yet."""
        with self._changed:
            return set(self._pending)

    def wait_for(self, keys: Iterable[str]) -> None:
        """Return when these are written, or have failed."""
        wanted = set(keys)
        with self._changed:
            self._changed.wait_for(lambda: wanted.isdisjoint(self._pending))

    def flush(self) -> None:
        """Return when everything is written.

        Raises:
            StoreError: something could not be; it is told once.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._pending)
            errors, self._errors = self._errors, []
        if len(errors) == 1:
            raise errors[0]
        if errors:
            # The same type, so that a full store is told from one that does not answer.
            kind = type(errors[0]) if isinstance(errors[0], StoreError) else StoreError
            raise kind(f"{len(errors)} chunks were not stored; the first: {errors[0]}") from errors[0]

    def close(self) -> None:
        """Take no more; called after :meth:`flush`."""
        self._pool.close()

    def _fits(self, num_bytes: int) -> bool:
        return self._pending_bytes + num_bytes <= self._max_pending_bytes

    def _write_next(self, key: str) -> None:
        with self._changed:
            chunk = self._pending[key][0]
        try:
            self._write(chunk)
        except SamKVError as error:
            self._note(error)
        except Exception as error:  # nobody else would ever hear of it
            self._note(StoreError(f"a chunk was not stored ({type(error).__name__}: {error})"))
        finally:
            self._done(chunk)

    def _note(self, error: SamKVError) -> None:
        with self._changed:
            self._errors.append(error)

    def _done(self, chunk: EncodedChunk) -> None:
        key = chunk.entry.key
        with self._changed:
            self._pending_bytes -= len(chunk.data)
            self._pending[key].pop(0)
            if self._pending[key]:
                self._pool.submit(self._write_next, key)
            else:
                del self._pending[key]
            self._changed.notify_all()
