"""Tools and structured answers, on a scripted engine that reads the real prompt."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

import pytest
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration
from pydantic import BaseModel, Field

from langchain_samkv import ChatSamKV
from samkv_rag.exceptions import ToolsUnsupportedError
from support import tiny
from tests.scripted import scripted_engine, tiny_engine

QUESTION = "What is the tide at 'North Quay' (7)?"


class Tide(BaseModel):
    """A tide."""

    place: str = Field(description="where")
    hour: int


class Level(BaseModel):
    """A level; its answers are short, because every field is bounded."""

    of: Literal["sea", "lake"]
    metres: int = Field(ge=-10, le=10)
    exact: bool


class TideDict(TypedDict):
    """A tide."""

    place: str
    hour: int


SCHEMAS = {"pydantic": Tide, "typeddict": TideDict, "json schema": Tide.model_json_schema()}


@pytest.fixture
def llm() -> ChatSamKV:
    return ChatSamKV(engine=scripted_engine(), max_tokens=8)


@pytest.fixture
def silent_llm() -> ChatSamKV:
    """A tiny random model without a script, with the plain template."""
    return ChatSamKV(engine=tiny_engine(), max_tokens=8)


class TestTools:
    def test_a_template_without_tools_is_refused_when_bound_or_else_when_called(self, silent_llm: ChatSamKV) -> None:
        with pytest.raises(ToolsUnsupportedError, match=r"the chat template of .* takes no tools, 1 given"):
            silent_llm.bind_tools([Tide])
        later = ChatSamKV(model="a/b", max_tokens=4)
        bound = later.bind_tools([Tide])
        later.engine_handle.loaded = silent_llm.engine
        with pytest.raises(NotImplementedError):  # LangChain's error for a model without tools
            bound.invoke(QUESTION)

    @pytest.mark.parametrize("parallel", [True, False])
    def test_a_random_model_makes_the_calls_it_must(self, parallel: bool) -> None:
        llm = ChatSamKV(engine=tiny_engine(tiny.TOOL_TEMPLATE), max_tokens=1000, temperature=1.0)
        bound = llm.bind_tools([Level], tool_choice="any", parallel_tool_calls=parallel)
        counts = set()
        for seed in range(6):
            message = bound.invoke(QUESTION, seed=seed)
            assert message.content == "" and not message.invalid_tool_calls
            assert all(Level(**call["args"]) for call in message.tool_calls)
            counts.add(len(message.tool_calls))
        assert max(counts) > 1 if parallel else counts == {1}


class TestStructuredOutput:
    @pytest.mark.parametrize("method", ["json_schema", "json_mode", "function_calling"])
    @pytest.mark.parametrize("schema", SCHEMAS)
    def test_answers_are_of_the_schema(self, llm: ChatSamKV, schema: str, method: str) -> None:
        answer = llm.with_structured_output(SCHEMAS[schema], method=method).invoke(QUESTION)
        expected: Any = {"place": "North Quay", "hour": 7}
        assert answer == (Tide(**expected) if schema == "pydantic" else expected)

    def test_a_streamed_answer_grows(self, llm: ChatSamKV) -> None:
        streamed = list(llm.with_structured_output(TideDict).stream(QUESTION))
        assert streamed[-1] == {"place": "North Quay", "hour": 7}
        assert len(streamed) > 1

    @pytest.mark.parametrize("schema", SCHEMAS)
    def test_an_answer_that_does_not_fit_is_an_error(self, silent_llm: ChatSamKV, schema: str) -> None:
        with pytest.raises(OutputParserException):
            silent_llm.with_structured_output(SCHEMAS[schema]).invoke(QUESTION)

    @pytest.mark.parametrize("schema", [TideDict, Tide.model_json_schema()], ids=["typeddict", "json schema"])
    def test_an_answer_of_the_wrong_types_is_an_error(self, llm: ChatSamKV, schema: Any) -> None:
        wrong = llm.with_structured_output(schema).last  # type: ignore[attr-defined]
        with pytest.raises(OutputParserException, match="'late' is not of type 'integer'"):
            wrong.parse('{"place": "North Quay", "hour": "late"}')

    @pytest.mark.parametrize("schema", SCHEMAS)
    def test_an_answer_that_was_cut_off_is_an_error(self, llm: ChatSamKV, schema: str) -> None:
        parser = llm.with_structured_output(SCHEMAS[schema]).last  # type: ignore[attr-defined]
        with pytest.raises(OutputParserException, match="cut off"):
            parser.parse('{"place": "North Quay", "hour": 1')
        answer = ChatGeneration(message=AIMessage("<tool_call>"))
        calling = llm.with_structured_output(SCHEMAS[schema], method="function_calling").last  # type: ignore[attr-defined]
        with pytest.raises(OutputParserException, match="cut off"):
            calling.parse_result([answer])

    @pytest.mark.parametrize("method", ["json_schema", "function_calling"])
    def test_a_random_model_keeps_to_the_schema(self, method: str) -> None:
        llm = ChatSamKV(engine=tiny_engine(tiny.TOOL_TEMPLATE), max_tokens=200, temperature=1.0)
        for seed in range(5):
            chosen = llm.model_copy(update={"seed": seed})
            level = chosen.with_structured_output(Level, method=method).invoke(QUESTION)
            assert isinstance(level, Level)

    def test_include_raw_returns_message_and_result(self, llm: ChatSamKV, silent_llm: ChatSamKV) -> None:
        good = llm.with_structured_output(Tide, include_raw=True).invoke(QUESTION)
        assert good["parsed"] == Tide(place="North Quay", hour=7)
        assert good["raw"].text.startswith('{"place"') and good["parsing_error"] is None
        bad = silent_llm.with_structured_output(Tide, include_raw=True).invoke(QUESTION)
        assert bad["parsed"] is None
        assert bad["raw"].text.startswith('{"place"') and isinstance(bad["parsing_error"], OutputParserException)
