"""What an answer was read from, in its response metadata."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, messages_from_dict, messages_to_dict

from langchain_samkv import ChatSamKV
from samkv_rag import Explanation, SamKVEngine
from samkv_rag.exceptions import ConfigurationError
from support import tiny
from tests.scripted import tiny_engine

CHUNKS = [tiny.text(seed, num_words=30) for seed in range(3)]
QUESTION = "\n\n".join([*CHUNKS, "What does the seventh keeper record?"])


def joined(chunks: list[AIMessageChunk]) -> AIMessageChunk:
    first, *others = chunks
    for chunk in others:
        first = first + chunk  # type: ignore[assignment]
    return first


async def drain(llm: ChatSamKV, options: Any) -> list[AIMessageChunk]:
    return [chunk async for chunk in llm.astream(QUESTION, **options)]


FORMS: dict[str, Callable[..., AIMessage]] = {
    "invoke": lambda llm, **options: llm.invoke(QUESTION, **options),
    "bind": lambda llm, **options: llm.bind(**options).invoke(QUESTION),
    "stream": lambda llm, **options: joined(list(llm.stream(QUESTION, **options))),
    "ainvoke": lambda llm, **options: asyncio.run(llm.ainvoke(QUESTION, **options)),
    "astream": lambda llm, **options: joined(asyncio.run(drain(llm, options))),
    "batch": lambda llm, **options: llm.batch([QUESTION], **options)[0],
}
every_form = pytest.mark.parametrize("form", FORMS)


@pytest.fixture(scope="module")
def engine() -> SamKVEngine:
    engine = tiny_engine()
    engine.add_chunks(CHUNKS)
    return engine


@every_form
def test_every_form_explains_itself_where_asked(engine: SamKVEngine, form: str) -> None:
    message = FORMS[form](ChatSamKV(engine=engine, max_tokens=4, explain=True))
    (kept,) = messages_from_dict(json.loads(json.dumps(messages_to_dict([message]))))
    told = Explanation.from_dict(kept.response_metadata["explanation"])
    assert [chunk.text for chunk in told.chunks] == CHUNKS
    assert told.answer == message.text
    assert 0 < told.num_retained <= 0.15 * told.num_tokens + 1
    assert told.chunks[0].blocks


@every_form
def test_documents_stay_out_of_answers_unless_asked_for(engine: SamKVEngine, form: str) -> None:
    llm = ChatSamKV(engine=engine, max_tokens=4)
    message = FORMS[form](llm)
    assert "explanation" not in message.response_metadata
    assert CHUNKS[0] not in str(message)
    assert "explanation" in FORMS[form](llm, explain=True).response_metadata


def test_a_call_may_say_no(engine: SamKVEngine) -> None:
    llm = ChatSamKV(engine=engine, max_tokens=4, explain=True)
    assert "explanation" not in llm.invoke(QUESTION, explain=False).response_metadata
    with pytest.raises(ConfigurationError, match="explain is 1; it must be True or False"):
        llm.invoke(QUESTION, explain=1)


def test_a_cached_answer_is_not_taken_for_one_that_explains(engine: SamKVEngine) -> None:
    plain, explaining = (ChatSamKV(engine=engine, explain=explain) for explain in (False, True))
    assert plain._identifying_params != explaining._identifying_params
