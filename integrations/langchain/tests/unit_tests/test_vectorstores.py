"""SamKVVectorStore around langchain-core's in-memory store, and ways to build one."""

from __future__ import annotations

import asyncio
import time

import pytest
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore
from langchain_tests.integration_tests.vectorstores import VectorStoreIntegrationTests

from langchain_samkv import ChatSamKV, SamKVVectorStore
from samkv_rag import SamKVEngine
from samkv_rag.exceptions import ConfigurationError
from tests.lighthouse import KEEPER, LAMP, SEA, TEXTS, WordEmbeddings, live_chunks, shared_engine
from tests.store_contract import StoreContract


class TestInMemory(StoreContract):
    @pytest.fixture
    def wrapped(self) -> VectorStore:
        return InMemoryVectorStore(WordEmbeddings())


class TestStandard(VectorStoreIntegrationTests):
    """langchain-tests' own suite."""

    @pytest.fixture
    def vectorstore(self) -> VectorStore:
        return SamKVVectorStore(InMemoryVectorStore(self.get_embeddings()), engine=shared_engine())


class TestBuiltFromTexts:
    def test_from_texts(self, tiny_engine: SamKVEngine) -> None:
        store = SamKVVectorStore.from_texts(TEXTS, WordEmbeddings(), [{"n": 1}, {}, {}], engine=tiny_engine)
        assert isinstance(store.vectorstore, InMemoryVectorStore)
        assert store.as_retriever().tags == ["SamKVVectorStore", "WordEmbeddings"]
        assert store.similarity_search(LAMP, k=1)[0].metadata == {"n": 1}
        assert live_chunks(tiny_engine, *TEXTS) and len(tiny_engine.sources()) == 3

    @pytest.mark.parametrize("is_async", [False, True])
    def test_from_documents_with_some_ids(self, tiny_engine: SamKVEngine, is_async: bool) -> None:
        documents = [Document(page_content=LAMP, id="a"), Document(page_content=SEA)]
        options = {"llm": ChatSamKV(engine=tiny_engine), "id_scope": "built"}
        if is_async:
            store = asyncio.run(SamKVVectorStore.afrom_documents(documents, WordEmbeddings(), **options))
        else:
            store = SamKVVectorStore.from_documents(documents, WordEmbeddings(), **options)
        assert store.get_by_ids(["a"]) == documents[:1]
        assert "built/a" in tiny_engine.sources()
        store.delete([document.id for document in store.similarity_search(SEA, k=1)])  # type: ignore[misc]
        assert live_chunks(tiny_engine, LAMP)

    @pytest.mark.parametrize("is_async", [False, True])
    def test_a_store_that_cannot_be_built_leaves_no_kv(self, tiny_engine: SamKVEngine, is_async: bool) -> None:
        class Unreachable(InMemoryVectorStore):
            @classmethod
            def from_texts(cls, *arguments: object, **options: object) -> Unreachable:
                assert tiny_engine.has_chunk(KEEPER)
                raise ConnectionError("no route to the vectors")

            @classmethod
            async def afrom_texts(cls, *arguments: object, **options: object) -> Unreachable:
                return cls.from_texts(*arguments, **options)

        build = SamKVVectorStore.afrom_texts if is_async else SamKVVectorStore.from_texts
        with pytest.raises(ConnectionError):
            result = build(TEXTS, WordEmbeddings(), vectorstore_cls=Unreachable, engine=tiny_engine)
            asyncio.run(result)  # type: ignore[arg-type]
        assert live_chunks(tiny_engine)


def test_only_a_vector_store_can_be_wrapped(tiny_engine: SamKVEngine) -> None:
    with pytest.raises(ConfigurationError, match="vectorstore is a list; it must be a VectorStore"):
        SamKVVectorStore([], engine=tiny_engine)  # type: ignore[arg-type]


def test_stores_without_a_name_do_not_share_a_scope(tiny_engine: SamKVEngine) -> None:
    first, second = (SamKVVectorStore(InMemoryVectorStore(WordEmbeddings()), engine=tiny_engine) for _ in range(2))
    first.add_texts([LAMP, KEEPER], ids=["0", "1"])
    second.add_texts([SEA], ids=["0"])
    assert live_chunks(tiny_engine, LAMP, KEEPER, SEA)
    second.delete(["0", "1"])
    assert second.prune() == 0
    assert live_chunks(tiny_engine, LAMP, KEEPER)


def test_what_a_killed_process_was_adding_is_removed_after_a_day(tiny_engine: SamKVEngine) -> None:
    store = SamKVVectorStore(InMemoryVectorStore(WordEmbeddings()), engine=tiny_engine)
    days = [100, int(time.time() // 86400)]
    tiny_engine.add_chunks([LAMP, SEA], sources=[f"being%20added/{day}-abc" for day in days])
    assert store.prune() == 1
    assert live_chunks(tiny_engine, SEA)
