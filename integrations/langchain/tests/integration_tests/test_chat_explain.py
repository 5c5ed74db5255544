"""Explanations and citations in answers."""

from __future__ import annotations

import json
from functools import reduce
from operator import add

import pytest
from langchain_core.messages import messages_from_dict, messages_to_dict

from langchain_samkv import ChatSamKV
from samkv_rag import Explanation, SamKVEngine
from samkv_rag.exceptions import ConfigurationError
from tests.calling import CHUNKS, QUESTION, ask, every_form, ingested_engine
from tests.scripted import scripted_engine


@pytest.fixture(scope="module")
def engine() -> SamKVEngine:
    return ingested_engine()


@every_form
def test_every_form_explains_and_cites_if_asked(engine: SamKVEngine, form: str) -> None:
    llm = ChatSamKV(engine=engine, max_tokens=4)
    silent, message = ask(llm, form), ask(llm, form, explain=True)
    assert "explanation" not in silent.response_metadata
    assert CHUNKS[0] not in str(silent), "documents stay out of answers"
    (kept,) = messages_from_dict(json.loads(json.dumps(messages_to_dict([message]))))
    explanation = Explanation.from_dict(kept.response_metadata["explanation"])
    assert [chunk.text for chunk in explanation.chunks] == CHUNKS
    assert explanation.answer == message.text == silent.content, "without explain, content is text"
    assert 0 < explanation.num_retained <= 0.15 * explanation.num_tokens + 1
    assert explanation.chunks[0].blocks

    (block,) = message.content_blocks
    assert (block["type"], block["text"]) == ("text", silent.content)
    assert {citation["type"] for citation in block["annotations"]} == {"citation"}
    found = [one["extras"] | {"cited_text": one["cited_text"]} for one in block["annotations"]]
    expected = [
        span._asdict() | {"digest": chunk.digest, "cited_text": chunk.text[span.start_char : span.stop_char]}
        for chunk in explanation.chunks
        for span in explanation.cite([chunk.text])[0]
    ]
    assert sorted(map(str, found)) == sorted(map(str, expected))
    scores = [span["score"] for span in found if span["score"] is not None]
    assert scores == sorted(scores, reverse=True)
    assert [span["score"] for span in found][: len(scores)] == scores, "strongest first over all chunks"


def test_a_streams_last_chunk_has_the_citations(engine: SamKVEngine) -> None:
    *before, last = ChatSamKV(engine=engine, max_tokens=4).stream(QUESTION, explain=True)
    assert last.content_blocks[0]["annotations"]
    assert not any("annotations" in block for chunk in before for block in chunk.content_blocks)


def test_an_answer_that_cites_goes_back_as_its_text(engine: SamKVEngine) -> None:
    llm = ChatSamKV(engine=engine, max_tokens=4)
    answers = [llm.invoke(QUESTION, explain=explain) for explain in (False, True)]
    metrics = [
        llm.invoke([("human", QUESTION), answer, ("human", "And then?")]).response_metadata["metrics"]
        for answer in answers
    ]
    assert metrics[0]["prompt_tokens"] == metrics[1]["prompt_tokens"]


def test_calls_and_objects_are_read_from_explained_answers() -> None:
    llm = ChatSamKV(engine=scripted_engine(), max_tokens=64, explain=True)
    schema = {"title": "Keeper", "type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    assert llm.with_structured_output(schema).invoke("Say 'Ann'.") == {"name": "Ann"}
    tool = {"name": "look_up", "description": "Look up.", "parameters": schema}
    calling = llm.bind_tools([tool], tool_choice="any")
    for answer in (calling.invoke("Say 'Ann'."), reduce(add, calling.stream("Say 'Ann'."))):
        assert [call["args"] for call in answer.tool_calls] == [{"name": "Ann"}]
        assert answer.text == ""


def test_a_call_overrides_the_models_explain(engine: SamKVEngine) -> None:
    llm = ChatSamKV(engine=engine, max_tokens=4, explain=True)
    for asked, explains in ((llm, True), (llm.bind(explain=False), False)):
        assert ("explanation" in asked.invoke(QUESTION).response_metadata) == explains
    with pytest.raises(ConfigurationError, match="explain is 1; it must be True or False"):
        llm.invoke(QUESTION, explain=1)
