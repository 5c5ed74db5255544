"""What has threads starts over in a forked process, which has none of its parent's threads."""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable
from functools import cache
from typing import Any, Protocol, TypeVar, runtime_checkable

T = TypeVar("T")


class StartsOver(Protocol):
    """Has threads or locks of its own."""

    def start_over(self) -> None:
        """Make new ones, and forget what the old ones worked on."""


@runtime_checkable
class LetsGo(StartsOver, Protocol):
    """Also has something that no child may inherit."""

    def before_fork(self) -> None:
        """Let go of it."""

    def after_fork(self) -> None:
        """In the parent, whether or not a child was made: go on."""


_living: weakref.WeakSet[StartsOver] = weakref.WeakSet()


def start_over_in_forks(one: StartsOver) -> None:
    """Call ``one.start_over()`` in every process that is forked while ``one`` exists."""
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
    """As in Python 3.12. In 3.11 a property has one lock for all objects, which a forked process may find taken."""

    def __init__(self, function: Callable[[Any], T]) -> None:
        super().__init__(function)
        self.lock = ProcessLock()


@cache
def _hook() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_let_all_go, after_in_parent=_go_all_on, after_in_child=_start_all_over)


def _let_all_go() -> None:
    for one in list(_living):
        if isinstance(one, LetsGo):
            one.before_fork()


def _go_all_on() -> None:
    for one in list(_living):
        if isinstance(one, LetsGo):
            one.after_fork()


def _start_all_over() -> None:
    for one in list(_living):
        one.start_over()
