"""Explanations in LlamaIndex's responses, on the LLM and in source nodes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from calling import ask, every_form, text_of
from llama_index.core.chat_engine import ContextChatEngine
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode
from llama_index.llms.samkv import SamKVLLM, SamKVPostprocessor

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
def test_every_form_explains_only_if_asked(engine: SamKVEngine, form: str) -> None:
    llm = SamKVLLM.from_engine(engine, max_tokens=4)
    assert llm.last_explanation is None
    silent = ask(llm, form, PROMPT)
    assert "explanation" not in silent.raw
    assert CHUNKS[0] not in str(silent), "documents stay out of responses"
    response = ask(llm, form, PROMPT, explain=True)
    explanation = Explanation.from_dict(json.loads(json.dumps(response.raw["explanation"])))
    assert [chunk.text for chunk in explanation.chunks] == CHUNKS
    assert explanation.answer == text_of(response)
    assert explanation == llm.last_explanation
    assert 0 < explanation.num_retained <= 0.15 * explanation.num_tokens + 1
    assert explanation.chunks[0].blocks


def test_a_call_overrides_the_llms_explain(engine: SamKVEngine) -> None:
    llm = SamKVLLM.from_engine(engine, max_tokens=4, explain=True)
    for explain in (True, False, None):
        assert ("explanation" in llm.complete(PROMPT, explain=explain).raw) == (explain is not False)
    with pytest.raises(ConfigurationError, match="explain is 'yes'; it must be True or False"):
        llm.complete(PROMPT, explain="yes")


class Finds(BaseRetriever):
    """Always returns the same node objects."""

    def __init__(self, nodes: Sequence[NodeWithScore]) -> None:
        super().__init__()
        self._nodes = list(nodes)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self._nodes


@pytest.fixture
def found() -> list[NodeWithScore]:
    texts = [f"  {CHUNKS[0]}\n", *CHUNKS[1:]]
    metadata = {"file": "a.md", "secret": "x"}
    hidden = {"excluded_llm_metadata_keys": ["secret"], "excluded_embed_metadata_keys": ["secret"]}
    return [NodeWithScore(node=TextNode(text=text, metadata=dict(metadata), **hidden)) for text in texts]


def query_engine(llm: SamKVLLM, found: Sequence[NodeWithScore], **options: Any) -> RetrieverQueryEngine:
    return RetrieverQueryEngine.from_args(
        Finds(found), llm=llm, node_postprocessors=[SamKVPostprocessor(llm)], **options
    )


def spans_of(response: Any) -> list[Any]:
    return [item.node.metadata.get("samkv_spans") for item in response.source_nodes]


def expected_spans(explanation: Explanation, found: Sequence[NodeWithScore]) -> list[Any]:
    return [[span._asdict() for span in spans] for spans in explanation.cite(item.text for item in found)]


async def answered(asked: Any, mode: str) -> Any:
    """Return a query engine's response; read a stream to its end first, an async one in another task."""
    response = await asked.aquery("Which record?") if mode.startswith("a") else asked.query("Which record?")
    if "stream" in mode:
        assert not any(spans_of(response)), "spans are known when the stream ends"
    if mode == "stream":
        assert list(response.response_gen)
    if mode == "astream":

        async def read() -> None:
            assert [piece async for piece in response.async_response_gen()]

        await asyncio.create_task(read())
    return response


@pytest.mark.parametrize("mode", ["query", "stream", "aquery", "astream", "refine", "gather"])
async def test_source_nodes_say_which_parts_of_them_were_read(
    engine: SamKVEngine, found: list[NodeWithScore], mode: str
) -> None:
    llm = SamKVLLM.from_engine(engine, max_tokens=4, explain=True)
    before = [item.model_dump_json() for item in found]
    options: dict[str, Any] = {
        "refine": {"response_mode": "refine"},
        "gather": {"response_mode": "accumulate", "use_async": True},
    }.get(mode, {"streaming": "stream" in mode})
    asked = query_engine(llm, found, **options)
    response = await (asyncio.to_thread(asked.query, "Which record?") if mode == "gather" else answered(asked, mode))
    cited = spans_of(response)
    assert all(cited)
    if mode not in ("refine", "gather"):  # these two ask once per node
        assert llm.last_explanation is not None
        assert cited == expected_spans(llm.last_explanation, found)
    for item in response.source_nodes:
        assert item.node.metadata["file"] == "a.md"
        for shown in (MetadataMode.LLM, MetadataMode.EMBED):
            assert "samkv_spans" not in item.node.get_content(metadata_mode=shown)
            assert "secret" not in item.node.get_content(metadata_mode=shown)
    assert [item.model_dump_json() for item in found] == before, "the index's nodes do not change"


@pytest.mark.parametrize("streaming", [False, True])
def test_a_chat_engines_source_nodes_say_so_too(
    engine: SamKVEngine, found: list[NodeWithScore], streaming: bool
) -> None:
    llm = SamKVLLM.from_engine(engine, max_tokens=4, explain=True)
    chat = ContextChatEngine.from_defaults(Finds(found), llm=llm, node_postprocessors=[SamKVPostprocessor(llm)])
    response = chat.stream_chat("Which record?") if streaming else chat.chat("Which record?")
    if streaming:
        assert list(response.response_gen)
    assert llm.last_explanation is not None
    assert spans_of(response) == expected_spans(llm.last_explanation, found)


def test_queries_at_the_same_time_cite_their_own_nodes(engine: SamKVEngine, found: list[NodeWithScore]) -> None:
    llm = SamKVLLM.from_engine(engine, max_tokens=4, explain=True)
    questions = [f"Which record says {word}?" for word in ("tide", "lamp", "granite", "winter")]
    asked = query_engine(llm, found)
    alone = [spans_of(asked.query(question)) for question in questions]
    with ThreadPoolExecutor(4) as threads:
        assert [spans_of(response) for response in threads.map(asked.query, questions)] == alone

    async def together() -> list[Any]:
        return await asyncio.gather(*map(asked.aquery, questions))

    assert [spans_of(response) for response in asyncio.run(together())] == alone
    assert len({str(spans) for spans in alone}) > 1


def test_a_later_answer_changes_no_earlier_response(engine: SamKVEngine, found: list[NodeWithScore]) -> None:
    llm = SamKVLLM.from_engine(engine, max_tokens=4, explain=True)
    response = query_engine(llm, found).query("Which record?")
    cited = spans_of(response)
    llm.complete(tiny.rag_prompt(CHUNKS, "And the lamp of the seventh keeper?"))
    assert llm.last_explanation is not None
    assert expected_spans(llm.last_explanation, found) != cited
    assert spans_of(response) == cited


def test_without_explain_no_node_says_anything(engine: SamKVEngine, found: list[NodeWithScore]) -> None:
    llm = SamKVLLM.from_engine(engine, max_tokens=4)
    response = query_engine(llm, found).query("Which record?")
    llm.complete(tiny.rag_prompt(CHUNKS, "And the lamp?"), explain=True)
    assert spans_of(response) == [None] * len(found)
