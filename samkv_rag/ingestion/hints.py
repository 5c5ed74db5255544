"""Chunks announced for a coming prompt, and what is being read for them until it has been."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from itertools import count

from samkv_rag.store.base import Prefetch

_MAX_HINTS = 256


class Hint:
    """One announcement. Cancel it where its prompt will not come."""

    def __init__(self, digests: frozenset[str], prefetch: Prefetch) -> None:
        self.digests = digests
        self._prefetch = prefetch

    def cancel(self) -> None:
        """Read no more of its chunks ahead; what is under way is finished. Any number of times."""
        self._prefetch.cancel()


class Hints:
    """The announcements whose prompts have not come yet, the latest 256 of them."""

    def __init__(self) -> None:
        self._hints: OrderedDict[int, Hint] = OrderedDict()
        self._numbers = count()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._hints)

    def note(self, hint: Hint) -> None:
        """Keep a hint until its prompt has been read; the oldest is cancelled where there are too many."""
        with self._lock:
            self._hints[next(self._numbers)] = hint
            oldest = self._hints.popitem(last=False)[1] if len(self._hints) > _MAX_HINTS else None
        if oldest is not None:
            oldest.cancel()

    def end(self, digests: Iterable[str]) -> None:
        """A prompt with these chunks has been read: cancel what was announced together with any of them."""
        read = set(digests)
        with self._lock:
            ended = [number for number, hint in self._hints.items() if not read.isdisjoint(hint.digests)]
            hints = [self._hints.pop(number) for number in ended]
        for hint in hints:
            hint.cancel()
