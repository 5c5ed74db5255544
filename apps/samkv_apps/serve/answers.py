"""Answer requests, and count how many wait and run, and what they cost."""

from __future__ import annotations

import reprlib
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import asdict
from typing import Any

from samkv_apps.serve.backend import Asked, Backend
from samkv_apps.serve.errors import ApiError, queue_full
from samkv_apps.serve.metrics import Metrics
from samkv_apps.serve.schema import ChatRequest, Document
from samkv_apps.serve.tracing import span
from samkv_rag import GenerationResult, Piece

_MAX_INGESTIONS = 4
"""Most requests that ingest at once; each takes a thread and keeps its texts in memory."""


class Answers:
    """Answers requests.

    Args:
        backend: computes the answers.
        model: the model's name for clients.
        max_queue: number of requests that may wait, equal to the engine's ``max_waiting``.
        max_tokens: upper limit of an answer's tokens.
    """

    def __init__(self, backend: Backend, model: str, max_queue: int, max_tokens: int) -> None:
        self.model = model
        self._backend = backend
        self._max_queue = max_queue
        self._max_tokens = max_tokens
        self._num = {"waiting": 0, "running": 0, "ingesting": 0}
        self.metrics = Metrics(lambda: self._num["waiting"], lambda: self._num["running"], backend.num_evicted)

    @property
    def has_room(self) -> bool:
        """Whether the queue has room for another request."""
        return self._num["waiting"] < self._max_queue

    def require_model(self, name: str) -> None:
        """Refuse a request for another model."""
        if name != self.model:
            message = f"model is {reprlib.repr(name)}; this server has {self.model!r}"
            raise ApiError(404, message, param="model", code="model_not_found")

    async def answer(self, request: Asked) -> AsyncGenerator[Piece | GenerationResult, None]:
        """Yield the answer piece by piece, then the result. Closing or cancelling stops the work.

        Raises:
            ApiError, SamKVError: the request cannot be answered. Nothing was yielded, unless the engine failed later.
        """
        self.require_model(request.model)
        operation = "chat" if isinstance(request, ChatRequest) else "text_completion"
        with span(operation, self.model) as finish:
            async with aclosing(self._backend.answer(request, self._max_tokens)) as pieces:
                with self._counted("waiting"):
                    piece = await anext(pieces)
                with self._counted("running"):
                    while isinstance(piece, Piece):
                        yield piece
                        piece = await anext(pieces)
            self.metrics.count_answer(piece)
            finish(piece)
        yield piece  # outside of the span, since the caller may not resume after the result

    async def ingest(self, documents: Sequence[Document]) -> dict[str, Any]:
        """Compute and store the KV of documents. A document replaces the earlier one with its id."""
        if self._num["ingesting"] >= _MAX_INGESTIONS:
            raise queue_full(f"{_MAX_INGESTIONS} requests are ingesting, which is the limit; try again later")
        with self._counted("ingesting"):
            report = await self._backend.ingest(documents)
        self.metrics.count_ingestion(report)
        return asdict(report)

    @contextmanager
    def _counted(self, what: str) -> Iterator[None]:
        self._num[what] += 1
        try:
            yield
        finally:
            self._num[what] -= 1
