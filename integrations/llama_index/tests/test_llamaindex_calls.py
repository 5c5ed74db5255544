"""The eight ways to call SamKVLLM: responses, events, early ends, threads."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import pytest
from calling import ASYNC_FORMS, aask, ask, call, every_async_form, every_form, text_of
from llama_index.core.callbacks import EventPayload, TokenCountingHandler
from llama_index.llms.samkv import SamKVLLM

from samkv_rag import GenerationResult
from samkv_rag.exceptions import ConfigurationError, PromptTooLongError
from support import tiny

PROMPT = "Who keeps the light?"
Events = Callable[[], list[list[Any]]]


@pytest.fixture
def expected(watched: Any) -> GenerationResult:
    """The engine's own answer."""
    result: GenerationResult = watched.generate([{"role": "user", "content": PROMPT}], max_new_tokens=8)
    return result


@every_form
def test_an_unknown_call_option_is_refused_in_every_form(llm: SamKVLLM, form: str) -> None:
    with pytest.raises(ConfigurationError, match="unknown option num_beams; known are"):
        result = call(llm, form, PROMPT, num_beams=4)
        if form in ASYNC_FORMS:
            asyncio.run(result)  # a stream refuses before it is read


class TestResponses:
    @every_form
    def test_every_form_carries_text_usage_and_metrics(
        self, watched: Any, expected: GenerationResult, form: str
    ) -> None:
        seen: list[Any] = []
        llm = SamKVLLM.from_engine(watched, max_tokens=8, on_metrics=seen.append)
        assert llm.last_metrics is None
        response = ask(llm, form, PROMPT)
        num_prompt = expected.metrics.prompt_tokens
        usage = {"prompt_tokens": num_prompt, "completion_tokens": 8, "total_tokens": num_prompt + 8}
        assert text_of(response) == expected.text
        if "chat" in form:
            assert response.message.additional_kwargs == {}, "LlamaIndex would print them into the next prompt"
        assert response.raw["usage"] == response.additional_kwargs == usage
        assert response.raw["finish_reason"] == "length"
        assert response.raw["metrics"]["completion_tokens"] == 8
        assert len(seen) == 1 and llm.last_metrics is seen[0]

    def test_a_stream_grows_by_its_deltas(self, llm: SamKVLLM, expected: GenerationResult) -> None:
        responses = list(call(llm, "stream_chat", PROMPT))
        assert len(responses) > 2
        assert [r.message.content for r in responses] == list(accumulate(r.delta for r in responses))
        assert text_of(responses[-1]) == expected.text
        assert [r.raw is None for r in responses] == [True] * (len(responses) - 1) + [False]


class TestEvents:
    @every_form
    def test_one_pair_per_call_with_every_token_counted_once(
        self, llm: SamKVLLM, events: Events, dispatched: Any, expected: GenerationResult, form: str
    ) -> None:
        counter = TokenCountingHandler(tokenizer=llm.tokenizer)
        llm.callback_manager.add_handler(counter)
        ask(llm, form, PROMPT)
        assert [len(pair) for pair in events()] == [2]
        assert counter.prompt_llm_token_count == expected.metrics.prompt_tokens
        assert counter.completion_llm_token_count == 8
        kind = "LLMChat" if "chat" in form else "LLMCompletion"
        for end in ("StartEvent", "EndEvent"):
            assert dispatched.count(f"{kind}{end}") == dispatched.count(f"LLMChat{end}", f"LLMCompletion{end}") == 1

    def test_events_have_the_options_of_the_call(self, llm: SamKVLLM, events: Events) -> None:
        llm.complete("Hello", max_tokens=1)
        payload = events()[0][0].payload
        assert (payload[EventPayload.ADDITIONAL_KWARGS], payload[EventPayload.PROMPT]) == ({"max_tokens": 1}, "Hello")

    @every_form
    def test_an_engine_error_ends_the_event_and_comes_through(self, llm: SamKVLLM, events: Events, form: str) -> None:
        with pytest.raises(PromptTooLongError, match="context window is 4096"):
            ask(llm, form, "tide " * tiny.CONTEXT_WINDOW)
        ((_, end),) = events()
        assert EventPayload.EXCEPTION in end.payload


class TestEarlyClose:
    @pytest.mark.parametrize("form", ["stream_complete", "stream_chat"])
    def test_closing_ends_the_generation_and_its_event_at_once(
        self, llm: SamKVLLM, watched: Any, events: Events, dispatched: Any, form: str
    ) -> None:
        """Even with a tracer that keeps the exception, and with it the frames, of the closed stream."""
        stream = call(llm, form, PROMPT)
        next(stream)
        assert watched.num_open_streams == 1
        stream.close()
        assert watched.num_open_streams == 0
        assert dispatched.count("ExceptionEvent") == 1
        assert [len(pair) for pair in events()] == [2]

    def test_dropping_ends_the_generation(self, llm: SamKVLLM, watched: Any) -> None:
        stream = call(llm, "stream_complete", PROMPT)
        next(stream)
        del stream
        gc.collect()
        assert watched.num_open_streams == 0

    @pytest.mark.parametrize("form", ["astream_complete", "astream_chat"])
    def test_closing_an_async_stream_ends_the_generation(
        self, llm: SamKVLLM, watched: Any, dispatched: Any, form: str
    ) -> None:
        async def read_one() -> int:
            stream = await call(llm, form, PROMPT)
            await anext(stream)
            await stream.aclose()
            return int(watched.num_open_streams)

        assert asyncio.run(read_one()) == 0

    @every_async_form
    def test_a_cancelled_call_ends_the_generation(self, watched: Any, form: str) -> None:
        """If a step is running in its thread, the close waits for that step."""
        llm = SamKVLLM.from_engine(watched, max_tokens=2000)
        watched.gate.clear()

        async def cancel_midway() -> None:
            answer = asyncio.create_task(aask(llm, form, PROMPT))
            while not watched.threads:
                await asyncio.sleep(0.005)
            answer.cancel()
            await asyncio.sleep(0.01)
            watched.gate.set()
            with pytest.raises(asyncio.CancelledError):
                await answer
            assert watched.num_open_streams == 0

        asyncio.run(cancel_midway())

    def test_a_stream_never_read_generates_nothing(self, llm: SamKVLLM, watched: Any) -> None:
        call(llm, "stream_complete", PROMPT).close()
        assert watched.calls == []


class TestEventLoop:
    @every_async_form
    def test_other_tasks_run_while_the_engine_works_in_one_thread(
        self, llm: SamKVLLM, watched: Any, expected: GenerationResult, form: str
    ) -> None:
        """The engine waits for a task on the loop, so a blocked loop would block both."""

        async def main() -> Any:
            watched.gate.clear()
            answer = asyncio.create_task(aask(llm, form, PROMPT))
            while not watched.threads:
                await asyncio.sleep(0.01)
            watched.gate.set()
            return await answer

        assert text_of(asyncio.run(asyncio.wait_for(main(), timeout=5))) == expected.text
        assert len(watched.threads) == 1 and threading.get_ident() not in watched.threads
