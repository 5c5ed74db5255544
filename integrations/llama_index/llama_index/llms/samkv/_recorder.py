"""Remembers the last answer; query engines return only its text."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from samkv_rag import Explanation, GenerationMetrics, GenerationResult

OnMetrics = Callable[["GenerationMetrics"], None]


class Recorder:
    """Keeps the result of the answer that finished last."""

    def __init__(self) -> None:
        self._last: GenerationResult | None = None

    @property
    def metrics(self) -> GenerationMetrics | None:
        """Its figures; None before the first answer is complete."""
        return None if self._last is None else self._last.metrics

    @property
    def explanation(self) -> Explanation | None:
        """What it was read from, likewise. Worked out here, not while answering."""
        return None if self._last is None else self._last.explain()

    def record(self, result: GenerationResult, on_metrics: OnMetrics | None) -> None:
        """Keep a result, and tell its figures to ``on_metrics``."""
        self._last = result
        if on_metrics is not None:
            on_metrics(result.metrics)
