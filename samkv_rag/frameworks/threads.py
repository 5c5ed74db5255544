"""Runs blocking work, and reads blocking streams, beside an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, ContextVar, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from samkv_rag.runtime.stream import AnswerStream

P = ParamSpec("P")
T = TypeVar("T")
Stream = TypeVar("Stream", bound="AnswerStream")
_OPENED: ContextVar[list[AnswerStream] | None] = ContextVar("samkv-opened-streams", default=None)
"""The engine's streams that the steps of a reader have opened."""


async def run_in_thread_shielded(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return ``function``'s result, computed in a thread.

    A thread cannot be stopped. So if the caller is cancelled, the cancellation waits for the thread, and cleanup code
    never runs beside unfinished work.
    """
    work = asyncio.create_task(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        work.exception()  # retrieve it, or asyncio reports it as lost
        raise


def aiter_in_thread(stream: Generator[T, None, None]) -> AsyncGenerator[T, None]:
    """Yield from ``stream``, running every step in one new thread, in a copy of the caller's context.

    One thread is used because a step may depend on its thread's state, and so that closing waits for a step that a
    cancelled reader left running. Such a step ends soon: the :func:`cancellable` streams that it reads are closed.
    """
    return _aiter(stream, copy_context())  # here, so that it is the caller's context and not the first reader's


def cancellable(stream: Stream) -> Stream:
    """Return an engine's stream, which ends at once if the reader of :func:`aiter_in_thread` is cancelled."""
    if (opened := _OPENED.get()) is not None:
        opened.append(stream)
    return stream


async def _aiter(stream: Generator[T, None, None], context: Context) -> AsyncGenerator[T, None]:
    end: Any = object()
    worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="samkv-stream")
    opened: list[AnswerStream] = []
    context.run(_OPENED.set, opened)
    loop, step = asyncio.get_running_loop(), partial(next, stream, end)
    try:
        while (item := await loop.run_in_executor(worker, context.run, step)) is not end:
            yield item
    finally:
        for one in opened:
            one.close()
        closed = worker.submit(context.run, stream.close)
        worker.shutdown(wait=False)
        await asyncio.shield(asyncio.wrap_future(closed))
