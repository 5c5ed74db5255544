"""LangChain messages on their way to a chat template."""

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
    SystemMessage,
    ToolMessage,
)

from langchain_samkv._messages import engine_messages
from samkv_rag.exceptions import PromptError


@pytest.mark.parametrize(
    ("message", "role"),
    [
        (SystemMessage("x"), "system"),
        (HumanMessage("x"), "user"),
        (AIMessage("x"), "assistant"),
        (AIMessageChunk(content="x"), "assistant"),
        (ChatMessage(role="developer", content="x"), "system"),
        (ChatMessage(role="critic", content="x"), "critic"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_roles_are_those_of_chat_templates(message: BaseMessage, role: str) -> None:
    assert engine_messages([message]) == [{"role": role, "content": "x"}]


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


def test_text_blocks_are_one_text_and_what_is_not_to_be_read_again_is_left_out() -> None:
    blocks: list[Any] = [
        {"type": "reasoning", "reasoning": "hm"},
        {"type": "text", "text": "The lamp "},
        "turns.",
        {"type": "tool_use", "id": "1", "name": "add", "input": {}},
    ]
    assert engine_messages([AIMessage(blocks)])[0]["content"] == "The lamp turns."


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            HumanMessage([{"type": "image_url", "url": "https://example.org/x"}]),
            "human message holds a block of type 'im",
        ),
        (RemoveMessage(id="1"), "RemoveMessage cannot go to a model"),
    ],
    ids=["image", "no message"],
)
def test_what_a_model_cannot_read_is_refused_by_name(message: BaseMessage, words: str) -> None:
    with pytest.raises(PromptError, match=words):
        engine_messages([message])
