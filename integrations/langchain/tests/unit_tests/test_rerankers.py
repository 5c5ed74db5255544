"""SamKVReranker keeps the documents that match the question best."""

from __future__ import annotations

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore

from langchain_samkv import ChatSamKV, SamKVReranker
from samkv_rag import SamKVEngine
from samkv_rag.exceptions import ConfigurationError
from samkv_rag.frameworks.ranking import best_of
from tests.lighthouse import QUERY, TEXTS, WordEmbeddings, documents

FOUND = [*documents(*TEXTS), Document(page_content="  \n")]


def test_the_best_come_first_with_their_score_and_are_announced(tiny_engine: SamKVEngine) -> None:
    kept = SamKVReranker(ChatSamKV(engine=tiny_engine), top_n=2).compress_documents(FOUND, QUERY)
    expected = best_of(TEXTS, tiny_engine.rank(QUERY, TEXTS), 2)
    best = [text for text, _ in expected]
    assert [document.page_content for document in kept] == best
    assert [document.metadata for document in kept] == [
        {"length": len(text), "relevance_score": score} for text, score in expected
    ]
    assert all("relevance_score" not in document.metadata for document in FOUND)
    prompt = "\n\n".join([*best, QUERY])
    assert tiny_engine.generate(prompt, max_new_tokens=1).metrics.chunks_hit == 2, "ranking computed them"


def test_it_wraps_any_retriever(tiny_engine: SamKVEngine) -> None:
    store = InMemoryVectorStore(WordEmbeddings())
    store.add_documents(documents(*TEXTS))
    reranker = SamKVReranker(engine=tiny_engine, top_n=1)
    chain = ContextualCompressionRetriever(base_compressor=reranker, base_retriever=store.as_retriever())
    found = [document.page_content for document in store.as_retriever().invoke(QUERY)]
    ((expected, _),) = best_of(found, tiny_engine.rank(QUERY, found), 1)
    assert [document.page_content for document in chain.invoke(QUERY)] == [expected]


def test_what_it_cannot_use_is_refused(tiny_engine: SamKVEngine) -> None:
    with pytest.raises(ConfigurationError, match=r"unknown option top_k.*did you mean top_n"):
        SamKVReranker(engine=tiny_engine, top_k=2)
    with pytest.raises(ConfigurationError, match="top_n is 0"):
        SamKVReranker(engine=tiny_engine, top_n=0)
