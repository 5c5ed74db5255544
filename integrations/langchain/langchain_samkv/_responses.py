"""Engine results as LangChain message chunks."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessageChunk
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata

from langchain_samkv._tools import TextOnly, ToolCalls

if TYPE_CHECKING:
    from samkv_rag import GenerationMetrics
    from samkv_rag.runtime.stream import AnswerStream


def message_chunks(
    stream: AnswerStream, beginning: str, model_name: str, reader: TextOnly | ToolCalls, explain: bool
) -> Generator[AIMessageChunk, None, None]:
    """Yield the answer chunk by chunk; the last one carries usage and figures.

    ``beginning`` is what the prompt already put into the model's mouth; it is part of the answer.
    """
    yield from reader.add(beginning)
    for piece in stream:
        yield from reader.add(piece.text)
    yield from reader.finish()
    result = stream.result
    explained = {}
    if explain:
        explained = {"explanation": replace(result, text=beginning + result.text).explain().to_dict()}
    yield _last_chunk(model_name, result.finish_reason, result.metrics, explained)


def _last_chunk(
    model_name: str, finish_reason: str, metrics: GenerationMetrics, explained: dict[str, Any]
) -> AIMessageChunk:
    return AIMessageChunk(
        content="",
        usage_metadata=_usage(metrics),
        response_metadata={
            "model_name": model_name,
            "finish_reason": finish_reason,
            "metrics": metrics.to_dict(),
            **explained,
        },
        chunk_position="last",
    )


def _usage(metrics: GenerationMetrics) -> UsageMetadata:
    return UsageMetadata(
        input_tokens=metrics.prompt_tokens,
        output_tokens=metrics.completion_tokens,
        total_tokens=metrics.prompt_tokens + metrics.completion_tokens,
        input_token_details=InputTokenDetails(cache_read=metrics.tokens_reused),
    )
