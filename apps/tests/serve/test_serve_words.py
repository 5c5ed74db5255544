"""Tools, forms of answers, several answers and log probabilities, for OpenAI's own client and the frameworks'."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, Field
from serving import MODEL, Running, serving, tiny_engine

from samkv_rag.frameworks import tools as dialects
from support import tiny

ASKED: Any = [{"role": "user", "content": "How high is the tide at the seventh stone?"}]


class Level(BaseModel):
    """A level, of which every answer ends."""

    of: Literal["sea", "lake"]
    metres: int = Field(ge=-10, le=10)
    exact: bool


def measured(lake: bool, exact: bool) -> str:
    """Measure a level."""
    return f"{lake} {exact}"


LEVEL: Any = {"type": "function", "function": {"name": "Level", "parameters": Level.model_json_schema()}}
NOW: Any = {"type": "function", "function": {"name": "now"}}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "Level", "schema": Level.model_json_schema()}}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """Of a model whose template takes tools."""
    with serving(tiny_engine(tokenizer=tiny.tokenizer_with(tiny.TOOL_TEMPLATE))) as running:
        yield running


@pytest.fixture
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def options(server: Running) -> dict[str, Any]:
    """For OpenAI's client: a model that says something else for every seed."""
    return {"model": MODEL, "messages": ASKED, "max_tokens": 1500, "temperature": 1.0, "seed": 1}


def streamed(chunks: Any) -> list[dict[str, Any]]:
    """The answers that a stream's chunks make."""
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


