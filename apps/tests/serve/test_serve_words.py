"""Tools, structured and multiple answers, and log probabilities, with the clients of OpenAI and the frameworks."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, Literal

import openai
import pytest
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, Field
from serving import MODEL, Running, serving, tiny_engine

from samkv_rag.frameworks import tools as dialects
from support import tiny

Ask = Callable[..., Any]
ASKED: Any = [{"role": "user", "content": "How high is the tide at the seventh stone?"}]


class Level(BaseModel):
    """A level; every answer that fits it ends."""

    of: Literal["sea", "lake"]
    metres: int = Field(ge=-10, le=10)
    exact: bool


def measured(lake: bool, exact: bool) -> str:
    """Measure a level."""
    return f"{lake} {exact}"


LEVEL: Any = {"type": "function", "function": {"name": "Level", "parameters": Level.model_json_schema()}}
NOW: Any = {"type": "function", "function": {"name": "now"}}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "Level", "schema": Level.model_json_schema()}}
CALL: Any = {"tools": [LEVEL], "tool_choice": "required"}
ONE_CALL: Any = CALL | {"parallel_tool_calls": False}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """A server with a model whose template takes tools."""
    with serving(tiny_engine(tokenizer=tiny.tokenizer_with(tiny.TOOL_TEMPLATE))) as running:
        yield running


@pytest.fixture
def ask(client: openai.OpenAI) -> Ask:
    """A function: options to the response of OpenAI's client. Each seed gives another answer."""
    common: dict[str, Any] = {"model": MODEL, "messages": ASKED, "max_tokens": 1500, "temperature": 1.0, "seed": 1}
    return lambda **options: client.chat.completions.create(**common | options)


def streamed(chunks: Any) -> list[dict[str, Any]]:
    """Join a stream's chunks into answers."""
    answers: dict[int, dict[str, Any]] = defaultdict(lambda: {"content": "", "calls": {}, "reason": None})
    for chunk in chunks:
        for choice in chunk.choices:
            answer = answers[choice.index]
            answer["content"] += choice.delta.content or ""
            answer["reason"] = choice.finish_reason or answer["reason"]
            for call in choice.delta.tool_calls or ():
                name, arguments = answer["calls"].get(call.index, ("", ""))
                function = call.function
                answer["calls"][call.index] = (name + (function.name or ""), arguments + (function.arguments or ""))
    return [answers[index] for index in sorted(answers)]


# -- tools -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "Level"}}])
def test_a_call_that_must_be_made_fits(ask: Ask, choice: Any) -> None:
    options = ONE_CALL | {"tools": [LEVEL, NOW], "tool_choice": choice}
    answer = ask(**options).choices[0]
    assert (answer.finish_reason, answer.message.content) == ("tool_calls", None)
    (call,) = answer.message.tool_calls
    if choice != "required":
        assert Level(**json.loads(call.function.arguments))
    calls = {0: (call.function.name, call.function.arguments)}
    assert streamed(ask(**options, stream=True)) == [{"content": "", "calls": calls, "reason": "tool_calls"}]


def test_several_calls_are_numbered(ask: Ask) -> None:
    options = CALL | {"tools": [LEVEL, NOW]}
    counts = [len(ask(**options, seed=seed).choices[0].message.tool_calls) for seed in range(4)]
    assert max(counts) > 1
    for seed, count in enumerate(counts):
        (answer,) = streamed(ask(**options, seed=seed, stream=True))
        assert list(answer["calls"]) == list(range(count))


def test_results_go_back(server: Running, ask: Ask) -> None:
    message = ask(**CALL).choices[0].message
    results = [{"role": "tool", "tool_call_id": call.id, "content": f"result {call.id}"} for call in message.tool_calls]
    messages = [*ASKED, message.model_dump(), *results]
    answer = ask(tools=[LEVEL], messages=messages, max_tokens=8, temperature=0)
    functions = [{"name": "Level", "arguments": json.loads(call.function.arguments)} for call in message.tool_calls]
    called = [
        {"id": call.id, "type": "function", "function": function}
        for call, function in zip(message.tool_calls, functions, strict=True)
    ]
    spoken = [*ASKED, {"role": "assistant", "content": "", "tool_calls": called}, *results]
    prompt = server.engine.apply_chat_template(spoken, tools=[LEVEL])
    assert answer.choices[0].message.content == server.engine.generate(prompt, max_new_tokens=8).text


