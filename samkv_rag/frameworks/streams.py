"""Streams that end when their reader ends, also when read from an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, copy_context
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


def closing_source(stream: Generator[T, None, None], source: Generator[Any, None, None]) -> Generator[T, None, None]:
    """Yield from ``stream`` and close ``source`` with it.

    A framework's wrapper around a stream may not close what it reads from, and an event handler that
    keeps the exception keeps its frames, and so the generation behind them, alive.
    """
    try:
        yield from stream
    finally:
        source.close()


def aiter_in_thread(stream: Generator[T, None, None]) -> AsyncGenerator[T, None]:
    """Yield from ``stream``, every step of which runs in one thread of its own, in a copy of the caller's context.

    One thread, because what runs between two yields may hold state of its thread; and because the
    close then queues behind a step that a cancelled reader left running.
    """
    return _aiter(stream, copy_context())


async def _aiter(stream: Generator[T, None, None], context: Context) -> AsyncGenerator[T, None]:
    end: Any = object()
    worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="samkv-stream")
    loop, step = asyncio.get_running_loop(), partial(next, stream, end)
    try:
        while (item := await loop.run_in_executor(worker, context.run, step)) is not end:
            yield item
    finally:
        closed = worker.submit(context.run, stream.close)
        worker.shutdown(wait=False)
        await asyncio.shield(asyncio.wrap_future(closed))
