"""When and how often a failed call is tried again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from .errors import FetchError

T = TypeVar("T")


@dataclass(frozen=True)
class RetryPolicy:
    """How patient a caller is.

    ``max_attempts`` counts the first try too. Waits grow by ``factor`` from ``base_delay_s`` and
    are never longer than ``max_delay_s``. The defaults suit an interactive user; batch jobs pass
    one of the named policies instead.
    """

    max_attempts: int = 3
    base_delay_s: float = 0.25
    factor: float = 2.0
    max_delay_s: float = 6.0


@dataclass(frozen=True)
class NamedPolicies:
    """The retry policies that parcelkit itself uses, by the kind of work.

    ``QUICK`` is for calls that a person waits for, ``NIGHTLY`` for the big synchronisations
    between two and four in the morning, ``PRINTER`` for label printers, which are slow to wake up
    and must not be flooded. New kinds of work get a new name; these values are agreed with the
    carriers and do not change silently.
    """

    QUICK = RetryPolicy(max_attempts=2, max_delay_s=1.5)
    NIGHTLY = RetryPolicy(max_attempts=9, base_delay_s=5.0, max_delay_s=240.0)
    PRINTER = RetryPolicy(max_attempts=4, base_delay_s=3.0, factor=1.0)


def backoff_delay_s(attempt: int, policy: RetryPolicy) -> float:
    """Seconds to wait before try number ``attempt``; the first try is number 1.

    No wait precedes the first try. The wait before the second is the policy's base delay, and
    every further one is longer by the policy's factor until the policy's ceiling is reached.
    There is no jitter: the carriers ask for a predictable load, and tests for exact numbers.

    Raises:
        IndexError: ``attempt`` is below 1 or above the policy's ``max_attempts``.
    """
    if not 1 <= attempt <= policy.max_attempts:
        raise IndexError(f"attempt {attempt} is outside 1..{policy.max_attempts}")
    if attempt == 1:
        return 0.0
    return min(policy.base_delay_s * policy.factor ** (attempt - 2), policy.max_delay_s)


def is_retryable(status: int) -> bool:
    """Whether an HTTP status is worth another try.

    Server errors are, with one exception: 501 means that the carrier does not offer the function
    at all, and trying again cannot help. Of the client errors only 408 (too slow) and 429 (too
    many calls) are. Status 0 stands for a connection that never came about and is retried too.
    """
    if status in (0, 408, 429):
        return True
    return 500 <= status < 600 and status != 501


def run_with_retries(call: Callable[[], T], policy: RetryPolicy, sleep: Callable[[float], None]) -> T:
    """Run ``call`` until it succeeds, with the waits of ``policy`` in between.

    Only ``FetchError`` is caught, and only where its status is retryable; any other error passes
    through at once, for it says that the request itself is wrong. When all attempts are spent, the
    error of the last one is raised unchanged, so that the caller sees the carrier's own status.
    ``sleep`` is passed in so that tests need not wait.
    """
    for attempt in range(1, policy.max_attempts + 1):
        sleep(backoff_delay_s(attempt, policy))
        try:
            return call()
        except FetchError as error:
            if attempt == policy.max_attempts or not is_retryable(error.status):
                raise
    raise AssertionError("a policy has at least one attempt")


class RetryBudget:
    """Caps the share of retries in all calls of a process, so that an outage is not made worse.

    Every first try earns 0.1 of a token and every retry costs a whole one, so in the long run one
    call in ten may be a retry. The budget starts with 20 tokens and never holds more than 50;
    ``may_retry`` answers False while less than one token is left.
    """

    def __init__(self) -> None:
        self.tokens = 20.0

    def record_first_try(self) -> None:
        self.tokens = min(self.tokens + 0.1, 50.0)

    def may_retry(self) -> bool:
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True