def test_a_free_model_speaks_or_calls(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    spoken = ask(tools=[LEVEL], max_tokens=8).choices[0]
    assert (spoken.finish_reason, spoken.message.tool_calls) == ("length", None)
    assert spoken.message.content
    # A random model never calls a tool, so require a call.
    monkeypatch.setattr(
        "samkv_apps.serve.backend.answer_grammar",
        lambda prompt, tools, *_: dialects.answer_grammar(prompt, tools, "any"),
    )
    called = ask(tools=[LEVEL]).choices[0]
    assert (called.finish_reason, len(called.message.tool_calls)) == ("tool_calls", 1)


def test_none_leaves_them_out(server: Running, ask: Ask) -> None:
    answer = ask(tools=[LEVEL], tool_choice="none", max_tokens=8, temperature=0)
    assert answer.choices[0].message.content == server.engine.generate(ASKED, max_new_tokens=8).text


def test_a_call_that_is_cut_off_is_text(ask: Ask) -> None:
    answer = ask(**CALL, max_tokens=20).choices[0]
    text = answer.message.content
    assert (answer.finish_reason, answer.message.tool_calls) == ("length", None)
    assert text.startswith("<tool_call>")
    assert streamed(ask(**CALL, max_tokens=20, stream=True)) == [{"content": text, "calls": {}, "reason": "length"}]


# -- forms -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_fits_its_schema(ask: Ask, stream: bool) -> None:
    found = set()
    for seed in range(4):
        answer = ask(response_format=FORMAT, seed=seed, stream=stream)
        text = streamed(answer)[0]["content"] if stream else answer.choices[0].message.content
        found.add(repr(Level.model_validate_json(text)))
    assert len(found) > 1


def test_so_does_one_to_a_plain_prompt_and_one_that_the_client_parses(client: openai.OpenAI) -> None:
    body = {"response_format": FORMAT}
    answer = client.completions.create(model=MODEL, prompt="The tide:", max_tokens=200, extra_body=body)
    assert Level.model_validate_json(answer.choices[0].text)
    parsed = client.chat.completions.parse(model=MODEL, messages=ASKED, response_format=Level)
    assert isinstance(parsed.choices[0].message.parsed, Level)


def test_one_of_a_free_model_with_tools_fits_or_calls(ask: Ask) -> None:
    kinds = set()
    for seed in range(8):
        message = ask(response_format=FORMAT, tools=[NOW], seed=seed).choices[0].message
        assert message.tool_calls or Level.model_validate_json(message.content)
        kinds.add(bool(message.tool_calls))
    assert kinds == {True, False}


def test_any_object_will_do(ask: Ask) -> None:
    for seed in range(8):
        answer = ask(response_format={"type": "json_object"}, seed=seed, max_tokens=3000).choices[0]
        assert answer.message.content.startswith("{")
        if answer.finish_reason == "stop":
            assert isinstance(json.loads(answer.message.content), dict)


# -- several answers -------------------------------------------------------------------------------


def test_several_answers_are_those_of_their_seeds(ask: Ask) -> None:
    options = {"max_tokens": 12, "extra_body": {"top_k": 40, "repetition_penalty": 1.1, "min_p": 0.001}}
    alone = [ask(**options, seed=1 + i).choices[0].message.content for i in range(3)]
    together = ask(**options, n=3)
    assert [(choice.index, choice.message.content) for choice in together.choices] == list(enumerate(alone))
    assert len(set(alone)) == 3
    assert together.usage.completion_tokens == 36
    chunks = list(ask(**options, n=3, stream=True, stream_options={"include_usage": True}))
    assert [answer["content"] for answer in streamed(chunks)] == alone
    assert chunks[-1].usage.total_tokens == together.usage.total_tokens


def test_each_may_call_tools(ask: Ask) -> None:
    called = [choice.message.tool_calls[0].function.arguments for choice in ask(**ONE_CALL, n=2).choices]
    assert [answer["calls"][0][1] for answer in streamed(ask(**ONE_CALL, n=2, stream=True))] == called


# -- log probabilities -----------------------------------------------------------------------------


def logprobs_of(chunks: Any) -> list[Any]:
    return [one for chunk in chunks if chunk.choices[0].logprobs for one in chunk.choices[0].logprobs.content or ()]


@pytest.mark.parametrize("stop", [None, ["e"]])
def test_log_probabilities_are_the_engines(server: Running, ask: Ask, stop: list[str] | None) -> None:
    options = {"max_tokens": 12, "temperature": 0, "logprobs": True, "top_logprobs": 3, "stop": stop}
    expected = server.engine.generate(ASKED, max_new_tokens=12, logprobs=True, top_logprobs=3, stop=stop).logprobs
    for found in (logprobs_of([ask(**options)]), logprobs_of(ask(**options, stream=True))):
        assert [(one.token, one.logprob) for one in found] == [(one.text, one.logprob) for one in expected]
        others = [[other.token for other in one.top_logprobs] for one in found]
        assert others == [[other.text for other in one.top] for one in expected]
        assert all(one.bytes is None or bytes(one.bytes).decode() == one.token for one in found)


def test_the_older_endpoint_has_its_own_form(server: Running, client: openai.OpenAI) -> None:
    options: Any = {"model": MODEL, "prompt": "The tide", "max_tokens": 8, "logprobs": 2}
    expected = server.engine.generate("The tide", max_new_tokens=8, logprobs=True, top_logprobs=2).logprobs
    found = client.completions.create(**options).choices[0].logprobs
    assert found is not None and found.tokens is not None
    assert found.tokens == [one.text for one in expected]
    assert found.token_logprobs == [one.logprob for one in expected]
    assert found.text_offset == [sum(map(len, found.tokens[:i])) for i in range(8)]
    parts = [chunk.choices[0].logprobs for chunk in client.completions.create(**options, stream=True)]
    assert [offset for part in parts if part for offset in part.text_offset] == found.text_offset


def test_log_probabilities_come_with_calls_too(ask: Ask) -> None:
    whole, parts = ask(**ONE_CALL, logprobs=True), ask(**ONE_CALL, logprobs=True, stream=True)
    tokens = [one.token for one in logprobs_of([whole])]
    assert tokens == [one.token for one in logprobs_of(parts)]
    assert tokens


# -- frameworks ------------------------------------------------------------------------------------


@pytest.fixture
def chat(server: Running) -> ChatOpenAI:
    options: Any = {"base_url": f"{server.url}/v1", "api_key": "none", "max_tokens": 1500}
    return ChatOpenAI(model=MODEL, temperature=1.0, seed=1, **options)


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_gets_structured_answers(chat: ChatOpenAI, method: Any) -> None:
    assert isinstance(chat.with_structured_output(Level, method=method).invoke("How high is it?"), Level)


def test_langchain_calls_tools(chat: ChatOpenAI) -> None:
    bound = chat.bind_tools([tool(measured)], tool_choice="measured")
    (call,) = bound.invoke("How high is it?").tool_calls
    assert tool(measured).invoke(call).content == measured(**call["args"])
    first, *more = bound.stream("How high is it?")
    assert [one["args"] for one in sum(more, first).tool_calls] == [call["args"]]


def test_llama_index_calls_tools_and_gets_structured_answers(server: Running) -> None:
    options: Any = {"api_base": f"{server.url}/v1", "api_key": "x", "max_tokens": 1500, "temperature": 1.0}
    options |= {"is_chat_model": True, "is_function_calling_model": True, "additional_kwargs": {"seed": 1}}
    llm = OpenAILike(model=MODEL, **options)
    response = llm.chat_with_tools([FunctionTool.from_defaults(measured)], "How high is it?", tool_required=True)
    (call, *_) = llm.get_tool_calls_from_response(response)
    assert measured(**call.tool_kwargs)
    structured = llm.as_structured_llm(Level).chat([ChatMessage(role="user", content="How high is it?")])
    assert isinstance(structured.raw, Level)
