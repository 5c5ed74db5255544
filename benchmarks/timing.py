"""Clocks and memory meters that know that CUDA runs behind the host, which only queues its work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from samkv_rag.prefill import Clock


class WaitingClock(Clock):
    """Waits for the device at a phase's end, so that its work counts where it was asked for."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """See :meth:`Clock.phase`."""
        with super().phase(name):
            yield
            if self._device.type == "cuda":
                torch.cuda.synchronize()


def timed_s(action: Callable[[], object], device: torch.device) -> float:
    """Seconds of ``action``, by CUDA events where there is CUDA."""
    if device.type != "cuda":
        started = time.perf_counter()
        action()
        return time.perf_counter() - started
    new_event: Any = torch.cuda.Event
    begin, end = (new_event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    action()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def peak_device_bytes(action: Callable[[], object], device: torch.device) -> int | None:
    """Most device memory that ``action`` takes beyond what was there before it; None without CUDA."""
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    action()
    return torch.cuda.max_memory_allocated() - before
