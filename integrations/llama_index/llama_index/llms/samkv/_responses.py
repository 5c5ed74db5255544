"""Engine results as LlamaIndex responses."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LogProb,
    MessageRole,
    ToolCallBlock,
)

from samkv_rag.frameworks.logprobs import token_bytes
from samkv_rag.frameworks.tools import ToolCall, ToolCalls

if TYPE_CHECKING:
    from samkv_rag import Explanation, GenerationResult
    from samkv_rag.runtime.stream import AnswerStream


@dataclass(frozen=True)
class Answer:
    """The answer so far, before it becomes one of LlamaIndex's two response types."""

    text: str
    delta: str | None = None
    calls: tuple[ToolCall, ...] = ()
    raw: dict[str, Any] | None = None
    """None until the answer is complete."""
    usage: dict[str, int] = field(default_factory=dict)
    logprobs: list[list[LogProb]] | None = None
    """The likeliest tokens at each position, or only the chosen one."""

    def as_completion(self) -> CompletionResponse:
        """Return a completion response."""
        return CompletionResponse(
            text=self.text, delta=self.delta, raw=self.raw, logprobs=self.logprobs, additional_kwargs=dict(self.usage)
        )

    def as_chat(self) -> ChatResponse:
        """Return a chat response.

        Its message has no ``additional_kwargs``, which LlamaIndex would print into prompts, except that programs look
        for streamed calls there.
        """
        message = ChatMessage(role=MessageRole.ASSISTANT, content=self.text if self.text or not self.calls else None)
        message.blocks += [
            ToolCallBlock(tool_call_id=call.id, tool_name=call.name or "", tool_kwargs=json.loads(call.arguments))
            for call in self.calls
        ]
        if self.calls:
            message.additional_kwargs["tool_calls"] = [asdict(call) for call in self.calls]
        usage = dict(self.usage)
        return ChatResponse(
            message=message, delta=self.delta, raw=self.raw, logprobs=self.logprobs, additional_kwargs=usage
        )


def growing_answers(
    stream: AnswerStream,
    reader: ToolCalls,
    record: Callable[[GenerationResult], None],
    explain: Callable[[Explanation], None] | None,
) -> Generator[Answer, None, None]:
    """Yield the answer so far for every piece, then once more with usage and metrics; close ``stream`` at the end.

    ``explain`` is called with the explanation of the answer, which the last one also carries.
    """
    text, calls = "", list[ToolCall]()
    with closing(stream):
        for said in _said(stream, reader):
            delta = ""
            if isinstance(said, ToolCall) and said.name is not None:
                calls.append(said)
            else:  # an unreadable call is shown as text
                delta = said if isinstance(said, str) else said.arguments
                text += delta
            yield Answer(text, delta, tuple(calls))
        result = stream.result
        record(result)
        prompt_tokens, completion_tokens = result.metrics.prompt_tokens, result.num_written_tokens
        usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        }
        raw = {"usage": usage, "finish_reason": result.finish_reason, "metrics": result.metrics.to_dict()}
        if explain is not None:
            explain(explanation := result.explain())
            raw["explanation"] = explanation.to_dict()
        if result.others:
            raw["others"] = [other.text for other in result.others]
        logprobs = [
            [LogProb(token=one.text, logprob=one.logprob, bytes=token_bytes(one.text) or []) for one in likeliest]
            for likeliest in (token.top or (token,) for token in result.logprobs)
        ]
        yield Answer(text, "", tuple(calls), raw, usage, logprobs or None)


def _said(stream: AnswerStream, reader: ToolCalls) -> Iterator[str | ToolCall]:
    for piece in stream:
        if piece.index == 0:
            yield from reader.add(piece.text)
    yield from reader.finish()


def last_answer(answers: Iterable[Answer]) -> Answer:
    """Return the complete answer."""
    (last,) = deque(answers, maxlen=1)
    return replace(last, delta=None)
