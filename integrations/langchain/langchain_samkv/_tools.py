"""Tool calls as models write them: how one is forced, and how they are found in an answer.

Two ways to write are understood: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>`` (Qwen,
Hermes) and an answer that is nothing but ``{"name": ..., "parameters": {...}}`` or a list of such
(Llama 3, Mistral), also in a fence of three backticks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from typing import Any
from uuid import uuid4

from langchain_core.messages import AIMessageChunk
from langchain_core.messages.tool import tool_call_chunk

from samkv_rag.exceptions import ConfigurationError

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_FENCED = re.compile(r"\s*```(?:json)?\s*(.*?)\s*```\s*", re.DOTALL)
_ID_LENGTH = 9  # Mistral's template accepts no other
ANY = "any"


def chosen_tool(tool_choice: object, names: Collection[str]) -> str | None:
    """Return which tool must be called: one of ``names``, ``"any"``, or None where the model is free.

    Raises:
        ConfigurationError: ``tool_choice`` is neither the name of a tool nor a known word.
    """
    if isinstance(tool_choice, dict):
        tool_choice = tool_choice.get("function", tool_choice).get("name")
    if tool_choice in (None, False, "auto"):
        return None
    if tool_choice in (True, ANY, "required"):
        return ANY
    if isinstance(tool_choice, str) and tool_choice in names:
        return tool_choice
    raise ConfigurationError(f"tool_choice is {tool_choice!r}; it must be auto, any or one of {', '.join(names)}")


def beginning_of_call(prompt: str, tool: str) -> str:
    """Return how an answer begins that calls ``tool`` (or ``"any"``), in the way that ``prompt`` asks for."""
    opening, arguments = (f"{_OPEN}\n", "arguments") if _OPEN in prompt else ("", "parameters")
    name = "" if tool == ANY else f'{tool}", "{arguments}": {{'
    return f'{opening}{{"name": "{name}'


class TextOnly:
    """Takes an answer as it is."""

    def add(self, text: str) -> Iterator[AIMessageChunk]:
        """Yield ``text``, unless it is empty."""
        if text:
            yield AIMessageChunk(content=text)

    def finish(self) -> Iterator[AIMessageChunk]:
        """Yield nothing: nothing was held back."""
        yield from ()


class ToolCalls:
    """Finds tool calls in an answer that comes piece by piece; what may become one is held back."""

    def __init__(self) -> None:
        self._held = ""
        self._num_calls = 0
        self._has_text = False

    def add(self, text: str) -> Iterator[AIMessageChunk]:
        """Take a piece and yield the text and the calls that it makes certain."""
        self._held += text
        while self._is_marked() and _CLOSE in self._held:
            before, _, rest = self._held.partition(_OPEN)
            call, _, self._held = rest.partition(_CLOSE)
            yield from self._text(before.rstrip())
            yield self._call(call)
        if not self._is_marked() and not self._may_be_plain_call():
            sure = len(self._held) - _length_held_back(self._held)
            released, self._held = self._held[:sure], self._held[sure:]
            yield from self._text(released)

    def finish(self) -> Iterator[AIMessageChunk]:
        """Yield what was held back, once no more text comes."""
        if calls := _plain_calls(self._held):
            yield from map(self._chunk, calls)
        elif self._is_marked():
            before, _, unfinished = self._held.partition(_OPEN)
            yield from self._text(before.rstrip())
            yield self._call(unfinished)
        else:
            yield from self._text(self._held.rstrip() if self._num_calls else self._held)

    def _is_marked(self) -> bool:
        return _OPEN in self._held

    def _may_be_plain_call(self) -> bool:
        """Whether the whole answer so far may turn out to be one JSON value."""
        return not (self._has_text or self._num_calls) and self._held.lstrip()[:1] in ("{", "[", "`")

    def _text(self, text: str) -> Iterator[AIMessageChunk]:
        if text:
            self._has_text = True
            yield AIMessageChunk(content=text)

    def _call(self, text: str) -> AIMessageChunk:
        call = _as_call(_parsed(text))
        # With its tag, or LangChain would complete a half-written call to something never said.
        return self._chunk(call or (None, _OPEN + text))

    def _chunk(self, call: tuple[str | None, str]) -> AIMessageChunk:
        name, arguments = call
        chunk = tool_call_chunk(name=name, args=arguments, id=uuid4().hex[:_ID_LENGTH], index=self._num_calls)
        self._num_calls += 1
        return AIMessageChunk(content="", tool_call_chunks=[chunk])


def _length_held_back(text: str) -> int:
    """Length of the end of ``text`` that may begin a tag, with the white space before it."""
    begun = next((n for n in range(len(_OPEN) - 1, 0, -1) if text.endswith(_OPEN[:n])), 0)
    return len(text) - len(text[: len(text) - begun].rstrip())


def _plain_calls(text: str) -> list[tuple[str | None, str]]:
    fenced = _FENCED.fullmatch(text)
    value = _parsed(fenced[1] if fenced else text)
    calls = [_as_call(item) for item in (value if isinstance(value, list) else [value])]
    return [call for call in calls if call] if all(calls) else []


def _as_call(value: Any) -> tuple[str, str] | None:
    """Return name and arguments (as JSON) of a call, or None where ``value`` is none."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters"))
    return (value["name"], json.dumps(arguments, ensure_ascii=False)) if isinstance(arguments, dict) else None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
