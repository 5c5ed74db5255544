"""A wrapped retriever returns the same documents and announces them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain_core.vectorstores import InMemoryVectorStore

from langchain_samkv import ChatSamKV, SamKVRetriever
from samkv_rag import SamKVEngine
from tests.lighthouse import QUERY, TEXTS, WordEmbeddings, documents


@pytest.fixture
def retriever() -> Any:
    store = InMemoryVectorStore(WordEmbeddings())
    store.add_documents(documents(*TEXTS))
    return store.as_retriever(search_kwargs={"k": 2})


@pytest.mark.parametrize("call", ["invoke", "ainvoke"])
def test_what_is_found_is_announced_and_computed_once(retriever: Any, tiny_engine: SamKVEngine, call: str) -> None:
    wrapped = SamKVRetriever(retriever, ChatSamKV(engine=tiny_engine))
    found = wrapped.invoke(QUERY) if call == "invoke" else asyncio.run(wrapped.ainvoke(QUERY))
    assert found == retriever.invoke(QUERY)
    prompt = "\n\n".join([*(document.page_content for document in found), QUERY])
    assert tiny_engine.generate(prompt, max_new_tokens=1).metrics.chunks_missed == 2
    assert tiny_engine.generate(prompt, max_new_tokens=1).metrics.chunks_hit == 2


@pytest.mark.parametrize("call", ["invoke", "ainvoke"])
def test_the_arguments_of_a_call_reach_the_wrapped_retriever(
    retriever: Any, tiny_engine: SamKVEngine, call: str
) -> None:
    wrapped, chosen = SamKVRetriever(retriever, engine=tiny_engine), retriever.invoke(QUERY)[1].id
    own: dict[str, Any] = {"filter": lambda document: document.id == chosen}
    found = wrapped.invoke(QUERY, **own) if call == "invoke" else asyncio.run(wrapped.ainvoke(QUERY, **own))
    assert [document.id for document in found] == [chosen]
