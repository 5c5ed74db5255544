"""LlamaIndex chat messages as the role/content pairs an engine takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from llama_index.core.base.llms.types import ChatMessage, ToolCallBlock

from samkv_rag.exceptions import PromptError
from samkv_rag.frameworks.messages import Message, join_system_messages, template_role

_SILENT_BLOCKS = ("cache", "thinking", "tool_call")  # carry no text that the model should read again
_OF_RESULTS = ("tool_call_id", "name")


def engine_messages(messages: Sequence[ChatMessage]) -> list[Message]:
    """Return ``messages`` as role and content, with tool calls and results; neighbouring system messages joined.

    LlamaIndex puts an LLM's ``system_prompt`` before a prompt's own system message.

    Raises:
        PromptError: a message holds something other than text.
    """
    refuse_non_text(messages)
    return join_system_messages(map(_engine_message, messages))


def _engine_message(message: ChatMessage) -> Message:
    converted: Message = {"role": template_role(message.role.value), "content": message.content or ""}
    if calls := [block for block in message.blocks if isinstance(block, ToolCallBlock)]:
        functions = [(call.tool_call_id, {"name": call.tool_name, "arguments": call.tool_kwargs}) for call in calls]
        converted["tool_calls"] = [{"type": "function", "id": id_, "function": called} for id_, called in functions]
    if converted["role"] == "tool":
        converted |= {
            name: message.additional_kwargs[name] for name in _OF_RESULTS if name in message.additional_kwargs
        }
    return converted


def refuse_non_text(messages: Iterable[ChatMessage]) -> None:
    """Raise PromptError when a message holds an image, a document or the like."""
    for message in messages:
        for block in message.blocks:
            if block.block_type != "text" and block.block_type not in _SILENT_BLOCKS:
                raise PromptError(f"a {message.role.value} message holds a {block.block_type} block; send text only")
