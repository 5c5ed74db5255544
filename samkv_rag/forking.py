"""What has threads starts over in a forked process, which has none of its parent's threads."""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class StartsOver(Protocol):
    """Has threads or locks of its own."""

    def start_over(self) -> None:
        """Make new ones, and forget what the old ones worked on."""


_living: weakref.WeakSet[StartsOver] = weakref.WeakSet()


def start_over_in_forks(one: StartsOver) -> None:
    """Call ``one.start_over()`` in every process that is forked while ``one`` exists.

    If it has them, ``before_fork()`` and then ``after_fork()`` are called in the parent, whether or not a child is
    made: for what no child may inherit.
    """
    _living.add(one)
    _hook()


class ProcessLock:
    """A reentrant lock that is free in a forked process, whichever thread held it in the parent."""

    def __init__(self) -> None:
        self.start_over()
        start_over_in_forks(self)

    def start_over(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class cached_property(functools.cached_property[T]):  # noqa: N801 - named as the one that it replaces
    """Its lock, one for all objects, which only Python 3.11 takes, is free in a forked process."""

    def __init__(self, function: Callable[[Any], T]) -> None:
        super().__init__(function)
        self.lock = ProcessLock()


@cache
def _hook() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=partial(_call, "before_fork"),
            after_in_parent=partial(_call, "after_fork"),
            after_in_child=partial(_call, "start_over"),
        )


def _call(name: str) -> None:
    for one in list(_living):
        if method := getattr(one, name, None):
            method()
