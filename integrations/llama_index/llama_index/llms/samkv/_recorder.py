"""The generation that finished last, for who has only the LLM at hand: a query engine hands on no more than text."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from samkv_rag import Explanation, GenerationMetrics, StreamPiece

OnMetrics = Callable[["GenerationMetrics"], None]


class Recorder:
    """Keeps the last piece of the last answer, and its text."""

    def __init__(self) -> None:
        self._last: tuple[str, StreamPiece] | None = None

    @property
    def metrics(self) -> GenerationMetrics | None:
        """Its figures; None before the first answer is complete."""
        return None if self._last is None else self._last[1].metrics

    @property
    def explanation(self) -> Explanation | None:
        """What it was read from, likewise. Worked out here, not while answering."""
        return None if self._last is None else self._last[1].explain(self._last[0])

    def record(
        self, pieces: Generator[StreamPiece, None, None], on_metrics: OnMetrics | None
    ) -> Generator[StreamPiece, None, None]:
        """Yield ``pieces`` and close them; the last one is kept, and its figures are told to ``on_metrics``."""
        text = ""
        with closing(pieces):
            for piece in pieces:
                text += piece.text
                if piece.metrics is not None:
                    self._last = (text, piece)
                    if on_metrics is not None:
                        on_metrics(piece.metrics)
                yield piece
