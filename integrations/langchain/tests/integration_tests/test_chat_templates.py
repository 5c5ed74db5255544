"""Conversations on their way through chat templates that want them otherwise."""

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
TALK = [
    HumanMessage("Hello"),
    HumanMessage("How are you?"),
    AIMessage("Well."),
    AIMessage("Thanks."),
    HumanMessage("Good."),
]


def prompt_of(chat_template: str, messages: Sequence[BaseMessage], monkeypatch: pytest.MonkeyPatch) -> str:
    """The prompt that reaches the engine."""
    engine, prompts = tiny_engine(chat_template), []
    stream = engine.stream
    monkeypatch.setattr(engine, "stream", lambda prompt, **rest: prompts.append(prompt) or stream(prompt, **rest))
    ChatSamKV(engine=engine, max_tokens=1).invoke(messages)
    (prompt,) = prompts
    return str(prompt)


def test_system_messages_are_joined_and_all_else_is_as_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    assert prompt_of(tiny.CHAT_TEMPLATE, [*SYSTEM, *TALK], monkeypatch) == (
        "<|system|>\nBe brief.\n\nBe kind.</s>\n<|user|>\nHello</s>\n<|user|>\nHow are you?</s>\n"
        "<|assistant|>\nWell.</s>\n<|assistant|>\nThanks.</s>\n<|user|>\nGood.</s>\n<|assistant|>\n"
    )


def test_one_that_wants_roles_to_alternate_gets_them_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = prompt_of(ALTERNATING, TALK, monkeypatch)
    assert prompt == "user: Hello\n\nHow are you?\nassistant: Well.\n\nThanks.\nuser: Good.\n"


def test_one_without_system_role_gets_its_text_with_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = prompt_of(NO_SYSTEM, [*SYSTEM, *TALK], monkeypatch)
    assert prompt.startswith("user: Be brief.\n\nBe kind.\n\nHello\n\nHow are you?\nassistant: Well.")


def test_what_fits_in_no_form_is_refused_with_the_templates_words() -> None:
    with pytest.raises(ChatTemplateError, match="must alternate"):
        ChatSamKV(engine=tiny_engine(ALTERNATING)).invoke([AIMessage("Hello"), HumanMessage("Hi")])


def test_a_model_without_template_is_named() -> None:
    with pytest.raises(ChatTemplateError, match="llama has no chat template"):
        ChatSamKV(engine=tiny_engine(chat_template=None)).invoke("Hello")
