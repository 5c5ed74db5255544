"""What a forked process must not wait for: locks that threads of its parent held."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from samkv_rag.forking import ProcessLock, cached_property

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded"),
]


def succeeds_in_a_fork(function: Callable[[], object]) -> bool:
    child = os.fork()
    if child == 0:
        signal.alarm(10)  # ends it if it hangs
        os._exit(0 if function() else 1)
    return os.waitpid(child, 0)[1] == 0


def test_a_lock_is_free() -> None:
    lock = ProcessLock()

    def takes_it() -> bool:
        with lock, lock:
            return True

    with ThreadPoolExecutor(1) as another_thread:
        another_thread.submit(lock.__enter__).result()
        assert succeeds_in_a_fork(takes_it)
        another_thread.submit(lock.__exit__).result()


def test_a_property_that_another_thread_computes_can_be_computed() -> None:
    begun, go_on, parent = threading.Event(), threading.Event(), os.getpid()

    class Slow:
        @cached_property
        def value(self) -> int:
            if os.getpid() == parent:
                begun.set()
                go_on.wait(20)
            return 7

    one, other = Slow(), Slow()
    with ThreadPoolExecutor(1) as another_thread:
        computed = another_thread.submit(lambda: one.value)
        assert begun.wait(10)
        assert succeeds_in_a_fork(lambda: one.value == other.value == 7)
        go_on.set()
        assert computed.result() == 7
