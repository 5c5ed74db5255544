"""Engine results as LangChain message chunks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessageChunk
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.content import Citation
from langchain_core.messages.tool import tool_call_chunk

from samkv_rag.frameworks.logprobs import logprobs_content
from samkv_rag.frameworks.tools import ToolCall, ToolCalls

if TYPE_CHECKING:
    from samkv_rag import Explanation, GenerationResult
    from samkv_rag.runtime.stream import AnswerStream


def message_chunks(
    stream: AnswerStream, model_name: str, reader: Callable[[], ToolCalls], explain: bool
) -> Generator[tuple[int, AIMessageChunk], None, None]:
    """Yield the answers chunk by chunk, each with the answer's number; an answer's last chunk has usage and metrics.

    ``reader`` returns a reader of an answer's tool calls. With ``explain``, content is a block of text, and the last
    chunk also has its citations.
    """
    readers = defaultdict[int, ToolCalls](reader)
    for piece in stream:
        yield from ((piece.index, _chunk(said, explain)) for said in readers[piece.index].add(piece.text))
    for index, result in enumerate((stream.result, *stream.result.others)):
        yield from ((index, _chunk(said, explain)) for said in readers[index].finish())
        yield index, _last_chunk(result, model_name, explain)


def _chunk(said: str | ToolCall, explain: bool) -> AIMessageChunk:
    if isinstance(said, str):
        return AIMessageChunk(content=[_block(said)] if explain else said)
    # An unreadable call has no name and keeps its tag, or LangChain would complete it to a call that was never made.
    call = tool_call_chunk(name=said.name, args=said.arguments, id=said.id, index=said.index)
    return AIMessageChunk(content=[] if explain else "", tool_call_chunks=[call])


def _last_chunk(result: GenerationResult, model_name: str, explain: bool) -> AIMessageChunk:
    metrics = result.metrics
    metadata = {"model_name": model_name, "finish_reason": result.finish_reason, "metrics": metrics.to_dict()}
    content: str | list[str | dict[Any, Any]] = ""
    if result.logprobs:
        metadata["logprobs"] = {"content": logprobs_content(result.logprobs)}
    if explain:
        explanation = result.explain()
        metadata["explanation"] = explanation.to_dict()
        content = [_block("") | {"annotations": _citations(explanation)}]
    usage = UsageMetadata(
        input_tokens=metrics.prompt_tokens,
        output_tokens=metrics.completion_tokens,
        total_tokens=metrics.prompt_tokens + metrics.completion_tokens,
        input_token_details=InputTokenDetails(cache_read=metrics.tokens_reused),
    )
    return AIMessageChunk(content=content, usage_metadata=usage, response_metadata=metadata, chunk_position="last")


def _block(text: str) -> dict[Any, Any]:
    return {"type": "text", "text": text, "index": 0}  # LangChain merges a stream's blocks that have the same index


def _citations(explanation: Explanation) -> list[Citation]:
    """Return what was read of the prompt's chunks, strongest first.

    LangChain's own indices are positions in the answer; ours, in ``extras``, are positions in the chunk.
    """
    digests = {chunk.text: chunk.digest for chunk in explanation.chunks}
    cited = zip(digests, explanation.cite(digests), strict=True)
    spans = [(span, text) for text, of_text in cited for span in of_text]
    return [
        Citation(
            type="citation",
            cited_text=text[span.start_char : span.stop_char],
            extras={**span._asdict(), "digest": digests[text]},
        )
        for span, text in sorted(spans, key=lambda found: found[0].strength, reverse=True)
    ]
