"""SamKVPostprocessor: announces the retrieved texts, changes no node, and ranks them where asked."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from llama_index.core.llms import MockLLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import Document, ImageNode, MediaResource, Node, NodeWithScore, TextNode
from llama_index.llms.samkv import SamKVLLM, SamKVPostprocessor

from samkv_rag.exceptions import ConfigurationError

TEXTS = ["A text node.", "A whole document.", "A plain node."]
NODES = [
    TextNode(text=TEXTS[0], metadata={"file_path": "a.md"}),
    Document(text=TEXTS[1]),
    Node(text_resource=MediaResource(text=TEXTS[2])),
    ImageNode(image_path="picture.png"),
    Node(image_resource=MediaResource(data=b"abc")),
    TextNode(text=" \n "),
]


def test_is_a_postprocessor() -> None:
    made = SamKVPostprocessor(SamKVLLM("no/such-model"))  # which is not loaded
    assert isinstance(made, BaseNodePostprocessor)
    assert made.to_dict() == {"class_name": "SamKVPostprocessor", "rerank": False, "top_n": None}


@pytest.mark.parametrize("is_async", [False, True])
def test_announces_texts_without_metadata_and_hands_back_the_same_nodes_unchanged(
    llm: SamKVLLM, watched: Any, is_async: bool
) -> None:
    nodes = [NodeWithScore(node=node, score=1.0) for node in NODES]
    before = [node.model_dump_json() for node in nodes]
    processor = SamKVPostprocessor(llm)
    after = asyncio.run(processor.apostprocess_nodes(nodes)) if is_async else processor.postprocess_nodes(nodes)
    assert watched.announced == TEXTS
    assert all(one.node is other.node for one, other in zip(nodes, after, strict=True))
    assert [node.model_dump_json() for node in after] == before
    assert processor.postprocess_nodes([]) == []


def test_what_it_cannot_use_is_refused(llm: SamKVLLM, watched: Any) -> None:
    for arguments in ({}, {"llm": llm, "engine": watched}):
        with pytest.raises(ConfigurationError, match="exactly one of llm"):
            SamKVPostprocessor(**arguments)
    with pytest.raises(ConfigurationError, match="llm is a MockLLM; it must be a SamKVLLM"):
        SamKVPostprocessor(MockLLM())  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"unknown option top_k.*did you mean top_n"):
        SamKVPostprocessor(llm, top_k=3)
    with pytest.raises(ConfigurationError, match="top_n is 3 and nothing is ranked; pass rerank=True"):
        SamKVPostprocessor(llm, top_n=3)
    with pytest.raises(ConfigurationError, match="top_n is 0"):
        SamKVPostprocessor(llm, rerank=True, top_n=0)
    with pytest.raises(ConfigurationError, match="no query to rank by; pass query_bundle or query_str"):
        SamKVPostprocessor(llm, rerank=True).postprocess_nodes([NodeWithScore(node=NODES[0])])


@pytest.mark.parametrize("is_async", [False, True])
def test_reranked_nodes_come_by_the_retrievers_order_and_their_match(
    llm: SamKVLLM, watched: Any, is_async: bool
) -> None:
    plain = [f"Record {n}: " + "granite island stone signal winter " * 4 for n in range(4)]
    plain[2] = "Record 2: granite island stone the seventh gannet, keeper of the paraffin. " + "winter signal " * 6
    query = "Who is the seventh gannet, keeper of the paraffin?"
    nodes = [NodeWithScore(node=TextNode(text=text), score=1.0) for text in plain] + [NodeWithScore(node=NODES[3])]
    processor = SamKVPostprocessor(llm, rerank=True, top_n=3)
    if is_async:
        kept = asyncio.run(processor.apostprocess_nodes(nodes, query_str=query))
    else:
        kept = processor.postprocess_nodes(nodes, query_str=query)
    matches = [*watched.rank(query, plain), 0.0]
    assert matches.index(max(matches)) == 2
    places = [sorted(matches, reverse=True).index(match) for match in matches]
    scores = {text: 1 / (61 + n) + 1 / (61 + places[n]) for n, text in enumerate(plain)}
    expected = sorted(plain, key=scores.__getitem__, reverse=True)[:3]
    assert plain[2] in expected
    assert [item.node.text for item in kept] == expected == watched.announced
    assert [item.score for item in kept] == [scores[text] for text in expected]
    assert [item.score for item in nodes] == [1.0] * 4 + [None], "what the retriever returned is left alone"
    assert processor.postprocess_nodes([], query_str=query) == []
