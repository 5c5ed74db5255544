"""Runs blocking work beside an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


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
