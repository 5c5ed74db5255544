"""Both integrations on one corpus and one question: the same prompt, chunks, retained tokens and answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.embeddings import Embeddings
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from llama_index.core import PromptTemplate, Settings, VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.llms.samkv import SamKVIngestion, SamKVLLM, SamKVPostprocessor

from langchain_samkv import ChatSamKV, SamKVVectorStore
from samkv_rag import GenerationResult, SamKVEngine
from support import tiny

TEMPLATE = "Use these passages.\n\n{context_str}\n\nQuestion: {query_str}"
TEXTS = [tiny.text(seed) for seed in range(8)]
QUESTION = "What does record 5 say of the keeper at sunset?"
TOP_K, MAX_TOKENS = 4, 12


class SameEmbeddings(Embeddings):
    """LlamaIndex's embedding model for LangChain."""

    def embed_query(self, text: str) -> list[float]:
        return list(Settings.embed_model.get_query_embedding(text))

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [list(Settings.embed_model.get_text_embedding(text)) for text in texts]


def ask_llama_index(engine: SamKVEngine) -> str:
    llm = SamKVLLM.from_engine(engine, max_tokens=MAX_TOKENS)
    Settings.tokenizer = llm.tokenizer
    nodes = [TextNode(text=text, id_=str(number)) for number, text in enumerate(TEXTS)]
    index = VectorStoreIndex(SamKVIngestion(llm)(nodes))
    query_engine = index.as_query_engine(
        llm=llm,
        similarity_top_k=TOP_K,
        text_qa_template=PromptTemplate(TEMPLATE),
        node_postprocessors=[SamKVPostprocessor(llm)],
    )
    return str(query_engine.query(QUESTION))


def ask_langchain(engine: SamKVEngine) -> str:
    llm = ChatSamKV(engine=engine, max_tokens=MAX_TOKENS)
    store = SamKVVectorStore.from_texts(TEXTS, SameEmbeddings(), llm=llm)
    context = store.as_retriever(search_kwargs={"k": TOP_K}) | (
        lambda documents: "\n\n".join(document.page_content for document in documents)
    )
    prompt = ChatPromptTemplate.from_messages([("human", TEMPLATE)])
    chain = {"context_str": context, "query_str": RunnablePassthrough()} | prompt | llm | StrOutputParser()
    return chain.invoke(QUESTION)


def last_result(engine: SamKVEngine, ask: Callable[[SamKVEngine], str]) -> tuple[str, GenerationResult]:
    """Return the framework's answer and the result of the engine's own stream."""
    seen: list[Any] = []
    stream = engine.stream

    def noting(*arguments: Any, **options: Any) -> Any:
        seen.append(stream(*arguments, **options))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "stream", noting)
        return ask(engine), seen[-1].result


def test_both_frameworks_get_the_same_answer_from_the_same_tokens(
    make_engine: Callable[..., SamKVEngine], tmp_path: Path
) -> None:
    (answer, one), (other_answer, other) = (
        last_result(make_engine(store=tmp_path / name, method=tiny.method(sequence_ratio=0.3)), ask)
        for name, ask in (("llama_index", ask_llama_index), ("langchain", ask_langchain))
    )
    assert (one.metrics.chunks_hit, one.metrics.chunks_missed, one.metrics.fallback_reason) == (TOP_K, 0, None)
    assert other.chunks == one.chunks, "the same chunks at the same positions with the same retained tokens"
    assert 0 < sum(len(use.retained_tokens) for use in one.chunks) <= 0.3 * one.metrics.chunk_tokens
    assert other.token_ids == one.token_ids
    assert other_answer.strip() == answer.strip() != ""


def test_both_frameworks_share_the_kv_of_one_store(tiny_engine: SamKVEngine) -> None:
    ask_llama_index(tiny_engine)
    before = {found.key for found in tiny_engine.store.keys()}
    ask_langchain(tiny_engine)
    assert {found.key for found in tiny_engine.store.keys()} == before
    ours = [source for source in tiny_engine.sources() if source.startswith("/")]
    assert (len(ours), len(tiny_engine.sources())) == (len(TEXTS), 2 * len(TEXTS))
    assert tiny_engine.remove_sources(ours) == 0


def test_both_frameworks_find_a_tenants_kv(tmp_path: Path) -> None:
    tiny.model().save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    tenant = {"store": str(tmp_path / "kv"), "namespace": "tenant a", "store_secret": "swordfish"}
    SamKVIngestion(SamKVLLM(str(tmp_path), **tenant)).ingest(TEXTS)
    for change in ({}, {"namespace": "b"}, {"store_secret": "b"}):
        engine = ChatSamKV(model=tmp_path, **tenant | change).engine
        assert [engine.has_chunk(text) for text in TEXTS] == [not change] * len(TEXTS)
        engine.store.close()
