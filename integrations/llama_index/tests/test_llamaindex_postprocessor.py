"""SamKVPostprocessor: hints the retrieved texts, changes nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from llama_index.core.llms import MockLLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import Document, ImageNode, MediaResource, Node, NodeWithScore, TextNode
from llama_index.llms.samkv import SamKVLLM, SamKVPostprocessor

from samkv_rag.exceptions import ConfigurationError

MIXED = [
    TextNode(text="A text node.", metadata={"file_path": "a.md"}),
    Document(text="A whole document."),
    Node(text_resource=MediaResource(text="A plain node.")),
    ImageNode(image_path="picture.png"),
    Node(image_resource=MediaResource(data=b"abc")),
    TextNode(text=" \n "),
]
TEXTS = ["A text node.", "A whole document.", "A plain node."]


def scored(nodes: list[Any]) -> list[NodeWithScore]:
    return [NodeWithScore(node=node, score=1.0) for node in nodes]


def test_is_a_postprocessor(fake_engine: Any) -> None:
    assert issubclass(SamKVPostprocessor, BaseNodePostprocessor)
    assert SamKVPostprocessor.class_name() == "SamKVPostprocessor"
    assert SamKVPostprocessor(engine=fake_engine).to_dict() == {"class_name": "SamKVPostprocessor"}


def test_hints_texts_without_metadata_and_ignores_what_has_none(fake_engine: Any) -> None:
    SamKVPostprocessor(engine=fake_engine).postprocess_nodes(scored(MIXED))
    assert fake_engine.announced == TEXTS


def test_hands_back_the_same_nodes_unchanged(fake_llm: SamKVLLM) -> None:
    nodes = scored(MIXED)
    before = [node.model_dump_json() for node in nodes]
    after = SamKVPostprocessor(fake_llm).postprocess_nodes(nodes, query_str="Who?")
    assert all(one is other for one, other in zip(nodes, after, strict=True))
    assert [node.model_dump_json() for node in after] == before


def test_works_from_an_event_loop(fake_llm: SamKVLLM, fake_engine: Any) -> None:
    nodes = scored(MIXED)
    assert asyncio.run(SamKVPostprocessor(llm=fake_llm).apostprocess_nodes(nodes)) == nodes
    assert fake_engine.announced == TEXTS


def test_no_nodes_are_fine(fake_llm: SamKVLLM) -> None:
    assert SamKVPostprocessor(fake_llm).postprocess_nodes([]) == []


def test_making_one_does_not_load_the_model() -> None:
    SamKVPostprocessor(SamKVLLM("no/such-model"))


def test_needs_exactly_one_of_llm_and_engine(fake_llm: SamKVLLM, fake_engine: Any) -> None:
    for arguments in ({}, {"llm": fake_llm, "engine": fake_engine}):
        with pytest.raises(ConfigurationError, match="exactly one of llm"):
            SamKVPostprocessor(**arguments)


def test_refuses_another_llm_and_unknown_arguments(fake_llm: SamKVLLM) -> None:
    with pytest.raises(ConfigurationError, match="llm is a MockLLM; it must be a SamKVLLM"):
        SamKVPostprocessor(MockLLM())  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="unknown option top_n"):
        SamKVPostprocessor(fake_llm, top_n=3)
