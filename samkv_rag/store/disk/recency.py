"""When chunks were last used, written down now and then instead of at every read."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

WRITE_EVERY_S = 60.0


class Recency:
    """Collects last uses and hands them to ``write`` from a thread of its own, once in a while.

    A process that is killed loses the uses of its last minute, which only eviction goes by.
    """

    def __init__(self, write: Callable[[], None], every_s: float = WRITE_EVERY_S) -> None:
        self._write = write
        self._every_s = every_s
        self._last_uses_s: dict[str, float] = {}
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._closed = False

    def note(self, key: str) -> None:
        """The chunk was used now; touches memory only."""
        with self._lock:
            self._last_uses_s[key] = time.time()
            # The timer of a fork's parent is no thread of ours.
            if (self._timer is None or not self._timer.is_alive()) and not self._closed:
                self._timer = threading.Timer(self._every_s, self._write_now)
                self._timer.daemon = True
                self._timer.start()

    def take(self) -> dict[str, float]:
        """Keys and times not yet written; they are the caller's to write."""
        with self._lock:
            taken, self._last_uses_s = self._last_uses_s, {}
            return taken

    def give_back(self, last_uses_s: dict[str, float]) -> None:
        """They could not be written; the next writer gets them again."""
        with self._lock:
            self._last_uses_s = last_uses_s | self._last_uses_s

    def close(self) -> None:
        """Start no more writing; what is left can still be taken."""
        with self._lock:
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()

    def _write_now(self) -> None:
        with self._lock:
            self._timer = None
        self._write()
