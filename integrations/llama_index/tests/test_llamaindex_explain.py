"""What an answer was read from, in LlamaIndex's responses and on the LLM."""

from __future__ import annotations

import json

import pytest
from calling import ask, every_form, text_of
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.llms.samkv import SamKVIngestion, SamKVLLM, SamKVPostprocessor

from samkv_rag import Explanation, SamKVEngine
from samkv_rag.exceptions import ConfigurationError
from support import tiny

CHUNKS = [tiny.text(seed) for seed in range(4)]
PROMPT = tiny.rag_prompt(CHUNKS)


@pytest.fixture
def engine(tiny_engine: SamKVEngine) -> SamKVEngine:
    tiny_engine.add_chunks(CHUNKS)
    return tiny_engine


@every_form
def test_every_form_explains_itself_only_where_asked(engine: SamKVEngine, form: str) -> None:
    llm = SamKVLLM.from_engine(engine, max_tokens=4)
    silent = ask(llm, form, PROMPT)
    assert "explanation" not in silent.raw
    assert CHUNKS[0] not in str(silent), "documents stay out of responses"
    response = ask(llm, form, PROMPT, explain=True)
    told = Explanation.from_dict(json.loads(json.dumps(response.raw["explanation"])))
    assert [chunk.text for chunk in told.chunks] == CHUNKS
    assert told.answer == text_of(response)
    assert told == llm.last_explanation
    assert 0 < told.num_retained <= 0.15 * told.num_tokens + 1
    assert told.chunks[0].blocks


def test_a_call_may_say_no(engine: SamKVEngine) -> None:
    llm = SamKVLLM.from_engine(engine, max_tokens=4, explain=True)
    for explain in (True, False, None):
        assert ("explanation" in llm.complete(PROMPT, explain=explain).raw) == (explain is not False)
    with pytest.raises(ConfigurationError, match="explain is 'yes'; it must be True or False"):
        llm.complete(PROMPT, explain="yes")


def test_after_a_query_the_llm_tells_what_was_read(engine: SamKVEngine) -> None:
    llm = SamKVLLM.from_engine(engine, max_tokens=4)
    assert llm.last_explanation is None
    nodes = [TextNode(text=text, metadata={"file": f"{number}.md"}) for number, text in enumerate(CHUNKS)]
    index = VectorStoreIndex(SamKVIngestion(llm)(nodes))
    response = index.as_query_engine(llm=llm, similarity_top_k=3, node_postprocessors=[SamKVPostprocessor(llm)]).query(
        "Which record?"
    )
    told = llm.last_explanation
    assert told is not None
    named = told.with_sources({node.text: node.metadata["file"] for node in response.source_nodes})
    assert [chunk.source for chunk in named.chunks] == [node.metadata["file"] for node in response.source_nodes]
    assert told.answer == str(response)
