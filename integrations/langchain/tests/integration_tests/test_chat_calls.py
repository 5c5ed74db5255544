"""ChatSamKV on a tiny random model: options, metrics, closed streams, threads, errors, caches."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import HumanMessage

from langchain_samkv import ChatSamKV
from samkv_rag import Grammar, SamKVEngine
from samkv_rag.exceptions import ConfigurationError, PromptTooLongError
from support import tiny
from tests.calling import QUESTION, aask, ask, awaited_forms, every_form, ingested_engine


@pytest.fixture(scope="module")
def engine() -> SamKVEngine:
    return ingested_engine()


@pytest.fixture
def llm(engine: SamKVEngine) -> ChatSamKV:
    return ChatSamKV(engine=engine, max_tokens=8)


@pytest.fixture
def num_decoded(engine: SamKVEngine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The thread of each decoded token."""
    threads: list[int] = []
    logits = engine.decoder.logits

    def counted(*args: Any) -> Any:
        threads.append(threading.get_ident())
        return logits(*args)

    monkeypatch.setattr(engine.decoder, "logits", counted)
    return threads


@pytest.fixture
def open_streams(engine: SamKVEngine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each of the engine's streams that is being read."""
    streams: list[int] = []
    stream = engine.stream

    def noted(*args: Any, **options: Any) -> Iterator[Any]:
        streams.append(1)
        try:
            yield from stream(*args, **options)
        finally:
            streams.pop()

    monkeypatch.setattr(engine, "stream", noted)
    return streams


class Recorder(BaseCallbackHandler):
    """Keeps tokens and errors, as tracers do."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.errors: list[BaseException] = []

    def on_llm_new_token(self, token: str, **_: Any) -> None:  # type: ignore[override]
        self.tokens.append(token)

    def on_llm_error(self, error: BaseException, **_: Any) -> None:
        self.errors.append(error)


class TestAnswers:
    @every_form
    def test_every_form_has_the_engines_answer(self, llm: ChatSamKV, engine: SamKVEngine, form: str) -> None:
        message, expected = ask(llm, form), engine.generate([{"role": "user", "content": QUESTION}], max_new_tokens=8)
        figures = expected.metrics
        assert message.content == expected.text
        assert llm.get_num_tokens(QUESTION) == engine.count_tokens(QUESTION)
        assert message.usage_metadata == {
            "input_tokens": figures.prompt_tokens,
            "output_tokens": figures.completion_tokens,
            "total_tokens": figures.prompt_tokens + figures.completion_tokens,
            "input_token_details": {"cache_read": figures.tokens_reused},
        }
        assert figures.tokens_reused >= figures.chunk_tokens > 0
        metadata = message.response_metadata
        assert (metadata["model_name"], metadata["finish_reason"]) == ("llama", "length")
        assert metadata["metrics"]["chunks_hit"] == 3
        assert metadata["metrics"]["sequence_ratio"] == figures.sequence_ratio <= 0.15

    @every_form
    def test_errors_of_a_generation_reach_caller_and_callbacks(self, llm: ChatSamKV, form: str) -> None:
        recorder = Recorder()
        with pytest.raises(PromptTooLongError, match="context window is 4096"):
            ask(llm, form, "tide " * tiny.CONTEXT_WINDOW, config={"callbacks": [recorder]})
        assert [type(error) for error in recorder.errors] == [PromptTooLongError]


class TestOptions:
    def test_a_call_and_a_binding_override_the_models(self, llm: ChatSamKV) -> None:
        for bound in (llm, llm.bind(max_tokens=2, method="full_prefill")):
            given = {} if bound is not llm else {"max_new_tokens": 2, "method": "full_prefill"}
            message = bound.invoke(QUESTION, **given)
            assert message.usage_metadata and message.usage_metadata["output_tokens"] == 2
            assert message.response_metadata["metrics"]["method"] == "full_prefill"

    def test_stops_end_the_answer(self, llm: ChatSamKV) -> None:
        whole = str(llm.invoke(QUESTION).content)
        stop = whole[len(whole) // 2 :][:3]
        stopping = llm.model_copy(update={"stop": [stop]})
        for stopped in (llm.invoke(QUESTION, stop=[stop]), stopping.invoke(QUESTION)):
            assert stopped.content == whole[: whole.index(stop)]
            assert stopped.response_metadata["finish_reason"] == "stop"

    def test_n_answers_are_those_of_their_seeds(self, llm: ChatSamKV) -> None:
        options: dict[str, Any] = {"temperature": 1.5, "seed": 3}
        alone = [llm.invoke(QUESTION, **options | {"seed": 3 + i}).content for i in range(3)]
        (answers,) = llm.generate([[HumanMessage(QUESTION)]], n=3, **options).generations
        (later,) = asyncio.run(llm.agenerate([[HumanMessage(QUESTION)]], n=3, **options)).generations
        assert [one.text for one in answers] == [one.text for one in later] == alone
        assert len(set(alone)) > 1
        assert ask(llm, "stream", n=3, **options).content == ask(llm, "astream", n=3, **options).content == alone[0]

    def test_logprobs_are_in_openais_form(self, llm: ChatSamKV, engine: SamKVEngine) -> None:
        message = llm.invoke(QUESTION, logprobs=True, top_logprobs=2)
        prompt = engine.apply_chat_template([{"role": "user", "content": QUESTION}])
        expected = engine.generate(prompt, max_new_tokens=8, logprobs=True, top_logprobs=2).logprobs
        content = message.response_metadata["logprobs"]["content"]
        assert [(one["token"], one["logprob"]) for one in content] == [(e.text, e.logprob) for e in expected]
        assert [len(one["top_logprobs"]) for one in content] == [2] * 8
        assert "logprobs" not in llm.invoke(QUESTION).response_metadata

    def test_a_grammar_is_kept_to(self, llm: ChatSamKV) -> None:
        assert llm.invoke(QUESTION, grammar=Grammar.choices(["left", "right"])).content in ("left", "right")

    @every_form
    def test_an_unknown_option_is_refused_in_every_form(self, llm: ChatSamKV, form: str) -> None:
        with pytest.raises(ConfigurationError, match="unknown option num_beams; known are"):
            ask(llm, form, num_beams=4)


class TestStreams:
    def test_callbacks_get_every_token_and_the_stream_its_last_mark(self, llm: ChatSamKV) -> None:
        recorder = Recorder()
        chunks = list(llm.stream(QUESTION, config={"callbacks": [recorder]}))
        assert recorder.tokens == [chunk.text for chunk in chunks] and len(chunks) > 3
        assert [chunk.chunk_position for chunk in chunks] == [None] * (len(chunks) - 1) + ["last"]

    def test_invoke_reports_tokens_with_streaming(self, engine: SamKVEngine) -> None:
        recorder = Recorder()
        llm = ChatSamKV(engine=engine, max_tokens=8, streaming=True)
        answer = llm.invoke(QUESTION, config={"callbacks": [recorder]})
        assert "".join(recorder.tokens) == answer.content and len(recorder.tokens) > 3

    def test_closing_ends_the_generation_at_once(
        self, llm: ChatSamKV, num_decoded: list[int], open_streams: list[int]
    ) -> None:
        """Even with a tracer that keeps the exception, and with it the frames, of the closed stream."""
        recorder = Recorder()
        stream: Any = llm.stream(QUESTION, max_tokens=200, config={"callbacks": [recorder]})
        next(stream)
        decoded = len(num_decoded)
        assert open_streams
        stream.close()
        assert not open_streams
        assert list(stream) == [] and [type(error) for error in recorder.errors] == [GeneratorExit]
        assert len(num_decoded) == decoded < 20

    def test_closing_an_async_stream_ends_the_generation(self, llm: ChatSamKV, open_streams: list[int]) -> None:
        async def read_one() -> None:
            stream: Any = llm.astream(QUESTION, max_tokens=2000, config={"callbacks": [Recorder()]})
            await anext(stream)
            assert open_streams
            await stream.aclose()
            while open_streams:  # LangChain leaves closing its inner stream to the event loop
                await asyncio.sleep(0.01)

        asyncio.run(asyncio.wait_for(read_one(), timeout=5))

    @awaited_forms
    def test_a_cancelled_caller_ends_the_generation(self, llm: ChatSamKV, num_decoded: list[int], form: str) -> None:
        async def cancel_midway() -> None:
            task = asyncio.create_task(aask(llm, form, max_tokens=2000))
            while not num_decoded:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(cancel_midway())
        assert len(num_decoded) < 1000

    @awaited_forms
    def test_the_event_loop_stays_free(self, llm: ChatSamKV, num_decoded: list[int], form: str) -> None:
        async def main() -> int:
            task, turns = asyncio.create_task(aask(llm, form)), 0
            while not task.done():
                turns += bool(num_decoded)
                await asyncio.sleep(0)
            return turns

        assert asyncio.run(main()) > 8  # more often than there are tokens
        assert len(set(num_decoded)) == 1 and threading.get_ident() not in num_decoded


def test_a_cache_answers_only_the_same_call(engine: SamKVEngine, num_decoded: list[int]) -> None:
    cache = InMemoryCache()
    for method, is_decoded in (("scout", True), ("naive_reuse", True), ("scout", False)):
        before = len(num_decoded)
        ChatSamKV(engine=engine, max_tokens=6, cache=cache, method=method).invoke(QUESTION)
        assert (len(num_decoded) > before) == is_decoded
