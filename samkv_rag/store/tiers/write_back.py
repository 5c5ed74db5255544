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
        self._first_error: SamKVError | None = None
        self._num_errors = 0
        self._closed = False
        self._changed = threading.Condition()

    def put(self, chunk: EncodedChunk, note: Callable[[], None]) -> None:
        """Have a chunk written; waits while too many bytes are pending.

        ``note`` is called when the chunk is among :meth:`pending_keys` and before it is written.

        Raises:
            StoreError: closed, before or while it waited; the chunk was not taken.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._pending or self._fits(len(chunk.data)))
            self._require_open()
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
            first, number = self._first_error, self._num_errors
            self._first_error, self._num_errors = None, 0
        if first is not None and number > 1:
            # The same type, so that a full store is told from one that does not answer.
            kind = type(first) if isinstance(first, StoreError) else StoreError
            raise kind(f"{number} chunks were not stored; the first: {first}") from first
        if first is not None:
            raise first

    def close(self) -> None:
        """Take no more and return when everything is written; any number of times.

        Raises:
            StoreError: as :meth:`flush`.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        try:
            self.flush()
        finally:
            self._pool.close()

    def require_open(self) -> None:
        """Check that chunks are still taken.

        Raises:
            StoreError: closed.
        """
        with self._changed:
            self._require_open()

    def _require_open(self) -> None:
        if self._closed:
            raise StoreError("the store is closed; open it again to store more")

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
        _let_go_of_frames(error)  # they hold the chunk, and nobody may ever ask for the error
        with self._changed:
            self._first_error = self._first_error or error
            self._num_errors += 1

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


def _let_go_of_frames(error: BaseException) -> None:
    """Drop the tracebacks of an error and of those that led to it."""
    chain: list[BaseException | None] = [error]
    seen: set[int] = set()
    while chain:
        one = chain.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            one.__traceback__ = None
            chain += [one.__cause__, one.__context__]
