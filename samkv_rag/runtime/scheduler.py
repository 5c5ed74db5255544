"""Which sequences wait, which run, and which goes next."""

from __future__ import annotations

from collections import deque

from samkv_rag.exceptions import QueueFullError
from samkv_rag.runtime.sequence import Sequence

_MAX_NESTED = 3
"""Prefills in progress at once; each has a layer of its prompt's KV in memory."""


class Scheduler:
    """Decides which sequence is prefilled next. Not thread-safe: its owner has a lock.

    First come, first served, with one exception: a prompt less than half as long as the one being prefilled
    interrupts it, so a short question does not wait for a long one.
    """

    def __init__(self, max_running: int, max_waiting: int) -> None:
        self.max_running = max_running
        self.max_waiting = max_waiting
        self.reading: set[Sequence] = set()
        """Their prompts are read, or will be."""
        self.ready: deque[Sequence] = deque()
        """Their prompts have been read."""
        self.prefilling: list[Sequence] = []
        """The last one is being prefilled; it has interrupted those before it."""
        self.running: list[Sequence] = []

    @property
    def num_waiting(self) -> int:
        """Sequences that have not been prefilled."""
        return len(self.reading) + len(self.ready)

    def admit(self, sequence: Sequence) -> None:
        """Add a new sequence, whose prompt is read next."""
        if self.num_waiting >= self.max_waiting:  # those that were cancelled need no place
            self.ready = deque(waiting for waiting in self.ready if not waiting.cancelled)
        if self.num_waiting >= self.max_waiting:
            raise QueueFullError(
                f"{self.num_waiting} requests are waiting, the limit is {self.max_waiting}; "
                "try again later, or open the engine with a larger max_waiting"
            )
        self.reading.add(sequence)

    def next_prefill(self) -> Sequence | None:
        """Move the sequence to prefill now to ``prefilling`` and return it; None if none may start."""
        if len(self.prefilling) >= _MAX_NESTED:
            return None
        room = self.max_running - len(self.running) - sum(one.request.sampling.n for one in self.prefilling)
        limit = self.prefilling[-1].num_prompt_tokens / 2 if self.prefilling else float("inf")
        for sequence in self.ready:
            if sequence.cancelled or sequence.num_prompt_tokens < limit:
                if sequence.request.sampling.n > room and not sequence.cancelled:
                    return None
                self.ready.remove(sequence)
                self.prefilling.append(sequence)
                return sequence
        return None

    def drop_ended(self) -> list[Sequence]:
        """Remove and return the running sequences that have finished or were cancelled."""
        ended = [sequence for sequence in self.running if sequence.cancelled or sequence.finish_reason]
        self.running = [sequence for sequence in self.running if sequence not in ended]
        return ended

    def drain(self) -> list[Sequence]:
        """Remove and return all sequences, in any state."""
        everything = [*self.reading, *self.ready, *self.prefilling, *self.running]
        self.reading, self.ready, self.running = set(), deque(), []
        return everything
