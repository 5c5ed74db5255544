"""Tools and answers as objects, with a tiny random model that is forced to give them."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from typing import Any, Literal

import pytest
from llama_index.core import Settings, VectorStoreIndex
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, ToolCallBlock
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.program import FunctionCallingProgram
from llama_index.core.prompts import PromptTemplate
from llama_index.core.schema import TextNode
from llama_index.core.tools import FunctionTool
from llama_index.llms.samkv import SamKVLLM
from llama_index.llms.samkv._messages import engine_messages
from pydantic import BaseModel, Field

from samkv_rag import SamKVEngine
from samkv_rag.exceptions import ConfigurationError, PromptError, ToolsUnsupportedError
from samkv_rag.frameworks.handle import EngineHandle
from samkv_rag.frameworks.tools import answer_grammar
from support import tiny

QUESTION = "How high is the tide?"


class Level(BaseModel):
    """A level; its answers are short, because every field is bounded."""

    of: Literal["sea", "lake"]
    metres: int = Field(ge=-10, le=10)
    exact: bool


class Marks(BaseModel):
    """Its schema has uniqueItems."""

    of: set[Literal["sea", "lake"]] = Field(max_length=1)


def measured(lake: bool, exact: bool) -> str:
    """Measure a level."""
    return f"measured {lake} {exact}"


TOOL = FunctionTool.from_defaults(measured)
MEASURED = {f"measured {lake} {exact}" for lake in (True, False) for exact in (True, False)}


@pytest.fixture(scope="module")
def engine() -> SamKVEngine:
    """An engine whose chat template takes tools."""
    tokenizer = tiny.tokenizer_with(tiny.TOOL_TEMPLATE)
    return SamKVEngine.from_pretrained(tiny.model(), tokenizer=tokenizer, method=tiny.method())


@pytest.fixture
def llm(engine: SamKVEngine) -> SamKVLLM:
    return SamKVLLM.from_engine(engine, max_tokens=1500, temperature=1.0, seed=1)


@pytest.fixture
def plain_llm(tiny_engine: SamKVEngine) -> SamKVLLM:
    return SamKVLLM.from_engine(tiny_engine, max_tokens=300, temperature=1.0, seed=1)


class TestTools:
    def test_without_a_chat_template_they_are_refused(self, without_template: Any) -> None:
        llm = SamKVLLM.from_engine(without_template)
        with pytest.raises(ToolsUnsupportedError, match="only a chat template can show"):
            llm.chat_with_tools([TOOL], QUESTION)

    def test_the_template_decides_whether_tools_are_supported(self, llm: SamKVLLM, plain_llm: SamKVLLM) -> None:
        assert isinstance(llm, FunctionCallingLLM)
        assert llm.metadata.is_function_calling_model and not plain_llm.metadata.is_function_calling_model
        with pytest.raises(ToolsUnsupportedError, match="takes no tools, 1 given"):
            plain_llm.chat_with_tools([TOOL], QUESTION)

    @pytest.mark.parametrize("form", ["chat", "achat", "stream_chat", "astream_chat"])
    def test_calls_that_must_be_made_fit(self, llm: SamKVLLM, form: str) -> None:
        response = asyncio.run(_last(getattr(llm, f"{form}_with_tools")([TOOL], QUESTION, tool_required=True)))
        (call,) = llm.get_tool_calls_from_response(response)
        assert TOOL(**call.tool_kwargs).content in MEASURED
        assert response.message.content is None
        again = llm.chat_with_tools([TOOL], QUESTION, tool_required=True).message.blocks
        assert [block.tool_kwargs for block in again if isinstance(block, ToolCallBlock)] == [call.tool_kwargs]

    def test_parallel_calls_may_be_made_if_allowed(self, llm: SamKVLLM) -> None:
        counts = set()
        for seed in range(6):
            response = llm.chat_with_tools(
                [TOOL], QUESTION, tool_required=True, allow_parallel_tool_calls=True, seed=seed
            )
            counts.add(len(llm.get_tool_calls_from_response(response)))
        assert max(counts) > 1

    def test_results_go_back_to_the_model(self, llm: SamKVLLM, engine: SamKVEngine) -> None:
        asked = ChatMessage(role="user", content=QUESTION)
        called = llm.chat_with_tools([TOOL], asked, tool_required=True).message
        (call,) = (block for block in called.blocks if isinstance(block, ToolCallBlock))
        result = ChatMessage(role="tool", content="4.2", additional_kwargs={"tool_call_id": call.tool_call_id})
        answer = llm.chat_with_tools([TOOL], chat_history=[asked, called, result], max_tokens=8, temperature=0.0)
        function = {"name": "measured", "arguments": call.tool_kwargs}
        prompt = engine.apply_chat_template(
            [
                {"role": "user", "content": QUESTION},
                {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]},
                {"role": "tool", "content": "4.2"},
            ],
            tools=[TOOL.metadata.to_openai_tool()],
        )
        assert answer.message.content == engine.generate(prompt, max_new_tokens=8).text

    def test_programs_get_the_call_that_they_require(self, llm: SamKVLLM) -> None:
        program = FunctionCallingProgram.from_defaults(Level, "How high is the {what}?", llm=llm)
        assert isinstance(program(what="tide"), Level)
        assert isinstance(asyncio.run(program.acall(what="tide")), Level)

    def test_streamed_programs_find_the_call(self, llm: SamKVLLM) -> None:
        last = list(llm.stream_chat_with_tools([TOOL], QUESTION, tool_required=True))[-1]
        (call,) = last.message.additional_kwargs["tool_calls"]
        assert call["name"] == "measured"
        said = llm.chat([ChatMessage(role="user", content=QUESTION)], max_tokens=8)
        assert not said.message.additional_kwargs, "LlamaIndex would print them into prompts"

    def test_fields_that_no_grammar_can_express_are_left_to_the_class(self, llm: SamKVLLM) -> None:
        assert isinstance(llm.structured_predict(Marks, PromptTemplate("Which marks?")), Marks)

    @pytest.mark.parametrize("required", [False, True])
    def test_an_answer_without_a_whole_call_is_text_and_says_so(self, llm: SamKVLLM, required: bool) -> None:
        response = llm.chat_with_tools([TOOL], QUESTION, tool_required=required, max_tokens=15)
        assert (response.message.content or "").startswith("<tool_call>") == required
        assert llm.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []
        with pytest.raises(
            ConfigurationError,
            match=r"calls no tool but says .*cut off, so raise max_tokens, or pass",
        ):
            llm.get_tool_calls_from_response(response)

    def test_predict_and_call_calls(self, llm: SamKVLLM) -> None:
        assert llm.predict_and_call([TOOL], QUESTION, tool_required=True).response in MEASURED

    @pytest.mark.parametrize("make", [FunctionAgent, lambda **given: AgentWorkflow(agents=[FunctionAgent(**given)])])
    def test_agents_call_and_then_answer(
        self, llm: SamKVLLM, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # A random model never calls by itself: force one call, then let it answer.
        turns = iter(["any"])
        monkeypatch.setattr(
            "samkv_rag.frameworks.calls.answer_grammar",
            lambda prompt, tools, *_: answer_grammar(prompt, tools, next(turns, None)),
        )
        llm = llm.model_copy(update={"max_tokens": 200})
        seen: list[str] = []

        def note(lake: bool) -> str:
            """Note a level."""
            seen.append(str(lake))
            return "noted"

        async def ask() -> Any:
            return await make(tools=[note], llm=llm, streaming=True).run(QUESTION)

        response = asyncio.run(ask())
        assert len(seen) == 1 and len(response.tool_calls) == 1
        assert response.tool_calls[0].tool_output.content == "noted"
        assert response.response.content


def test_arguments_that_another_llm_gave_as_json_are_read() -> None:
    for given, arguments in (('{"a": 1}', {"a": 1}), ({"a": 1}, {"a": 1})):
        block = ToolCallBlock(tool_name="add", tool_kwargs=given)
        (message,) = engine_messages([ChatMessage(role="assistant", blocks=[block])])
        assert message["tool_calls"][0]["function"] == {"name": "add", "arguments": arguments}
    for wrong in ("[1]", "{", "1"):
        block = ToolCallBlock(tool_name="add", tool_kwargs=wrong)
        with pytest.raises(PromptError, match="the arguments of a call of add are not a JSON object"):
            engine_messages([ChatMessage(role="assistant", blocks=[block])])


class TestObjects:
    @pytest.mark.parametrize("which", ["llm", "plain_llm"])
    def test_every_form_gives_one(self, request: pytest.FixtureRequest, which: str) -> None:
        llm = request.getfixturevalue(which)
        prompt = PromptTemplate("How high is the {what}?")
        level = llm.structured_predict(Level, prompt, what="tide")
        assert isinstance(level, Level)
        assert asyncio.run(llm.astructured_predict(Level, prompt, what="tide")) == level
        grown = list(llm.stream_structured_predict(Level, prompt, what="tide"))
        assert grown[-1] == level and len(grown) > 2
        assert llm.as_structured_llm(Level).chat([ChatMessage(role="user", content="How high is the tide?")]).raw

        async def stream() -> list[Any]:
            return [one async for one in await llm.astream_structured_predict(Level, prompt, what="tide")]

        assert asyncio.run(stream())[-1] == level

    @pytest.mark.parametrize("is_async", [False, True])
    def test_each_is_reported_once(self, llm: SamKVLLM, is_async: bool) -> None:
        seen: list[str] = []

        class Handler(BaseEventHandler):
            def handle(self, event: Any, **_: Any) -> None:
                seen.append(type(event).__name__)

        dispatcher, prompt = get_dispatcher(), PromptTemplate("How high is the tide?")
        dispatcher.add_event_handler(handler := Handler())
        try:
            asyncio.run(llm.astructured_predict(Level, prompt)) if is_async else llm.structured_predict(Level, prompt)
        finally:
            dispatcher.event_handlers.remove(handler)
        assert [name for name in seen if "Structured" in name] == [
            "LLMStructuredPredictStartEvent",
            "LLMStructuredPredictEndEvent",
        ]

    def test_a_model_is_loaded_off_the_event_loop(self, llm: SamKVLLM) -> None:
        threads: list[threading.Thread] = []
        engine = llm.engine
        llm._handle = EngineHandle(lambda: threads.append(threading.current_thread()) or engine)

        async def stream() -> None:
            async for _ in await llm.astream_structured_predict(Level, PromptTemplate("How high?")):
                pass

        asyncio.run(stream())
        assert threads and threading.main_thread() not in threads

    def test_the_schema_is_in_the_prompt(self, watched: Any) -> None:
        SamKVLLM.from_engine(watched, max_tokens=300).structured_predict(Level, PromptTemplate("How high?"))
        prompt, options = watched.calls[-1]
        asked = str(prompt)
        assert asked.startswith("<|user|>\nHow high?") and "It must fit this JSON schema" in asked and "metres" in asked
        assert "start: %json" in options["grammar"].lark

    @pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize"])
    def test_query_engines_return_one(self, plain_llm: SamKVLLM, mode: Any) -> None:
        Settings.tokenizer = plain_llm.tokenizer
        index = VectorStoreIndex([TextNode(text=tiny.text(seed)) for seed in range(2)])
        query_engine = index.as_query_engine(llm=plain_llm, output_cls=Level, response_mode=mode)
        assert isinstance(query_engine.query(QUESTION).response, Level)  # type: ignore[union-attr]

    def test_a_cut_off_answer_is_an_error_and_not_empty(self, plain_llm: SamKVLLM) -> None:
        short = plain_llm.model_copy(update={"max_tokens": 5})
        with pytest.raises(ConfigurationError, match="is not a valid Level; it was cut off, raise max_tokens"):
            short.structured_predict(Level, PromptTemplate("How high?"))


async def _last(response: Any) -> Any:
    """Return a stream's last response, or the response itself; await it if needed."""
    if inspect.iscoroutine(response):
        response = await response
    if hasattr(response, "__aiter__"):
        return [one async for one in response][-1]
    return response if hasattr(response, "message") else list(response)[-1]
