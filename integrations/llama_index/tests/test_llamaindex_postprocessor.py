"""SamKVPostprocessor: announces the retrieved texts, changes no node, and reranks on request."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import Document, ImageNode, MediaResource, Node, NodeWithScore, TextNode
from llama_index.llms.samkv import SamKVLLM, SamKVPostprocessor

from samkv_rag.exceptions import ConfigurationError
from samkv_rag.frameworks.ranking import best_of

TEXTS = ["A text node.", "A whole document.", "A plain node."]
NODES = [
    TextNode(text=TEXTS[0], metadata={"file_path": "a.md"}),
    Document(text=TEXTS[1]),
    Node(text_resource=MediaResource(text=TEXTS[2])),
    ImageNode(image_path="picture.png"),
    Node(image_resource=MediaResource(data=b"abc")),
    TextNode(text=" \n "),
]


def processed(processor: SamKVPostprocessor, nodes: list[NodeWithScore], is_async: bool, **query: str) -> Any:
    if is_async:
        return asyncio.run(processor.apostprocess_nodes(nodes, **query))
    return processor.postprocess_nodes(nodes, **query)


def test_is_a_postprocessor() -> None:
    made = SamKVPostprocessor(SamKVLLM("no/such-model"))  # it is not loaded
    assert isinstance(made, BaseNodePostprocessor)
    assert made.to_dict() == {"class_name": "SamKVPostprocessor", "rerank": False, "top_n": None}


@pytest.mark.parametrize("is_async", [False, True])
def test_announces_texts_without_metadata_and_returns_the_same_nodes(
    llm: SamKVLLM, watched: Any, is_async: bool
) -> None:
    nodes = [NodeWithScore(node=node, score=1.0) for node in NODES]
    before = [node.model_dump_json() for node in nodes]
    processor = SamKVPostprocessor(llm)
    after = processed(processor, nodes, is_async)
    assert watched.announced == TEXTS
    assert all(one.node is other.node for one, other in zip(nodes, after, strict=True))
    assert [node.model_dump_json() for node in after] == before
    assert processor.postprocess_nodes([]) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"llm": None}, "exactly one of llm=SamKVLLM"),
        ({"top_k": 3}, "unknown option top_k.*did you mean top_n"),
        ({"top_n": 3}, "top_n is 3 and rerank is False; pass rerank=True"),
        ({"rerank": True, "top_n": 0}, "top_n is 0"),
        ({"rerank": True}, "no query to rank by; pass query_bundle or query_str"),
    ],
)
def test_what_it_cannot_use_is_refused(llm: SamKVLLM, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        SamKVPostprocessor(**{"llm": llm} | arguments).postprocess_nodes([NodeWithScore(node=NODES[0])])


@pytest.mark.parametrize("is_async", [False, True])
def test_reranked_nodes_come_by_the_retrievers_order_and_their_match(
    llm: SamKVLLM, watched: Any, is_async: bool
) -> None:
    plain = [f"Record {n}: " + "granite island stone signal winter " * 4 for n in range(4)]
    plain[2] = "Record 2: granite island stone the seventh gannet, keeper of the paraffin. " + "winter signal " * 6
    query = "Who is the seventh gannet, keeper of the paraffin?"
    nodes = [NodeWithScore(node=TextNode(text=text), score=1.0) for text in plain] + [NodeWithScore(node=NODES[3])]
    processor = SamKVPostprocessor(llm, rerank=True, top_n=3)
    kept = processed(processor, nodes, is_async, query_str=query)
    expected = best_of(plain, watched.rank(query, plain), 3)
    assert plain[2] in dict(expected)
    assert [(item.node.text, item.score) for item in kept] == expected
    assert watched.announced == [text for text, _ in expected]
    assert [item.score for item in nodes] == [1.0] * 4 + [None], "the retriever's nodes do not change"
    assert processor.postprocess_nodes([], query_str=query) == []
