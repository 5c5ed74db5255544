"""The eight ways to call SamKVLLM, on a fake engine: responses, events, early ends, threads."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.callbacks import CallbackManager, EventPayload, TokenCountingHandler
from llama_index.core.prompts import PromptTemplate
from llama_index.llms.samkv import SamKVLLM

from samkv_rag.exceptions import ConfigurationError, PromptError
from samkv_rag.frameworks.streams import aiter_in_thread

MESSAGES = [ChatMessage(role="user", content="Who keeps the light?")]
TEXT = "w0 w1 w2 "


async def drain(stream: Awaitable[Any]) -> Any:
    return [response async for response in await stream][-1]


def last_of(stream: Any) -> Any:
    return list(stream)[-1]


FORMS: dict[str, Callable[[SamKVLLM], Any]] = {
    "complete": lambda llm: llm.complete("Hello"),
    "chat": lambda llm: llm.chat(MESSAGES),
    "stream_complete": lambda llm: last_of(llm.stream_complete("Hello")),
    "stream_chat": lambda llm: last_of(llm.stream_chat(MESSAGES)),
    "acomplete": lambda llm: asyncio.run(llm.acomplete("Hello")),
    "achat": lambda llm: asyncio.run(llm.achat(MESSAGES)),
    "astream_complete": lambda llm: asyncio.run(drain(llm.astream_complete("Hello"))),
    "astream_chat": lambda llm: asyncio.run(drain(llm.astream_chat(MESSAGES))),
}
every_form = pytest.mark.parametrize("form", FORMS)


def text_of(response: Any) -> str:
    return response.text if hasattr(response, "text") else response.message.content


@every_form
def test_an_unknown_call_option_is_refused_in_every_form(fake_llm: SamKVLLM, form: str) -> None:
    call, name = getattr(fake_llm, form), "Hello" if "complete" in form else MESSAGES
    with pytest.raises(ConfigurationError, match="unknown option num_beams; known are"):
        result = call(name, num_beams=4)
        if form.startswith("a"):
            asyncio.run(result)


class TestResponses:
    @every_form
    def test_every_form_carries_text_usage_and_figures(self, fake_llm: SamKVLLM, form: str) -> None:
        response = FORMS[form](fake_llm)
        usage = {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}
        if "chat" in form:
            usage = {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7}
        assert text_of(response) == TEXT
        assert response.raw["usage"] == response.additional_kwargs == usage
        assert response.raw["finish_reason"] == "length"
        assert response.raw["metrics"]["completion_tokens"] == 3

    def test_a_stream_grows_by_its_deltas(self, fake_llm: SamKVLLM) -> None:
        responses = list(fake_llm.stream_chat(MESSAGES))
        assert [r.message.content for r in responses] == ["w0 ", "w0 w1 ", TEXT, TEXT]
        assert "".join(r.delta for r in responses) == TEXT
        assert [r.raw is None for r in responses] == [True, True, True, False]

    def test_the_message_carries_nothing_into_the_next_prompt(self, fake_llm: SamKVLLM) -> None:
        assert fake_llm.chat(MESSAGES).message.additional_kwargs == {}

    @every_form
    def test_metrics_reach_callback_and_property(self, fake_engine: Any, form: str) -> None:
        seen: list[Any] = []
        llm = SamKVLLM.from_engine(fake_engine, max_tokens=3, on_metrics=seen.append)
        assert llm.last_metrics is None
        FORMS[form](llm)
        assert len(seen) == 1 and llm.last_metrics is seen[0]

    def test_the_tokenizer_is_the_models(self, fake_llm: SamKVLLM) -> None:
        assert fake_llm.tokenizer("one three") == [3, 5]


class TestEvents:
    @every_form
    def test_one_pair_per_call(
        self,
        fake_llm: SamKVLLM,
        callbacks: Any,
        callback_manager: CallbackManager,
        dispatched: Any,
        form: str,
    ) -> None:
        fake_llm.callback_manager = callback_manager
        FORMS[form](fake_llm)
        kind = "LLMChat" if "chat" in form else "LLMCompletion"
        assert (len(callbacks.starts), len(callbacks.ends)) == (1, 1)
        assert (dispatched.count(f"{kind}StartEvent"), dispatched.count(f"{kind}EndEvent")) == (1, 1)
        assert dispatched.count("LLMChatStartEvent", "LLMCompletionStartEvent") == 1
        assert dispatched.count("LLMChatEndEvent", "LLMCompletionEndEvent") == 1

    @every_form
    def test_tokens_are_counted_once_and_right(self, fake_llm: SamKVLLM, form: str) -> None:
        counter = TokenCountingHandler(tokenizer=fake_llm.tokenizer)
        fake_llm.callback_manager = CallbackManager([counter])
        FORMS[form](fake_llm)
        assert counter.completion_llm_token_count == 3
        assert counter.prompt_llm_token_count == (4 if "chat" in form else 1)

    def test_predict_makes_one_pair(
        self, fake_llm: SamKVLLM, callbacks: Any, callback_manager: CallbackManager
    ) -> None:
        fake_llm.callback_manager = callback_manager
        assert fake_llm.predict(PromptTemplate("Hello")) == TEXT
        assert (len(callbacks.starts), len(callbacks.ends)) == (1, 1)

    def test_events_carry_the_call_options(
        self, fake_llm: SamKVLLM, callbacks: Any, callback_manager: CallbackManager
    ) -> None:
        fake_llm.callback_manager = callback_manager
        fake_llm.complete("Hello", max_tokens=1)
        assert callbacks.starts[0][EventPayload.ADDITIONAL_KWARGS] == {"max_tokens": 1}
        assert callbacks.starts[0][EventPayload.PROMPT] == "Hello"

    @every_form
    def test_an_engine_error_ends_the_event_and_comes_through(
        self, fake_llm: SamKVLLM, fake_engine: Any, callbacks: Any, callback_manager: CallbackManager, form: str
    ) -> None:
        def fail(*_: Any, **__: Any) -> Any:
            raise PromptError("too long")
            yield

        fake_engine.stream = fail
        fake_llm.callback_manager = callback_manager
        with pytest.raises(PromptError, match="too long"):
            FORMS[form](fake_llm)
        assert len(callbacks.starts) == len(callbacks.ends) == 1
        assert EventPayload.EXCEPTION in callbacks.ends[0]


class TestEarlyClose:
    @pytest.mark.parametrize("form", ["stream_complete", "stream_chat"])
    def test_closing_ends_the_generation_at_once(
        self, fake_llm: SamKVLLM, fake_engine: Any, dispatched: Any, form: str
    ) -> None:
        """Also with a tracer that keeps the exception, and so the frames, of the closed stream."""
        stream = getattr(fake_llm, form)("Hello" if "complete" in form else MESSAGES)
        next(stream)
        assert fake_engine.num_open_streams == 1
        stream.close()
        assert fake_engine.num_open_streams == 0
        assert dispatched.count("ExceptionEvent") == 1

    def test_dropping_ends_the_generation(self, fake_llm: SamKVLLM, fake_engine: Any) -> None:
        stream = fake_llm.stream_complete("Hello")
        next(stream)
        del stream
        gc.collect()
        assert fake_engine.num_open_streams == 0

    def test_closing_ends_the_event(
        self, fake_llm: SamKVLLM, callbacks: Any, callback_manager: CallbackManager
    ) -> None:
        fake_llm.callback_manager = callback_manager
        stream = fake_llm.stream_complete("Hello")
        next(stream)
        stream.close()
        assert len(callbacks.starts) == len(callbacks.ends) == 1

    @pytest.mark.parametrize("form", ["astream_complete", "astream_chat"])
    def test_closing_an_async_stream_ends_the_generation(
        self, fake_llm: SamKVLLM, fake_engine: Any, dispatched: Any, form: str
    ) -> None:
        async def read_one() -> int:
            stream = await getattr(fake_llm, form)("Hello" if "complete" in form else MESSAGES)
            await anext(stream)
            await stream.aclose()
            return fake_engine.num_open_streams

        assert asyncio.run(read_one()) == 0

    @pytest.mark.parametrize("form", ["acomplete", "achat"])
    def test_a_cancelled_call_ends_the_generation(self, fake_engine: Any, form: str) -> None:
        llm = SamKVLLM.from_engine(fake_engine, max_tokens=10_000)
        fake_engine.gate.clear()

        async def cancel_midway() -> None:
            call = asyncio.create_task(llm.acomplete("Hello") if form == "acomplete" else llm.achat(MESSAGES))
            while not fake_engine.num_open_streams:
                await asyncio.sleep(0.005)
            call.cancel()
            fake_engine.gate.set()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert fake_engine.num_open_streams == 0

        asyncio.run(cancel_midway())
        assert threading.get_ident() not in fake_engine.threads

    def test_a_cancelled_reader_ends_the_generation(self, fake_llm: SamKVLLM, fake_engine: Any) -> None:
        """Cancelled while a step runs in its thread: the close waits for that step, then happens."""

        async def cancel_midway() -> None:
            fake_engine.gate.clear()
            reader = asyncio.create_task(drain(fake_llm.astream_complete("Hello")))
            while not fake_engine.num_open_streams:
                await asyncio.sleep(0.01)
            reader.cancel()
            await asyncio.sleep(0.01)
            fake_engine.gate.set()
            with pytest.raises(asyncio.CancelledError):
                await reader

        asyncio.run(cancel_midway())
        assert fake_engine.num_open_streams == 0

    def test_a_stream_never_read_generates_nothing(self, fake_llm: SamKVLLM, fake_engine: Any) -> None:
        fake_llm.stream_complete("Hello").close()
        assert fake_engine.calls == []


class TestEventLoop:
    @pytest.mark.parametrize("form", [form for form in FORMS if form.startswith("a")])
    def test_other_tasks_run_while_the_engine_works(self, fake_llm: SamKVLLM, fake_engine: Any, form: str) -> None:
        """The engine waits for a task on the loop: a blocked loop would never let it go on."""
        call = getattr(fake_llm, form)("Hello" if "complete" in form else MESSAGES)

        async def main() -> Any:
            fake_engine.gate.clear()
            answer = asyncio.create_task(drain(call) if "stream" in form else call)
            while not fake_engine.num_open_streams:
                await asyncio.sleep(0.01)
            fake_engine.gate.set()
            return await answer

        assert text_of(asyncio.run(asyncio.wait_for(main(), timeout=5))) == TEXT
        assert threading.main_thread().ident not in fake_engine.threads

    def test_closing_does_not_wait_for_the_garbage_collector(self) -> None:
        closed: list[bool] = []

        def numbers() -> Generator[int, None, None]:
            try:
                yield from range(3)
            finally:
                closed.append(True)

        async def read_one(source: Generator[int, None, None]) -> None:
            stream = aiter_in_thread(source)
            assert await anext(stream) == 0
            await stream.aclose()

        source = numbers()
        asyncio.run(read_one(source))
        assert closed == [True]

    def test_a_stream_is_read_in_one_thread(self, fake_llm: SamKVLLM, fake_engine: Any) -> None:
        asyncio.run(drain(fake_llm.astream_complete("Hello")))
        assert len(fake_engine.threads) == 1

    def test_many_calls_at_a_time(self, fake_llm: SamKVLLM, fake_engine: Any) -> None:
        async def main() -> list[Any]:
            return await asyncio.gather(*(fake_llm.achat(MESSAGES, max_tokens=n) for n in range(1, 9)))

        texts = [response.message.content for response in asyncio.run(main())]
        assert [len(text.split()) for text in texts] == list(range(1, 9))
