"""Bringing chunks nearer in the background: few at a time, in order, and no longer than somebody waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future

from samkv_rag.store.shared.background import BackgroundPool

NUM_THREADS = 8
MAX_WAITING = 1024
"""Chunks that may wait for their turn; more are left to be read when they are needed."""
MAX_AGE_S = 60.0
"""A hint whose prompt has not come by then is not worth reading for."""


class Prefetcher:
    """Calls ``fetch(key, fingerprint)`` on a bounded pool of threads; an error is left to who reads the chunk."""

    def __init__(
        self, fetch: Callable[[str, str], object], num_threads: int = NUM_THREADS, max_age_s: float = MAX_AGE_S
    ) -> None:
        self._fetch = fetch
        self._max_age_s = max_age_s
        self._pool = BackgroundPool(num_threads, "samkv-prefetch")
        self._num_waiting = 0
        self._lock = threading.Lock()

    @property
    def num_waiting(self) -> int:
        """Chunks asked for, not cancelled, and not read yet."""
        return self._num_waiting

    def start(self, keys: Iterable[str], fingerprint: str) -> PrefetchedChunks:
        """Have chunks read, as far as there is room for them to wait."""
        deadline_s = time.monotonic() + self._max_age_s
        futures = []
        for key in dict.fromkeys(keys):
            with self._lock:
                if self._num_waiting >= MAX_WAITING:
                    break
                self._num_waiting += 1
            future = self._pool.submit(self._run, key, fingerprint, deadline_s)
            future.add_done_callback(self._count_out)
            futures.append(future)
        return PrefetchedChunks(futures)

    def close(self) -> None:
        """Cancel all; what is under way is finished."""
        self._pool.close()

    def _run(self, key: str, fingerprint: str, deadline_s: float) -> None:
        if time.monotonic() < deadline_s:
            self._fetch(key, fingerprint)

    def _count_out(self, future: Future[None]) -> None:
        with self._lock:
            self._num_waiting -= 1


class PrefetchedChunks:
    """The chunks of one call of :meth:`Prefetcher.start`."""

    def __init__(self, futures: list[Future[None]]) -> None:
        self._futures = futures

    def cancel(self) -> None:
        """See :class:`samkv_rag.store.base.Prefetch`."""
        for future in self._futures:
            future.cancel()

    def wait(self) -> None:
        """Return when all are there, given up or cancelled."""
        for future in self._futures:
            if not future.cancelled():
                future.exception()
