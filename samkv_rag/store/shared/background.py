"""A bounded pool of threads that never keep a process from ending."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

Result = TypeVar("Result")


class BackgroundPool:
    """Runs calls on at most ``num_threads`` threads, in order.

    The threads of ``concurrent.futures`` are waited for when a process ends, so that one remote that
    never answers would keep it for ever; these are not. They end with :meth:`close` or with the pool. A fork
    of the process, which has none of its parent's threads, starts its own.
    """

    def __init__(self, num_threads: int, name: str) -> None:
        self._num_threads = num_threads
        self._name = name
        self._lock = threading.Lock()
        self._start()

    def submit(self, call: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Have ``call(*arguments)`` run; a future that is cancelled before its turn is skipped."""
        future: Future[Result] = Future()
        with self._lock:
            if self._process_id != os.getpid():
                self._start()
            if not self._queue.put((future, call, arguments)):
                future.cancel()
            elif len(self._threads) < self._num_threads and self._queue.needs_thread:
                thread = threading.Thread(target=_work, args=(self._queue,), name=self._name, daemon=True)
                self._threads.append(thread)
                thread.start()
        return future

    def close(self) -> None:
        """Cancel what waits; what runs is finished. Any number of times."""
        self._queue.close()

    def _start(self) -> None:
        self._process_id = os.getpid()
        self._queue = _Queue()
        self._threads: list[threading.Thread] = []
        # Threads hold the queue, not the pool: a pool that nobody holds any more is closed.
        weakref.finalize(self, self._queue.close)


class _Queue:
    """Calls that wait, and how many threads wait for one."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._num_threads_waiting = 0

    @property
    def needs_thread(self) -> bool:
        """Whether there are more calls than threads that wait for one."""
        with self._changed:
            return len(self._waiting) > self._num_threads_waiting

    def put(self, item: tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]) -> bool:
        with self._changed:
            if not self._closed:
                self._waiting.append(item)
                self._changed.notify()
            return not self._closed

    def get(self) -> tuple[Future[Any], Callable[..., Any], tuple[Any, ...]] | None:
        """The next call, waited for; None where there will be none."""
        with self._changed:
            self._num_threads_waiting += 1
            self._changed.wait_for(lambda: self._waiting or self._closed)
            self._num_threads_waiting -= 1
            return self._waiting.popleft() if self._waiting else None

    def close(self) -> None:
        with self._changed:
            self._closed = True
            while self._waiting:
                self._waiting.popleft()[0].cancel()
            self._changed.notify_all()


def _work(queue: _Queue) -> None:
    while (item := queue.get()) is not None:
        future, call, arguments = item
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(call(*arguments))
        except BaseException as error:
            future.set_exception(error)
        del item, future, call, arguments  # not held while waiting for the next
