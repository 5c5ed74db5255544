"""What a call returns: the answer, why it ended, what became of each chunk, and what it cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from samkv_rag.results import ChunkUse, GenerationMetrics, TokenLogprob

if TYPE_CHECKING:
    from samkv_rag.explanation import Explanation
    from samkv_rag.handover import Handover

ChunkOffsets = Callable[[str], Sequence[tuple[int, int]]]
"""A chunk's text to the first character, and the one behind the last, of each of its tokens."""


@dataclass(frozen=True)
class GenerationResult:
    """An answer.

    ``finish_reason`` is ``"stop"`` (end of text or a stop string) or ``"length"``; ``chunks`` says of
    each chunk in the prompt which of its tokens were retained.
    """

    text: str
    finish_reason: str
    token_ids: tuple[int, ...]
    metrics: GenerationMetrics
    chunks: tuple[ChunkUse, ...]
    model_name: str
    question: str = ""
    """What was asked: the user's last message; where the last chunk stands in it, the text behind that, if any."""
    reference_nll: float | None = None
    """Mean negative log-likelihood of a reference answer's tokens, in nats, where one was given."""
    logprobs: tuple[TokenLogprob, ...] = field(default=(), repr=False)
    """Of ``token_ids``, where they were asked for."""
    others: tuple[GenerationResult, ...] = ()
    """The second answer and those behind it, where ``n`` were asked for."""
    handover: Handover | None = field(default=None, repr=False, compare=False)
    """Lets another engine decode the rest of the answer, where that was asked for and there is a rest."""
    offsets: ChunkOffsets = field(default=lambda text: (), repr=False, compare=False)

    def explain(self) -> Explanation:
        """What the answer was read from: of each chunk the tokens retained, and by which scores."""
        from samkv_rag.explanation import Explanation, explained_chunk  # late: answering needs none of it

        return Explanation(
            model_name=self.model_name,
            method=self.metrics.method,
            fallback_reason=self.metrics.fallback_reason,
            question=self.question,
            answer=self.text,
            sequence_ratio=self.metrics.sequence_ratio,
            chunks=tuple(explained_chunk(use, self.offsets(use.text)) for use in self.chunks),
        )
