"""Tool calls: found in an answer however it is streamed, and forced in the model's own format."""

from __future__ import annotations

import json
from typing import Any

import pytest

from samkv_rag import Grammar, SamKVEngine
from samkv_rag.exceptions import ConfigurationError
from samkv_rag.frameworks.tools import ToolCall, ToolCalls, answer_grammar, chosen_tool

ADD = '{"name": "add", "arguments": {"a": 1, "b": "é"}}'
MARKED = f"<tool_call>\n{ADD}\n</tool_call>"
ADDED = ("add", {"a": 1, "b": "é"})
ANSWERS: dict[str, tuple[str, str, list[Any]]] = {
    "text": ("The lamp <turns> once. ", "The lamp <turns> once. ", []),
    "one call": (MARKED, "", [ADDED]),
    "white space around": (f"\n\n{MARKED}\n", "", [ADDED]),
    "text before": (f"I will add.\n{MARKED}", "I will add.", [ADDED]),
    "two calls": (f"{MARKED}\n{MARKED}", "", [ADDED, ADDED]),
    "the end of no call": (f"</tool_call> {MARKED}", "</tool_call>", [ADDED]),
    "text behind": (f"{MARKED}\nDone.", "\nDone.", [ADDED]),
    "plain": ('{"name": "add", "parameters": {"a": 1, "b": "\\u00e9"}}', "", [ADDED]),
    "plain list": (f"[{ADD}, {ADD}]", "", [ADDED, ADDED]),
    "plain in a fence": (f"```json\n{ADD}\n```", "", [ADDED]),
    "a fence around no call": ("```python\nadd(1)\n```", "```python\nadd(1)\n```", []),
    "no arguments": ('<tool_call>{"name": "now", "arguments": {}}</tool_call>', "", [("now", {})]),
    "JSON that is no call": ('{"name": "Bob"}', '{"name": "Bob"}', []),
    "list that is no call": ("[1, 2]", "[1, 2]", []),
    "JSON that names no tool": ('{"name": "Bob", "arguments": {}}', '{"name": "Bob", "arguments": {}}', []),
    "a tag in an argument": (
        '<tool_call>{"name": "add", "arguments": {"a": "\\"</tool_call>"}}</tool_call> Done.',
        " Done.",
        [("add", {"a": '"</tool_call>'})],
    ),
    "arguments as text": (
        '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>',
        "",
        [("add", {"a": 1})],
    ),
    "half a tag": ("a < b and <tool", "a < b and <tool", []),
    "half a plain call": ('{"name": "add", "parameters": {"a"', '{"name": "add", "parameters": {"a"', []),
}


def read(answer: str, piece_chars: int) -> tuple[str, list[ToolCall]]:
    reader = ToolCalls(TOOLS)
    pieces = [answer[i : i + piece_chars] for i in range(0, len(answer), piece_chars)]
    said = [*(one for piece in pieces for one in reader.add(piece)), *reader.finish()]
    calls = [one for one in said if isinstance(one, ToolCall)]
    assert [call.index for call in calls] == list(range(len(calls)))
    ids = {call.id for call in calls}
    assert len(ids) == len(calls) and all(len(one) == 9 and one.isalnum() for one in ids), "as Mistral's template wants"
    return "".join(one for one in said if isinstance(one, str)), calls


@pytest.mark.parametrize("piece_chars", [1, 2, 3, 7, 24, 1000])
@pytest.mark.parametrize("case", ANSWERS)
def test_calls_are_found_however_the_answer_is_cut(case: str, piece_chars: int) -> None:
    answer, text, calls = ANSWERS[case]
    said, found = read(answer, piece_chars)
    assert said == text
    assert [(call.name, json.loads(call.arguments)) for call in found] == calls


@pytest.mark.parametrize("piece_chars", [1, 5, 1000])
@pytest.mark.parametrize(
    "body",
    ['{"name": "add", "arguments": {"a"', '{"name": "add", "arguments": [1]}', "add(1)", '{"arguments": {}}', "[]"],
)
@pytest.mark.parametrize("end", ["", "</tool_call>"])
def test_a_call_that_cannot_be_read_has_no_name_and_keeps_its_text(body: str, end: str, piece_chars: int) -> None:
    said, (call,) = read(f"Well.<tool_call>{body}{end}", piece_chars)
    assert (said, call.name, call.arguments) == ("Well.", None, f"<tool_call>{body}")


@pytest.mark.parametrize("case", ["plain list", "two calls"])
def test_of_calls_that_should_not_be_parallel_the_first_counts(case: str) -> None:
    answer = ANSWERS[case][0]
    for reader, num_calls in ((ToolCalls(TOOLS, False), 1), (ToolCalls([]), 0)):
        said = [*reader.add(answer), *reader.finish()]
        assert sum(isinstance(one, ToolCall) for one in said) == num_calls
        assert num_calls or "".join(map(str, said)) == answer


