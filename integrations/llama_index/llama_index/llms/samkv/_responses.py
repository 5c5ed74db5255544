"""Engine results as LlamaIndex responses."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, MessageRole

if TYPE_CHECKING:
    from samkv_rag import GenerationMetrics, GenerationResult
    from samkv_rag.runtime.stream import AnswerStream


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


def growing_answers(
    stream: AnswerStream, explain: bool, record: Callable[[GenerationResult], None]
) -> Generator[Answer, None, None]:
    """Yield the answer so far for every piece, and close ``stream``; the last one carries the figures."""
    text = ""
    with closing(stream):
        for piece in stream:
            text += piece.text
            yield Answer(text, piece.text)
        result = stream.result
        record(result)
        figures = _figures(result.metrics, result.finish_reason)
        explained = {"explanation": result.explain().to_dict()} if explain else {}
        yield Answer(result.text, "", figures | explained, figures["usage"])


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
