"""Engine results as LangChain message chunks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator
from typing import TYPE_CHECKING

from langchain_core.messages import AIMessageChunk
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import tool_call_chunk

from samkv_rag.frameworks.logprobs import logprobs_content
from samkv_rag.frameworks.tools import TextOnly, ToolCall, ToolCalls

if TYPE_CHECKING:
    from samkv_rag import GenerationMetrics, GenerationResult
    from samkv_rag.runtime.stream import AnswerStream


def message_chunks(
    stream: AnswerStream, model_name: str, reader: type[TextOnly | ToolCalls], explain: bool
) -> Generator[tuple[int, AIMessageChunk], None, None]:
    """Yield the answers chunk by chunk, each with the answer's number; its last chunk carries usage and figures."""
    readers: dict[int, TextOnly | ToolCalls] = defaultdict(reader)
    for piece in stream:
        yield from ((piece.index, _said(said)) for said in readers[piece.index].add(piece.text))
    for index, result in enumerate((stream.result, *stream.result.others)):
        yield from ((index, _said(said)) for said in readers[index].finish())
        yield index, _last_chunk(result, model_name, explain)


def _said(said: str | ToolCall) -> AIMessageChunk:
    if isinstance(said, str):
        return AIMessageChunk(content=said)
    # What cannot be read has no name, and keeps its tag: LangChain would complete it to something never said.
    call = tool_call_chunk(name=said.name, args=said.arguments, id=said.id, index=said.index)
    return AIMessageChunk(content="", tool_call_chunks=[call])


def _last_chunk(result: GenerationResult, model_name: str, explain: bool) -> AIMessageChunk:
    metadata = {
        "model_name": model_name,
        "finish_reason": result.finish_reason,
        "metrics": result.metrics.to_dict(),
    }
    if result.logprobs:
        metadata["logprobs"] = {"content": logprobs_content(result.logprobs)}
    if explain:
        metadata["explanation"] = result.explain().to_dict()
    return AIMessageChunk(
        content="", usage_metadata=_usage(result.metrics), response_metadata=metadata, chunk_position="last"
    )


def _usage(metrics: GenerationMetrics) -> UsageMetadata:
    return UsageMetadata(
        input_tokens=metrics.prompt_tokens,
        output_tokens=metrics.completion_tokens,
        total_tokens=metrics.prompt_tokens + metrics.completion_tokens,
        input_token_details=InputTokenDetails(cache_read=metrics.tokens_reused),
    )
