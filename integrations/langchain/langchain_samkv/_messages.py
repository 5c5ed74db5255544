"""LangChain messages as the role/content pairs an engine takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, FunctionMessage, ToolMessage
from langchain_core.messages.tool import ToolCall

from samkv_rag.exceptions import PromptError
from samkv_rag.frameworks.messages import Message, template_role

_ROLES = ("system", "user", "assistant", "tool")


def engine_messages(messages: Sequence[BaseMessage]) -> list[Message]:
    """Return ``messages`` as role and content, with tool calls and results in the form chat templates take.

    Raises:
        PromptError: a message holds something other than text, or has no role that a model knows.
    """
    return [_engine_message(message) for message in messages]


def _engine_message(message: BaseMessage) -> Message:
    converted: Message = {"role": _role(message), "content": _text(message)}
    if isinstance(message, AIMessage) and message.tool_calls:
        converted["tool_calls"] = [_function_call(call) for call in message.tool_calls]
    if isinstance(message, ToolMessage):
        converted["tool_call_id"] = message.tool_call_id
    if isinstance(message, (ToolMessage, FunctionMessage)) and message.name:
        converted["name"] = message.name
    return converted


def _role(message: BaseMessage) -> str:
    if isinstance(message, ChatMessage):
        return template_role(message.role)
    role = template_role(message.type.removesuffix("MessageChunk").lower())
    if role not in _ROLES:
        raise PromptError(f"a {type(message).__name__} cannot go to a model; send {', '.join(_ROLES)} messages")
    return role


def _text(message: BaseMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    return "".join(_block_text(message, block) for block in message.content)


def _block_text(message: BaseMessage, block: str | dict[Any, Any]) -> str:
    if isinstance(block, str):
        return block
    kind = block.get("type")
    if kind == "text":
        return str(block["text"])
    if isinstance(message, AIMessage):  # its calls are in tool_calls; its reasoning does not go back to a model
        return ""
    raise PromptError(f"a message of type {message.type} holds a block of type {kind!r}; the model reads text only")


def _function_call(call: ToolCall) -> dict[str, Any]:
    return {"type": "function", "id": call["id"], "function": {"name": call["name"], "arguments": call["args"]}}
