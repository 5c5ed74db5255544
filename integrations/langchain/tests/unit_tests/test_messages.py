"""LangChain messages as role and content."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    RemoveMessage,
    ToolMessage,
)

from langchain_samkv._messages import engine_messages
from samkv_rag.exceptions import PromptError


def test_roles_are_those_of_chat_templates() -> None:
    messages = [AIMessageChunk(content="x"), *(ChatMessage("x", role=role) for role in ("developer", "critic"))]
    assert [message["role"] for message in engine_messages(messages)] == ["assistant", "system", "critic"]


def test_tool_calls_and_results_are_as_templates_take_them() -> None:
    call = {"name": "add", "args": {"a": 1}, "id": "abc123def"}
    asked, answered = engine_messages(
        [AIMessage("", tool_calls=[call]), ToolMessage("1", tool_call_id="abc123def", name="add")]
    )
    assert asked == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "id": "abc123def", "function": {"name": "add", "arguments": {"a": 1}}}],
    }
    assert answered == {"role": "tool", "content": "1", "tool_call_id": "abc123def", "name": "add"}


def test_text_blocks_are_joined_and_calls_and_reasoning_left_out() -> None:
    blocks: list[Any] = [
        {"type": "reasoning", "reasoning": "hm"},
        {"type": "text", "text": "The lamp "},
        "turns.",
        {"type": "tool_use", "id": "1", "name": "add", "input": {}},
        {"type": "function_call", "id": "1", "name": "add", "arguments": "{}"},
    ]
    assert engine_messages([AIMessage(blocks)])[0]["content"] == "The lamp turns."


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (HumanMessage([{"type": "image_url"}]), "message of type human holds a block of type 'image_url'"),
        (RemoveMessage(id="1"), "RemoveMessage cannot go to a model"),
    ],
    ids=["image", "no message"],
)
def test_what_a_model_cannot_read_is_refused_by_name(message: BaseMessage, words: str) -> None:
    with pytest.raises(PromptError, match=words):
        engine_messages([message])
