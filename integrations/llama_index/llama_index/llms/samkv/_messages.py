"""LlamaIndex chat messages as the role/content pairs an engine takes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ToolCallBlock

from samkv_rag.exceptions import PromptError
from samkv_rag.frameworks.messages import Message, template_role

_SKIPPED_BLOCKS = ("cache", "thinking", "tool_call")  # they hold no text for the model


def engine_messages(messages: Sequence[ChatMessage]) -> list[Message]:
    """Return ``messages`` as role and content, with tool calls and results.

    Raises:
        PromptError: a message holds something other than text.
    """
    refuse_non_text(messages)
    return [_engine_message(message) for message in messages]


def _engine_message(message: ChatMessage) -> Message:
    converted: Message = {"role": template_role(message.role.value), "content": message.content or ""}
    if calls := [block for block in message.blocks if isinstance(block, ToolCallBlock)]:
        functions = [(call.tool_call_id, {"name": call.tool_name, "arguments": _arguments(call)}) for call in calls]
        converted["tool_calls"] = [{"type": "function", "id": id_, "function": called} for id_, called in functions]
    if converted["role"] == "tool":
        given = message.additional_kwargs
        converted |= {name: given[name] for name in ("tool_call_id", "name") if name in given}
    return converted


def _arguments(call: ToolCallBlock) -> dict[str, Any]:
    """Return the arguments, which other LLMs' answers have as JSON."""
    given = call.tool_kwargs
    try:
        return dict(json.loads(given) if isinstance(given, str) else given)
    except (ValueError, TypeError) as error:
        raise PromptError(f"the arguments of a call of {call.tool_name} are not a JSON object: {error}") from error


def refuse_non_text(messages: Iterable[ChatMessage]) -> None:
    """Raise PromptError if a message holds an image, a document or anything else that is not text."""
    for message in messages:
        for block in message.blocks:
            if block.block_type != "text" and block.block_type not in _SKIPPED_BLOCKS:
                raise PromptError(f"a {message.role.value} message holds a {block.block_type} block; send text only")
