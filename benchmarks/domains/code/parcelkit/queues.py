"""Jobs that wait for a worker."""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field
from typing import ClassVar

from .errors import QueueFullError


class QueueLimits:
    """Sizes and times of the job queues, by what the workers can bear.

    Measured on the smallest depot computer, with two printers running. A job that was handed out
    and not reported back within its lease is given to another worker.
    """

    LEASE_S: ClassVar[int] = 135
    MAX_LABEL_JOBS: ClassVar[int] = 240
    MAX_DEAD_JOBS: ClassVar[int] = 1800
    MAX_FAILURES: ClassVar[int] = 6


def priority_of(service: str, hours_waiting: float) -> int:
    """Priority of a job; a smaller number is served first.

    The service level gives the start: "express" 10, "standard" 40, "economy" 70. Every full hour
    of waiting takes 5 off, so that no job waits for ever. The result is never below 1, which is
    kept for recalls of dangerous goods. An unknown service counts as "economy".
    """
    start = {"express": 10, "standard": 40, "economy": 70}.get(service, 70)
    return max(start - 5 * int(hours_waiting), 1)


@dataclass
class LabelQueue:
    """Labels that wait for the printer, first by priority, then in the order they came.

    Bounded by ``QueueLimits.MAX_LABEL_JOBS``. ``take`` on an empty queue returns None instead of
    blocking, because the printer's driver polls.

    Raises:
        QueueFullError: By ``add``, when the queue is at its bound.
    """

    _jobs: list[tuple[int, int, str]] = field(default_factory=list)
    _num_added: int = 0

    def add(self, label: str, priority: int) -> None:
        if len(self._jobs) >= QueueLimits.MAX_LABEL_JOBS:
            raise QueueFullError("labels")
        self._num_added += 1
        heapq.heappush(self._jobs, (priority, self._num_added, label))

    def take(self) -> str | None:
        return heapq.heappop(self._jobs)[2] if self._jobs else None


class LeaseTable:
    """Which worker holds which job, and until when.

    A lease lasts ``QueueLimits.LEASE_S`` seconds from the moment it is granted, and may be renewed
    by the same worker as often as it likes. ``grant`` answers False where another worker's lease
    still runs. Times are passed in, in seconds; nothing here reads a clock.
    """

    def __init__(self) -> None:
        self._leases: dict[str, tuple[str, float]] = {}

    def grant(self, job: str, worker: str, now_s: float) -> bool:
        holder, ends_at_s = self._leases.get(job, (worker, now_s))
        if holder != worker and ends_at_s > now_s:
            return False
        self._leases[job] = (worker, now_s + QueueLimits.LEASE_S)
        return True


class DeadLetters:
    """Jobs that were given up, kept for a person to look at.

    A job is given up at its failure number ``QueueLimits.MAX_FAILURES``; ``record_failure`` then
    answers True. At most ``QueueLimits.MAX_DEAD_JOBS`` are kept, and the oldest are forgotten
    first. Giving a job back to the workers is a manual step and starts its count at zero.
    """

    def __init__(self) -> None:
        self.jobs: deque[str] = deque(maxlen=QueueLimits.MAX_DEAD_JOBS)
        self._num_failures: dict[str, int] = {}

    def record_failure(self, job: str) -> bool:
        self._num_failures[job] = self._num_failures.get(job, 0) + 1
        if self._num_failures[job] < QueueLimits.MAX_FAILURES:
            return False
        self.jobs.append(job)
        return True


def batches(jobs: list[str], max_jobs: int = 35) -> list[list[str]]:
    """Jobs cut into batches for the bulk interface of a carrier, in their order.

    No batch is larger than ``max_jobs``. A last batch of one job is avoided where possible, since
    carriers bill every batch: it is joined to the one before, which may then hold one job too
    many. No jobs give no batches.
    """
    cut = [jobs[start : start + max_jobs] for start in range(0, len(jobs), max_jobs)]
    if len(cut) > 1 and len(cut[-1]) == 1:
        cut[-2:] = [cut[-2] + cut[-1]]
    return cut
