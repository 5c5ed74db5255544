"""What an answer was read from, in its response metadata."""

from __future__ import annotations

import json

import pytest
from langchain_core.messages import messages_from_dict, messages_to_dict

from langchain_samkv import ChatSamKV
from samkv_rag import Explanation, SamKVEngine
from samkv_rag.exceptions import ConfigurationError
from tests.calling import CHUNKS, QUESTION, ask, every_form, ingested_engine


@pytest.fixture(scope="module")
def engine() -> SamKVEngine:
    return ingested_engine()


@every_form
def test_every_form_explains_itself_only_where_asked(engine: SamKVEngine, form: str) -> None:
    llm = ChatSamKV(engine=engine, max_tokens=4)
    silent = ask(llm, form)
    assert "explanation" not in silent.response_metadata
    assert CHUNKS[0] not in str(silent), "documents stay out of answers"
    message = ask(llm, form, explain=True)
    (kept,) = messages_from_dict(json.loads(json.dumps(messages_to_dict([message]))))
    told = Explanation.from_dict(kept.response_metadata["explanation"])
    assert [chunk.text for chunk in told.chunks] == CHUNKS
    assert told.answer == message.text
    assert 0 < told.num_retained <= 0.15 * told.num_tokens + 1
    assert told.chunks[0].blocks


def test_a_model_may_explain_always_and_a_call_say_no(engine: SamKVEngine) -> None:
    llm = ChatSamKV(engine=engine, max_tokens=4, explain=True)
    for asked, explains in ((llm, True), (llm.bind(explain=False), False)):
        assert ("explanation" in asked.invoke(QUESTION).response_metadata) == explains
    with pytest.raises(ConfigurationError, match="explain is 1; it must be True or False"):
        llm.invoke(QUESTION, explain=1)


def test_a_cached_answer_is_not_taken_for_one_that_explains(engine: SamKVEngine) -> None:
    plain, explaining = (ChatSamKV(engine=engine, explain=explain) for explain in (False, True))
    assert plain._identifying_params != explaining._identifying_params
