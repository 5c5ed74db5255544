"""A retriever's order and the engine's, as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")
_FIRST = 61
"""So little does one order alone decide: the constant of the paper, 60, and 1 for the first place."""


def best_of(found: Sequence[T], matches: Sequence[float], top_n: int | None) -> list[tuple[T, float]]:
    """The ``top_n`` best of what a retriever found, best first, each with its score; None: all of it.

    ``found`` is in the retriever's order, ``matches`` are the engine's. A score is the sum of 1 ÷ (60 + place) in both
    orders, which count as much as each other: a small model's match alone may order worse than an embedding does.

    Source: reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009).
    """
    by_match = sorted(range(len(found)), key=matches.__getitem__, reverse=True)
    scores = {number: 1 / (_FIRST + number) + 1 / (_FIRST + place) for place, number in enumerate(by_match)}
    best = sorted(scores, key=lambda number: (-scores[number], number))[:top_n]
    return [(found[number], scores[number]) for number in best]
