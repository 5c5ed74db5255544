"""Blocking work beside an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def run_in_thread_shielded(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return ``function``'s result, computed in a thread.

    A thread cannot be stopped: when the caller is cancelled, the cancellation waits for the thread, so
    that whoever cleans up afterwards finds the work done, not half done behind its back.
    """
    work = asyncio.create_task(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        work.exception()  # looked at, so that asyncio does not report it as lost
        raise