class TestTools:
    @pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "Level"}}])
    def test_a_call_that_must_be_made_fits(self, client: openai.OpenAI, options: dict[str, Any], choice: Any) -> None:
        options |= {"tools": [LEVEL, NOW], "tool_choice": choice, "parallel_tool_calls": False}
        answer = client.chat.completions.create(**options).choices[0]
        assert (answer.finish_reason, answer.message.content) == ("tool_calls", None)
        (call,) = answer.message.tool_calls or ()
        if choice != "required":
            assert Level(**json.loads(call.function.arguments))
        (again,) = streamed(client.chat.completions.create(**options, stream=True))
        assert again == {
            "content": "",
            "calls": {0: (call.function.name, call.function.arguments)},
            "reason": "tool_calls",
        }

    def test_several_calls_are_numbered(self, client: openai.OpenAI, options: dict[str, Any]) -> None:
        options |= {"tools": [LEVEL, NOW], "tool_choice": "required"}
        wholes = [client.chat.completions.create(**options | {"seed": seed}) for seed in range(4)]
        counts = [len(whole.choices[0].message.tool_calls or ()) for whole in wholes]
        assert max(counts) > 1
        for seed, count in enumerate(counts):
            (answer,) = streamed(client.chat.completions.create(**options | {"seed": seed}, stream=True))
            assert list(answer["calls"]) == list(range(count))

    def test_results_go_back(self, server: Running, client: openai.OpenAI, options: dict[str, Any]) -> None:
        options |= {"tools": [LEVEL], "tool_choice": "required"}
        message = client.chat.completions.create(**options).choices[0].message
        calls = message.tool_calls or ()
        results = [{"role": "tool", "tool_call_id": call.id, "content": f"result {call.id}"} for call in calls]
        options |= {"messages": [*ASKED, message.model_dump(), *results], "tool_choice": "auto", "max_tokens": 8}
        answer = client.chat.completions.create(**options | {"temperature": 0})
        called = [
            {
                "id": c.id,
                "type": "function",
                "function": {"name": "Level", "arguments": json.loads(c.function.arguments)},
            }
            for c in calls
        ]
        spoken = [*ASKED, {"role": "assistant", "content": "", "tool_calls": called}, *results]
        prompt = server.engine.apply_chat_template(spoken, tools=[LEVEL])
        assert answer.choices[0].message.content == server.engine.generate(prompt, max_new_tokens=8).text

    def test_a_free_model_speaks_or_calls(
        self, client: openai.OpenAI, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        options |= {"tools": [LEVEL]}
        spoken = client.chat.completions.create(**options | {"max_tokens": 8}).choices[0]
        assert (spoken.finish_reason, spoken.message.tool_calls) == ("length", None)
        assert spoken.message.content
        # A random model never calls of its own accord: let it.
        monkeypatch.setattr(
            "samkv_apps.serve.backend.answer_grammar",
            lambda prompt, tools, *_: dialects.answer_grammar(prompt, tools, "any"),
        )
        called = client.chat.completions.create(**options).choices[0]
        assert (called.finish_reason, len(called.message.tool_calls or ())) == ("tool_calls", 1)

    def test_none_leaves_them_out(self, server: Running, client: openai.OpenAI, options: dict[str, Any]) -> None:
        options |= {"tools": [LEVEL], "tool_choice": "none", "max_tokens": 8, "temperature": 0}
        expected = server.engine.generate(ASKED, max_new_tokens=8).text
        assert client.chat.completions.create(**options).choices[0].message.content == expected

    def test_a_call_that_is_cut_off_is_text(self, client: openai.OpenAI, options: dict[str, Any]) -> None:
        options |= {"tools": [LEVEL], "tool_choice": "required", "max_tokens": 20}
        answer = client.chat.completions.create(**options).choices[0]
        assert (answer.finish_reason, answer.message.tool_calls) == ("length", None)
        assert (answer.message.content or "").startswith("<tool_call>")
        (again,) = streamed(client.chat.completions.create(**options, stream=True))
        assert again == {"content": answer.message.content, "calls": {}, "reason": "length"}


class TestForms:
    @pytest.mark.parametrize("stream", [False, True])
    def test_an_answer_fits_its_schema(self, client: openai.OpenAI, options: dict[str, Any], stream: bool) -> None:
        found = set()
        for seed in range(4):
            answer = client.chat.completions.create(
                **options | {"response_format": FORMAT, "seed": seed, "stream": stream}
            )
            text = streamed(answer)[0]["content"] if stream else answer.choices[0].message.content
            found.add(repr(Level.model_validate_json(text)))
        assert len(found) > 1

    def test_so_does_one_to_a_plain_prompt(self, client: openai.OpenAI) -> None:
        body = {"response_format": FORMAT}
        answer = client.completions.create(model=MODEL, prompt="The tide:", max_tokens=200, extra_body=body)
        assert Level.model_validate_json(answer.choices[0].text)

    def test_one_of_a_free_model_with_tools_fits_or_calls(self, client: openai.OpenAI, options: dict[str, Any]) -> None:
        kinds = set()
        for seed in range(8):
            answer = client.chat.completions.create(
                **options | {"response_format": FORMAT, "tools": [NOW], "seed": seed}
            ).choices[0]
            calls = answer.message.tool_calls
            assert calls or Level.model_validate_json(answer.message.content or "")
            kinds.add(bool(calls))
        assert kinds == {True, False}

    def test_the_client_parses_it(self, client: openai.OpenAI, options: dict[str, Any]) -> None:
        assert isinstance(
            client.chat.completions.parse(**options, response_format=Level).choices[0].message.parsed, Level
        )

    def test_any_object_will_do(self, client: openai.OpenAI, options: dict[str, Any]) -> None:
        for seed in range(8):
            answer = client.chat.completions.create(
                **options | {"response_format": {"type": "json_object"}, "seed": seed, "max_tokens": 3000}
            ).choices[0]
            assert (answer.message.content or "").startswith("{")
            if answer.finish_reason == "stop":
                assert isinstance(json.loads(answer.message.content or ""), dict)


class TestSeveralAnswers:
    def test_they_are_those_of_their_seeds(self, client: openai.OpenAI, options: dict[str, Any]) -> None:
        options |= {
            "max_tokens": 12,
            "top_k": 40,
            "extra_body": {"top_k": 40, "repetition_penalty": 1.1, "min_p": 0.001},
        }
        del options["top_k"]
        alone = [
            client.chat.completions.create(**options | {"seed": 1 + i}).choices[0].message.content for i in range(3)
        ]
        together = client.chat.completions.create(**options, n=3)
        assert [choice.message.content for choice in together.choices] == alone
        assert [choice.index for choice in together.choices] == [0, 1, 2]
        assert len(set(alone)) == 3
        assert together.usage is not None
        assert together.usage.completion_tokens == 36
        chunks = list(
            client.chat.completions.create(**options, n=3, stream=True, stream_options={"include_usage": True})
        )
        assert [answer["content"] for answer in streamed(chunks)] == alone
        assert chunks[-1].usage == together.usage.model_copy(
            update={"prompt_tokens_details": chunks[-1].usage.prompt_tokens_details}
        )

    def test_each_may_call_tools(self, client: openai.OpenAI, options: dict[str, Any]) -> None:
        options |= {"tools": [LEVEL], "tool_choice": "required", "n": 2, "parallel_tool_calls": False}
        whole = client.chat.completions.create(**options)
        called = [choice.message.tool_calls[0].function.arguments for choice in whole.choices]
        parts = streamed(client.chat.completions.create(**options, stream=True))
        assert [answer["calls"][0][1] for answer in parts] == called


class TestLogprobs:
    @pytest.mark.parametrize("stop", [None, ["e"]])
    def test_they_are_the_engines(
        self, server: Running, client: openai.OpenAI, options: dict[str, Any], stop: list[str] | None
    ) -> None:
        options |= {"max_tokens": 12, "temperature": 0, "logprobs": True, "top_logprobs": 3, "stop": stop}
        expected = server.engine.generate(ASKED, max_new_tokens=12, logprobs=True, top_logprobs=3, stop=stop).logprobs
        whole = client.chat.completions.create(**options).choices[0].logprobs.content
        parts = [
            one
            for chunk in client.chat.completions.create(**options, stream=True)
            if chunk.choices[0].logprobs is not None
            for one in chunk.choices[0].logprobs.content
        ]
        for found in (whole, parts):
            assert [(one.token, one.logprob) for one in found] == [(one.text, one.logprob) for one in expected]
            assert [[other.token for other in one.top_logprobs] for one in found] == [
                [other.text for other in one.top] for one in expected
            ]
            assert all(one.bytes is None or bytes(one.bytes).decode() == one.token for one in found)

    def test_the_older_endpoint_has_its_own_form(self, server: Running, client: openai.OpenAI) -> None:
        expected = server.engine.generate("The tide", max_new_tokens=8, logprobs=True, top_logprobs=2).logprobs
        found = client.completions.create(model=MODEL, prompt="The tide", max_tokens=8, logprobs=2).choices[0].logprobs
        assert found is not None and found.tokens is not None and found.text_offset is not None
        assert found.tokens == [one.text for one in expected]
        assert found.token_logprobs == [one.logprob for one in expected]
        assert found.text_offset == [sum(map(len, found.tokens[:i])) for i in range(8)]
        offsets: list[int] = []
        for chunk in client.completions.create(model=MODEL, prompt="The tide", max_tokens=8, logprobs=2, stream=True):
            offsets += (chunk.choices[0].logprobs and chunk.choices[0].logprobs.text_offset) or []
        assert offsets == found.text_offset

    def test_they_come_with_calls_too(self, client: openai.OpenAI, options: dict[str, Any]) -> None:
        options |= {"tools": [LEVEL], "tool_choice": "required", "logprobs": True, "parallel_tool_calls": False}
        whole = client.chat.completions.create(**options).choices[0]
        chunks = list(client.chat.completions.create(**options, stream=True))
        parts = [one for c in chunks if c.choices[0].logprobs for one in c.choices[0].logprobs.content or ()]
        assert [one.token for one in parts] == [one.token for one in whole.logprobs.content]


class TestFrameworks:
    @pytest.fixture
    def chat(self, server: Running) -> ChatOpenAI:
        return ChatOpenAI(
            model=MODEL, base_url=f"{server.url}/v1", api_key="none", max_tokens=1500, temperature=1.0, seed=1
        )

    @pytest.mark.parametrize("method", ["json_schema", "function_calling"])
    def test_langchain_gets_structured_answers(self, chat: ChatOpenAI, method: Any) -> None:
        assert isinstance(chat.with_structured_output(Level, method=method).invoke("How high is it?"), Level)

    def test_langchain_calls_tools(self, chat: ChatOpenAI) -> None:
        called = chat.bind_tools([tool(measured)], tool_choice="measured").invoke("How high is it?")
        (call,) = called.tool_calls
        assert tool(measured).invoke(call).content in {
            f"{lake} {exact}" for lake in (True, False) for exact in (True, False)
        }
        whole: Any = None
        for chunk in chat.bind_tools([tool(measured)], tool_choice="measured").stream("How high is it?"):
            whole = chunk if whole is None else whole + chunk
        assert [one["args"] for one in whole.tool_calls] == [call["args"]]

    def test_langchain_gets_several_answers_and_logprobs(self, chat: ChatOpenAI) -> None:
        (answers,) = chat.generate([[HumanMessage("How?")]], n=2, max_tokens=4).generations
        assert len(answers) == 2
        assert len(chat.invoke("How?", max_tokens=4, logprobs=True).response_metadata["logprobs"]["content"]) == 4

    def test_llama_index_calls_tools_and_gets_structured_answers(self, server: Running) -> None:
        llm = OpenAILike(
            model=MODEL,
            api_base=f"{server.url}/v1",
            api_key="x",
            max_tokens=1500,
            temperature=1.0,
            is_chat_model=True,
            is_function_calling_model=True,
            additional_kwargs={"seed": 1},
        )
        response = llm.chat_with_tools([FunctionTool.from_defaults(measured)], "How high is it?", tool_required=True)
        (call, *_) = llm.get_tool_calls_from_response(response)
        assert measured(**call.tool_kwargs)
        structured = llm.as_structured_llm(Level).chat([ChatMessage(role="user", content="How high is it?")])
        assert isinstance(structured.raw, Level)
