"""The result of a call: the answer, its metrics, and the use of each chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from samkv_rag.results import ChunkUse, GenerationMetrics, TokenLogprob

if TYPE_CHECKING:
    from samkv_rag.explanation import Explanation
    from samkv_rag.handover import Handover


@dataclass(frozen=True)
class GenerationResult:
    """An answer.

    ``finish_reason`` is ``"stop"`` (end of text or a stop string) or ``"length"``. ``chunks`` has the retained tokens
    of each chunk in the prompt.
    """

    text: str
    finish_reason: str
    token_ids: tuple[int, ...]
    metrics: GenerationMetrics
    chunks: tuple[ChunkUse, ...]
    model_name: str
    question: str = ""
    """The user's last message; if it has the last chunk, the text after that chunk, if any."""
    reference_nll: float | None = None
    """Mean negative log-likelihood of the tokens of a given reference answer, in nats."""
    logprobs: tuple[TokenLogprob, ...] = field(default=(), repr=False)
    """Of ``token_ids``, with ``logprobs=True``."""
    others: tuple[GenerationResult, ...] = ()
    """All answers but the first, with ``n`` above 1."""
    handover: Handover | None = field(default=None, repr=False, compare=False)
    """Lets another engine decode the rest of the answer, with ``handover=True`` and unless the answer has ended."""
    offsets: Callable[[str], Sequence[tuple[int, int]]] = field(default=lambda text: (), repr=False, compare=False)
    """Maps a chunk's text to the start and stop character of each of its tokens."""

    @property
    def num_written_tokens(self) -> int:
        """Tokens of all answers."""
        return sum(one.metrics.completion_tokens for one in (self, *self.others))

    def explain(self) -> Explanation:
        """Return which tokens of each chunk were retained, and their scores."""
        from samkv_rag.explanation import Explanation, explained_chunk  # late, because answering does not need it

        return Explanation(
            model_name=self.model_name,
            method=self.metrics.method,
            fallback_reason=self.metrics.fallback_reason,
            question=self.question,
            answer=self.text,
            sequence_ratio=self.metrics.sequence_ratio,
            chunks=tuple(explained_chunk(use, self.offsets(use.text)) for use in self.chunks),
        )
