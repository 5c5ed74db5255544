"""Tool calls: found in an answer however it is cut into pieces, begun in the model's own way."""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, message_chunk_to_message

from langchain_samkv._tools import ToolCalls, beginning_of_call, chosen_tool
from samkv_rag.exceptions import ConfigurationError

ADD = '{"name": "add", "arguments": {"a": 1, "b": "é"}}'
MARKED = f"<tool_call>\n{ADD}\n</tool_call>"
ADDED = ("add", {"a": 1, "b": "é"})
ANSWERS: dict[str, tuple[str, str, list[Any]]] = {
    "text": ("The lamp <turns> once. ", "The lamp <turns> once. ", []),
    "one call": (MARKED, "", [ADDED]),
    "white space around": (f"\n\n{MARKED}\n", "", [ADDED]),
    "text before": (f"I will add.\n{MARKED}", "I will add.", [ADDED]),
    "two calls": (f"{MARKED}\n{MARKED}", "", [ADDED, ADDED]),
    "text behind": (f"{MARKED}\nDone.", "\nDone.", [ADDED]),
    "plain": ('{"name": "add", "parameters": {"a": 1, "b": "\\u00e9"}}', "", [ADDED]),
    "plain list": (f"[{ADD}, {ADD}]", "", [ADDED, ADDED]),
    "plain in a fence": (f"```json\n{ADD}\n```", "", [ADDED]),
    "a fence around no call": ("```python\nadd(1)\n```", "```python\nadd(1)\n```", []),
    "no arguments": ('<tool_call>{"name": "now", "arguments": {}}</tool_call>', "", [("now", {})]),
    "JSON that is no call": ('{"name": "Bob"}', '{"name": "Bob"}', []),
    "list that is no call": ("[1, 2]", "[1, 2]", []),
    "half a tag": ("a < b and <tool", "a < b and <tool", []),
    "half a plain call": ('{"name": "add", "parameters": {"a"', '{"name": "add", "parameters": {"a"', []),
}


def read(answer: str, piece_chars: int) -> AIMessage:
    reader = ToolCalls()
    pieces = [answer[i : i + piece_chars] for i in range(0, len(answer), piece_chars)]
    chunks: list[AIMessageChunk] = [chunk for piece in pieces for chunk in reader.add(piece)]
    whole = reduce(add, [*chunks, *reader.finish(), AIMessageChunk(content="", chunk_position="last")])
    message = message_chunk_to_message(whole)
    assert isinstance(message, AIMessage)
    return message


@pytest.mark.parametrize("piece_chars", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("case", ANSWERS)
def test_calls_are_found_however_the_answer_is_cut(case: str, piece_chars: int) -> None:
    answer, text, calls = ANSWERS[case]
    message = read(answer, piece_chars)
    assert message.content == text
    assert [(call["name"], call["args"]) for call in message.tool_calls] == calls
    assert message.invalid_tool_calls == []


@pytest.mark.parametrize("piece_chars", [1, 5, 1000])
@pytest.mark.parametrize(
    "body",
    ['{"name": "add", "arguments": {"a"', '{"name": "add", "arguments": [1]}', "add(1)", '{"arguments": {}}', "[]"],
)
@pytest.mark.parametrize("end", ["", "</tool_call>"])
def test_a_call_that_cannot_be_read_is_invalid_and_keeps_its_text(body: str, end: str, piece_chars: int) -> None:
    message = read(f"Well.<tool_call>{body}{end}", piece_chars)
    assert (message.content, message.tool_calls) == ("Well.", [])
    assert [call["args"] for call in message.invalid_tool_calls] == [f"<tool_call>{body}"]


def test_text_is_passed_on_as_soon_as_it_is_certain() -> None:
    reader = ToolCalls()
    assert [chunk.text for chunk in reader.add("The lamp")] == ["The lamp"]
    assert [chunk.text for chunk in reader.add(" turns <to")] == [" turns"]
    assert [chunk.text for chunk in reader.add("p>")] == [" <top>"]


def test_ids_are_their_own_and_fit_every_template() -> None:
    ids = [call["id"] for call in read(f"{MARKED}\n{MARKED}", 5).tool_calls]
    assert len(set(ids)) == 2
    assert all(i is not None and len(i) == 9 and i.isalnum() for i in ids)


@pytest.mark.parametrize(
    ("tool_choice", "chosen"),
    [
        (None, None),
        (False, None),
        ("auto", None),
        (True, "any"),
        ("any", "any"),
        ("required", "any"),
        ("add", "add"),
        ({"type": "function", "function": {"name": "add"}}, "add"),
    ],
)
def test_a_choice_is_free_any_or_one(tool_choice: object, chosen: str | None) -> None:
    assert chosen_tool(tool_choice, ["add", "now"]) == chosen


@pytest.mark.parametrize("tool_choice", ["subtract", {"type": "function", "function": {"name": "subtract"}}, 3])
def test_a_choice_of_no_tool_is_refused(tool_choice: object) -> None:
    with pytest.raises(ConfigurationError, match=r"tool_choice is .*; it must be auto, any or one of add, now"):
        chosen_tool(tool_choice, ["add", "now"])


def test_a_call_is_begun_as_the_template_asks_for_it() -> None:
    assert beginning_of_call("... within <tool_call></tool_call> ...", "any") == '<tool_call>\n{"name": "'
    assert beginning_of_call("<tool_call>", "add") == '<tool_call>\n{"name": "add", "arguments": {'
    assert beginning_of_call("Respond with JSON", "add") == '{"name": "add", "parameters": {'
