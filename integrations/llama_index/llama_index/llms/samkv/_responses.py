"""Engine results as LlamaIndex responses."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, MessageRole

if TYPE_CHECKING:
    from samkv_rag import GenerationMetrics, StreamPiece


@dataclass(frozen=True)
class Answer:
    """The answer so far, in neither of LlamaIndex's two response types."""

    text: str
    delta: str | None = None
    raw: dict[str, Any] | None = None
    """None until the answer is complete."""
    usage: dict[str, int] = field(default_factory=dict)

    def as_completion(self) -> CompletionResponse:
        """Return a completion response."""
        return CompletionResponse(text=self.text, delta=self.delta, raw=self.raw, additional_kwargs=dict(self.usage))

    def as_chat(self) -> ChatResponse:
        """Return a chat response.

        Its message carries no additional_kwargs: LlamaIndex would print them into the next prompt.
        """
        message = ChatMessage(role=MessageRole.ASSISTANT, content=self.text)
        return ChatResponse(message=message, delta=self.delta, raw=self.raw, additional_kwargs=dict(self.usage))


def growing_answers(pieces: Generator[StreamPiece, None, None], explain: bool) -> Generator[Answer, None, None]:
    """Yield the answer so far for every piece, and close ``pieces``; the last one carries the figures."""
    text = ""
    with closing(pieces):
        for piece in pieces:
            text += piece.text
            if piece.metrics is None:
                yield Answer(text, piece.text)
            else:
                figures = _figures(piece.metrics, piece.finish_reason)
                explained = {"explanation": piece.explain(text).to_dict()} if explain else {}
                yield Answer(text, piece.text, figures | explained, figures["usage"])


def last_answer(answers: Iterable[Answer]) -> Answer:
    """Return the complete answer."""
    (last,) = deque(answers, maxlen=1)
    return replace(last, delta=None)


def _figures(metrics: GenerationMetrics, finish_reason: str | None) -> dict[str, Any]:
    usage = {
        "prompt_tokens": metrics.prompt_tokens,
        "completion_tokens": metrics.completion_tokens,
        "total_tokens": metrics.prompt_tokens + metrics.completion_tokens,
    }
    return {"usage": usage, "finish_reason": finish_reason, "metrics": metrics.to_dict()}
