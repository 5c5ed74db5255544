"""Conversations adapted to what chat templates accept."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from langchain_samkv import ChatSamKV
from samkv_rag.exceptions import ChatTemplateError
from support import tiny
from tests.scripted import tiny_engine

ALTERNATING = (
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('must alternate') }}{% endif %}"
    "{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + ALTERNATING
SYSTEM = [SystemMessage("Be brief."), SystemMessage("Be kind.")]
TALK = [*map(HumanMessage, ("Hello", "How are you?")), *map(AIMessage, ("Well.", "Thanks.")), HumanMessage("Good.")]


@pytest.mark.parametrize(
    ("chat_template", "messages", "expected"),
    [
        (
            tiny.CHAT_TEMPLATE,
            [*SYSTEM, *TALK],
            "<|system|>\nBe brief.\n\nBe kind.</s>\n<|user|>\nHello</s>\n<|user|>\nHow are you?</s>\n"
            "<|assistant|>\nWell.</s>\n<|assistant|>\nThanks.</s>\n<|user|>\nGood.</s>\n<|assistant|>\n",
        ),
        (ALTERNATING, TALK, "user: Hello\n\nHow are you?\nassistant: Well.\n\nThanks.\nuser: Good.\n"),
        (
            NO_SYSTEM,
            [*SYSTEM, *TALK],
            "user: Be brief.\n\nBe kind.\n\nHello\n\nHow are you?\nassistant: Well.\n\nThanks.\nuser: Good.\n",
        ),
    ],
    ids=["usual", "alternating roles", "no system role"],
)
def test_messages_are_joined_as_the_template_needs(
    chat_template: str, messages: Sequence[BaseMessage], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, prompts = tiny_engine(chat_template), []
    stream = engine.stream
    monkeypatch.setattr(engine, "stream", lambda prompt, **rest: prompts.append(str(prompt)) or stream(prompt, **rest))
    ChatSamKV(engine=engine, max_tokens=1).invoke(messages)
    assert prompts == [expected]


def test_a_model_without_a_template_is_refused() -> None:
    with pytest.raises(ChatTemplateError, match="llama has no chat template"):
        ChatSamKV(engine=tiny_engine(chat_template=None)).invoke("Hello")
