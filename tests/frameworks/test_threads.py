"""Blocking work beside an event loop: results, errors, and cancellation that waits."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Generator
from typing import Any

import pytest

from samkv_rag.frameworks.threads import aiter_in_thread, cancellable, run_in_thread_shielded
from support.engines import CHUNKS, PROMPT, MakeEngine


async def test_returns_and_raises_what_the_function_does_elsewhere() -> None:
    def work(number: int, *, by: int) -> tuple[float, int]:
        return number / by, threading.get_ident()

    result, thread = await run_in_thread_shielded(work, 6, by=3)
    assert result == 2 and thread != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        await run_in_thread_shielded(work, 6, by=0)


@pytest.mark.parametrize("fails", [False, True])
async def test_cancellation_waits_for_the_thread(fails: bool) -> None:
    started, go_on, done = threading.Event(), threading.Event(), threading.Event()
    unheard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))

    def work() -> None:
        started.set()
        assert go_on.wait(timeout=10)
        done.set()
        if fails:
            raise OSError("after the cancellation")

    waiting = asyncio.create_task(run_in_thread_shielded(work))
    await asyncio.to_thread(started.wait, 10)
    waiting.cancel()
    await asyncio.sleep(0.01)
    assert not waiting.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert done.is_set()
    gc.collect()
    await asyncio.sleep(0)
    assert unheard == []


async def test_a_cancelled_reader_ends_a_step_that_would_go_on_for_long(make_engine: MakeEngine) -> None:
    """As with tools: what may become a call is held back until the answer ends."""
    engine = make_engine(chunks=CHUNKS)
    counted: list[int] = []

    def answer() -> Generator[int, None, None]:
        counted.append(sum(1 for _ in cancellable(engine.stream(PROMPT, max_new_tokens=3000, temperature=1.0))))
        yield counted[0]

    reading = asyncio.create_task(anext(aiter_in_thread(answer())))
    while not engine._runtime._scheduler.running:
        await asyncio.sleep(0.01)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert counted[0] < 3000
