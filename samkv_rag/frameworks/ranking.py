"""Merges a retriever's order with the engine's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")
_FIRST = 61
"""The constant of the paper, 60, and 1 for the first place. It limits the weight of one order alone."""


def best_of(found: Sequence[T], matches: Sequence[float], top_n: int | None) -> list[tuple[T, float]]:
    """Return the ``top_n`` best of ``found``, or all, with their scores, best first.

    ``found`` is in the retriever's order; ``matches`` are the engine's. A score is the sum of 1 ÷ (60 + place) over
    both orders, with equal weight: a small model's match alone may rank worse than an embedding.

    Source: reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009).
    """
    by_match = sorted(range(len(found)), key=matches.__getitem__, reverse=True)
    scores = {number: 1 / (_FIRST + number) + 1 / (_FIRST + place) for place, number in enumerate(by_match)}
    best = sorted(scores, key=lambda number: (-scores[number], number))[:top_n]
    return [(found[number], scores[number]) for number in best]
