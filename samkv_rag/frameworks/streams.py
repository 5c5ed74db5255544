"""Streams read from an event loop, which end when their reader ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, copy_context
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


def aiter_in_thread(stream: Generator[T, None, None]) -> AsyncGenerator[T, None]:
    """Yield from ``stream``, every step of which runs in one thread of its own, in a copy of the caller's context.

    One thread, because what runs between two yields may hold state of its thread; and because the
    close then queues behind a step that a cancelled reader left running.
    """
    return _aiter(stream, copy_context())  # the caller's, not that of who reads first


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
