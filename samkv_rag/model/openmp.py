"""OpenMP's teams: the threads that help a thread to compute on a CPU.

libgomp, which torch brings for Linux, gives each thread that computes a team of its own, and keeps it. While all teams
together have more threads than the machine has processors, idle ones sleep at once, and waking them costs more than
most operations of a short pass: 90 µs instead of 7. So only the worker thread keeps a team while it computes.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch

_HARD_PAUSE = 2
"""``omp_pause_hard``: the threads end; the next operation starts others, in a tenth of a millisecond."""


def release_team() -> None:
    """End the calling thread's team."""
    if openmp := _libgomp():
        openmp.omp_pause_resource_all(_HARD_PAUSE)


def compute_alone() -> None:
    """Let the calling thread compute without a team from now on."""
    if openmp := _libgomp():
        torch.get_num_threads()  # torch sets the number at a thread's first operation; this is one
        openmp.omp_set_num_threads(1)


@cache
def _libgomp() -> ctypes.CDLL | None:
    """Return torch's libgomp; None where torch computes with another library, or an old one that cannot pause."""
    for path in (Path(torch.__file__).parent / "lib").glob("libgomp*.so*"):
        library = ctypes.CDLL(str(path))
        if hasattr(library, "omp_pause_resource_all"):
            return library
    return None