def test_text_is_passed_on_as_soon_as_it_is_certain() -> None:
    reader = ToolCalls(TOOLS)
    assert [*reader.add("The lamp")] == ["The lamp"]
    assert [*reader.add(" turns <to")] == [" turns"]
    assert [*reader.add("p>")] == [" <top>"]


def test_a_choice_is_free_any_or_one() -> None:
    named: dict[str, Any] = {"type": "function", "function": {"name": "add"}}
    one, any_one = {"type": "tool", "name": "add"}, {"type": "any"}
    for chosen, choices in (
        (None, (None, False, "auto", {"type": "auto"})),
        ("any", (True, "any", "required", any_one)),
        ("add", ("add", named, one)),
    ):
        assert [chosen_tool(choice, ["add", "now"]) for choice in choices] == [chosen] * len(choices)
    for choice in ("subtract", {"type": "function", "function": {"name": "subtract"}}, 0, 1, 3):
        with pytest.raises(ConfigurationError, match=r"tool_choice is .*; it must be auto, any or one of add, now"):
            chosen_tool(choice, ["add", "now"])
    with pytest.raises(ConfigurationError, match="tool_choice is 'any'; there are no tools; give some"):
        chosen_tool("any", [])


def keeps(engine: SamKVEngine, grammar: Grammar | None, text: str) -> bool:
    """Whether a text is a whole answer of the grammar."""
    assert grammar is not None
    matcher = engine._guide.matcher(grammar)
    try:
        for token_id in engine.tokenize(text):
            matcher.consume(token_id)
    except ConfigurationError:
        return False
    return bool(matcher._matcher.is_accepting())


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [tool("add", a={"type": "integer"}), tool("now"), {"type": "function", "function": {"name": "bare"}}]
PROMPTS = {"marked": "Call with <tool_call></tool_call>.", "plain": "Respond with JSON."}


def written(form: str, name: str, arguments: Any) -> str:
    if form == "plain":
        return json.dumps({"name": name, "parameters": arguments})
    call = json.dumps({"name": name, "arguments": arguments})
    return f"<tool_call>\n{call}\n</tool_call>"


@pytest.mark.parametrize("form", PROMPTS)
def test_a_call_that_must_be_made_is_written_as_the_prompt_asks_for_it(tiny_engine: SamKVEngine, form: str) -> None:
    calls = {name: written(form, name, {"a": 1} if name == "add" else {}) for name in ("add", "now", "bare")}
    for chosen in ("add", "now", "any"):
        grammar = answer_grammar(PROMPTS[form], TOOLS, chosen)
        for name, call in calls.items():
            assert keeps(tiny_engine, grammar, call) == (chosen in ("any", name))
        assert not keeps(tiny_engine, grammar, f"Well. {calls['add']}")
        assert not keeps(tiny_engine, grammar, written(form, "add", {"a": "one"}))
        assert not keeps(tiny_engine, grammar, written("plain" if form == "marked" else "marked", "add", {"a": 1}))


def test_several_calls_may_be_made_where_that_is_allowed(tiny_engine: SamKVEngine) -> None:
    two = f"{written('marked', 'add', {'a': 1})}\n{written('marked', 'now', {})}"
    for chosen, parallel in (("any", True), ("any", False), ("add", True)):
        grammar = answer_grammar(PROMPTS["marked"], TOOLS, chosen, parallel=parallel)
        assert keeps(tiny_engine, grammar, two) == (chosen == "any" and parallel)


def test_a_free_model_is_kept_to_a_schema_where_it_does_not_call(tiny_engine: SamKVEngine) -> None:
    schema = {"type": "object", "properties": {"b": {"type": "boolean"}}, "required": ["b"]}
    assert answer_grammar(PROMPTS["marked"], TOOLS) is None
    for tools in ([], TOOLS):
        grammar = answer_grammar(PROMPTS["marked"], tools, schema=schema)
        assert keeps(tiny_engine, grammar, '{"b": true}')
        assert keeps(tiny_engine, grammar, written("marked", "add", {"a": 1})) == bool(tools)
        assert not keeps(tiny_engine, grammar, "Well.")
    must = answer_grammar(PROMPTS["marked"], TOOLS, "add", schema)
    assert not keeps(tiny_engine, must, '{"b": true}')


@pytest.mark.parametrize("answer", ["```" + "\n" * 100_000 + "x", "[" * 100_000])
def test_an_answer_that_degenerates_is_read_at_once(answer: str) -> None:
    assert read(answer, len(answer)) == (answer, [])
