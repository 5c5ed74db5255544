"""What an answer was read from, in LlamaIndex's responses and on the LLM."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.schema import TextNode
from llama_index.llms.samkv import SamKVIngestion, SamKVLLM, SamKVPostprocessor

from samkv_rag import Explanation, SamKVEngine
from samkv_rag.exceptions import ConfigurationError
from support import tiny

CHUNKS = [tiny.text(seed) for seed in range(4)]
PROMPT = tiny.rag_prompt(CHUNKS)
MESSAGES = [ChatMessage(role="user", content=PROMPT)]


async def drain(stream: Awaitable[Any]) -> Any:
    return [response async for response in await stream][-1]


FORMS: dict[str, Callable[..., Any]] = {
    "complete": lambda llm, **options: llm.complete(PROMPT, **options),
    "chat": lambda llm, **options: llm.chat(MESSAGES, **options),
    "stream_complete": lambda llm, **options: list(llm.stream_complete(PROMPT, **options))[-1],
    "stream_chat": lambda llm, **options: list(llm.stream_chat(MESSAGES, **options))[-1],
    "acomplete": lambda llm, **options: asyncio.run(llm.acomplete(PROMPT, **options)),
    "achat": lambda llm, **options: asyncio.run(llm.achat(MESSAGES, **options)),
    "astream_complete": lambda llm, **options: asyncio.run(drain(llm.astream_complete(PROMPT, **options))),
    "astream_chat": lambda llm, **options: asyncio.run(drain(llm.astream_chat(MESSAGES, **options))),
}
every_form = pytest.mark.parametrize("form", FORMS)


@pytest.fixture
def engine(tiny_engine: SamKVEngine) -> SamKVEngine:
    tiny_engine.add_chunks(CHUNKS)
    return tiny_engine


@every_form
def test_every_form_explains_itself_where_asked(engine: SamKVEngine, form: str) -> None:
    llm = SamKVLLM.from_engine(engine, max_tokens=4, explain=True)
    response = FORMS[form](llm)
    told = Explanation.from_dict(json.loads(json.dumps(response.raw["explanation"])))
    assert [chunk.text for chunk in told.chunks] == CHUNKS
    assert told.answer == (response.text if hasattr(response, "text") else response.message.content)
    assert told == llm.last_explanation
    assert 0 < told.num_retained <= 0.15 * told.num_tokens + 1
    assert told.chunks[0].blocks


@every_form
def test_documents_stay_out_of_responses_unless_asked_for(engine: SamKVEngine, form: str) -> None:
    llm = SamKVLLM.from_engine(engine, max_tokens=4)
    response = FORMS[form](llm)
    assert "explanation" not in response.raw
    assert CHUNKS[0] not in str(response)
    assert "explanation" in FORMS[form](llm, explain=True).raw


def test_a_call_may_say_no(engine: SamKVEngine) -> None:
    llm = SamKVLLM.from_engine(engine, max_tokens=4, explain=True)
    assert "explanation" not in llm.complete(PROMPT, explain=False).raw
    assert "explanation" in llm.complete(PROMPT, explain=None).raw
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
