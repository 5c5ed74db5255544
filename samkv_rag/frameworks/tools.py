"""Tool calls as models write them: their grammar, and a parser of answers.

Two formats are understood: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>`` (Qwen, Hermes), and an answer
that is only ``{"name": ..., "parameters": {...}}`` or a list of such objects (Llama 3, Mistral), also in a code fence.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from samkv_rag.exceptions import ConfigurationError
from samkv_rag.grammar import Grammar, json_terms

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_ID_LENGTH = 9  # Mistral's template accepts no other
_MOST_CALLS = 8
"""Limit of the calls in an answer that must call tools, for models that do not stop."""
ANY = "any"


@dataclass(frozen=True)
class ToolCall:
    """A call in an answer."""

    index: int
    """Number of calls before it."""
    name: str | None
    """None if the call cannot be parsed."""
    arguments: str
    """JSON; the whole text if the call cannot be parsed."""
    id: str


def chosen_tool(tool_choice: object, names: Collection[str]) -> str | None:
    """Return the tool that must be called: one of ``names``, ``"any"``, or None if the model decides."""
    choice = tool_choice
    if isinstance(choice, dict):
        function = choice.get("function")
        named = function if isinstance(function, dict) else choice
        choice = named.get("name") or choice.get("type")
    if choice is None or choice is False or choice == "auto":
        return None
    if names and (choice is True or choice in (ANY, "required")):
        return ANY
    if isinstance(choice, str) and choice in names:
        return choice
    allowed = f"it must be auto, any or one of {', '.join(names)}" if names else "there are no tools; give some"
    raise ConfigurationError(f"tool_choice is {tool_choice!r}; {allowed}")


def names_of(tools: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of tools in OpenAI's form."""
    if others := [tool for tool in tools if not isinstance(tool.get("function"), Mapping)]:
        raise ConfigurationError(f"a tool is of type {others[0].get('type')!r}; give functions only")
    return [tool["function"]["name"] for tool in tools]


def answer_grammar(
    template: str,
    tools: Sequence[Mapping[str, Any]] = (),
    chosen: str | None = None,
    schema: Mapping[str, Any] | bool | None = None,
    parallel: bool = False,
    lenient: bool = False,
) -> Grammar | None:
    """Return the grammar of an answer that must call a tool or fit a schema; None if neither.

    The chat ``template`` shows the format of calls; a prompt may quote another one. If the model decides, ``schema``
    applies to answers without a call. Only if it may call any tool, ``parallel`` allows several calls.
    """
    if not chosen and schema is None:
        return None
    is_marked, answers, call = _OPEN in template, [], ""
    if not chosen and schema is not None:
        answers.append(json_terms(schema, lenient))
    if functions := [tool["function"] for tool in tools if chosen in (None, ANY, tool["function"]["name"])]:
        most = _MOST_CALLS if parallel and is_marked and chosen in (None, ANY) else 1
        opening, closing = (json.dumps(f"{_OPEN}\n"), json.dumps(f"\n{_CLOSE}")) if is_marked else ("", "")
        answers.append(f'call ("\\n" call){{0,{most - 1}}}' if most > 1 else "call")
        call = f"\ncall: {opening} ({' | '.join(_call_terms(one, is_marked, lenient) for one in functions)}) {closing}"
    return Grammar(f"start: {' | '.join(answers)}{call}")


def _call_terms(function: Mapping[str, Any], is_marked: bool, lenient: bool) -> str:
    name, arguments = json.dumps(function["name"]), "arguments" if is_marked else "parameters"
    schema = {"type": "object", "properties": {}} | dict(function.get("parameters") or {})
    opening = json.dumps(f'{{"name": {name}, "{arguments}": ')
    return f'{opening} {json_terms(schema, lenient)} "}}"'


class ToolCalls:
    """Finds tool calls in a streamed answer; holds back text that may become a call.

    Without ``tools``, all is text. Unless ``parallel``, all calls but the first are dropped.
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]], parallel: bool = True) -> None:
        self._names = names_of(tools)
        self._most = sys.maxsize if parallel else 1
        self._held = ""
        self._num_calls = 0
        self._has_text = False

    def add(self, text: str) -> Iterator[str | ToolCall]:
        """Add a piece, and yield the text and calls that are now certain."""
        if not self._names:
            yield from self._text(text)
            return
        self._held += text
        while found := _first_call(self._held):
            before, call, self._held = found
            yield from self._text(before.rstrip())
            yield from self._calls([self._as_call(call)])
        is_first = not (self._has_text or self._num_calls)
        may_be_plain_call = is_first and self._held.lstrip()[:1] in ("{", "[", "`")
        if _OPEN not in self._held and not may_be_plain_call:
            sure = len(self._held) - _length_held_back(self._held)
            released, self._held = self._held[:sure], self._held[sure:]
            yield from self._text(released)

    def finish(self) -> Iterator[str | ToolCall]:
        """Yield what was held back, at the end of the answer."""
        calls = _plain_calls(self._held)
        if calls and all(name in self._names for name, _ in calls):  # other JSON is an ordinary answer
            yield from self._calls(calls)
        elif _OPEN in self._held:
            before, _, unfinished = self._held.partition(_OPEN)
            yield from self._text(before.rstrip())
            yield from self._calls([self._as_call(unfinished)])
        else:
            yield from self._text(self._held.rstrip() if self._num_calls else self._held)

    def _text(self, text: str) -> Iterator[str]:
        if text:
            self._has_text = True
            yield text

    def _as_call(self, text: str) -> tuple[str | None, str]:
        return _as_call(_parsed(text)) or (None, _OPEN + text)

    def _calls(self, calls: Iterable[tuple[str | None, str]]) -> Iterator[ToolCall]:
        for name, arguments in calls:
            self._num_calls += 1
            if self._num_calls <= self._most:
                yield ToolCall(self._num_calls - 1, name, arguments, uuid4().hex[:_ID_LENGTH])


def _first_call(text: str) -> tuple[str, str, str] | None:
    """Return what is before, in and after the first call of ``text``; None if it has no end yet."""
    before, _, rest = text.partition(_OPEN)
    is_quoted = False  # in an argument, such as a document's text, the tag closes nothing
    for found in re.finditer(rf'\\["\\]|"|{_CLOSE}', rest):
        if found[0] == '"':
            is_quoted = not is_quoted
        elif found[0] == _CLOSE and not is_quoted:
            return before, rest[: found.start()], rest[found.end() :]
    return None


def _length_held_back(text: str) -> int:
    """Return the length of the end of ``text`` that may be the start of a tag, with the white space before it."""
    begun = next((n for n in range(len(_OPEN) - 1, 0, -1) if text.endswith(_OPEN[:n])), 0)
    return len(text) - len(text[: len(text) - begun].rstrip())


def _plain_calls(text: str) -> list[tuple[str, str]]:
    fenced = re.fullmatch(r"\s*```(?:json)?(.*)```\s*", text, re.DOTALL)
    value = _parsed(fenced[1] if fenced else text.strip())
    calls = [_as_call(item) for item in (value if isinstance(value, list) else [value])]
    return [call for call in calls if call] if all(calls) else []


def _as_call(value: Any) -> tuple[str, str] | None:
    """Return name and arguments (as JSON) of a call, or None if ``value`` is not a call."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters"))
    arguments = _parsed(arguments) if isinstance(arguments, str) else arguments
    return (value["name"], json.dumps(arguments, ensure_ascii=False)) if isinstance(arguments, dict) else None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
