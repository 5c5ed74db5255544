"""Remote stores that do not answer: one failure is waited for, not one for every chunk."""

from __future__ import annotations

import re
import threading
import time
import warnings
from collections.abc import Callable

from samkv_rag.exceptions import StoreUnreachableError, StoreUnreachableWarning

RETRY_AFTER_S = 10.0


def redacted(url: str) -> str:
    """The URL without user, password and query, fit for messages."""
    return re.sub(r"://[^/]*@", "://", url).partition("?")[0]


class Outage:
    """Knows that a place did not answer a moment ago; calls to it then fail at once."""

    def __init__(
        self, place: str, retry_after_s: float = RETRY_AFTER_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._place = place
        self._retry_after_s = retry_after_s
        self._clock = clock
        self._until = float("-inf")
        self._reason = ""
        self._told = False
        self._lock = threading.Lock()

    def require_over(self) -> None:
        """Let a call through, unless one failed a moment ago.

        Raises:
            StoreUnreachableError: it did; the message says why and when the next call is let through.
        """
        with self._lock:
            remaining_s = self._until - self._clock()
            if remaining_s > 0:
                raise StoreUnreachableError(
                    f"{self._place} cannot be reached ({self._reason}); it is tried again in {remaining_s:.0f} s"
                )

    def begin(self, reason: str) -> StoreUnreachableError:
        """Note that a call failed, and return the error to raise."""
        with self._lock:
            self._until, self._reason = self._clock() + self._retry_after_s, reason
        return StoreUnreachableError(
            f"{self._place} cannot be reached ({reason}); check the address, the network and the credentials"
        )

    def end(self) -> None:
        """Note that a call succeeded."""
        with self._lock:
            self._until, self._told = float("-inf"), False

    def warn(self, error: StoreUnreachableError) -> None:
        """Say once an outage that chunks are treated as misses."""
        with self._lock:
            told, self._told = self._told, True
        if not told:
            warnings.warn(f"{error}; chunks that lie there alone are misses", StoreUnreachableWarning, stacklevel=3)
