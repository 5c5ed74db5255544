"""SamKVPostprocessor: announces the retrieved texts, changes nothing."""

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
    assert made.to_dict() == {"class_name": "SamKVPostprocessor"}


@pytest.mark.parametrize("is_async", [False, True])
def test_announces_texts_without_metadata_and_hands_back_the_same_nodes_unchanged(
    llm: SamKVLLM, watched: Any, is_async: bool
) -> None:
    nodes = [NodeWithScore(node=node, score=1.0) for node in NODES]
    before = [node.model_dump_json() for node in nodes]
    processor = SamKVPostprocessor(llm)
    after = asyncio.run(processor.apostprocess_nodes(nodes)) if is_async else processor.postprocess_nodes(nodes)
    assert watched.announced == TEXTS
    assert all(one is other for one, other in zip(nodes, after, strict=True))
    assert [node.model_dump_json() for node in after] == before
    assert processor.postprocess_nodes([]) == []


def test_what_it_cannot_use_is_refused(llm: SamKVLLM, watched: Any) -> None:
    for arguments in ({}, {"llm": llm, "engine": watched}):
        with pytest.raises(ConfigurationError, match="exactly one of llm"):
            SamKVPostprocessor(**arguments)
    with pytest.raises(ConfigurationError, match="llm is a MockLLM; it must be a SamKVLLM"):
        SamKVPostprocessor(MockLLM())  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="unknown option top_n"):
        SamKVPostprocessor(llm, top_n=3)
