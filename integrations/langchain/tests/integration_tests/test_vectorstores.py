"""SamKVVectorStore around Chroma, in memory."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from langchain_chroma import Chroma
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests.vectorstores import VectorStoreIntegrationTests

from langchain_samkv import SamKVVectorStore
from samkv_rag import SamKVEngine
from tests.lighthouse import KEEPER, LAMP, SEA, TEXTS, WordEmbeddings, live_chunks, shared_engine
from tests.store_contract import StoreContract


class TestChroma(StoreContract):
    @pytest.fixture
    def wrapped(self) -> Iterator[VectorStore]:
        # One client serves the whole process, so collections need different names.
        chroma = Chroma(f"collection-{uuid.uuid4()}", WordEmbeddings(), collection_metadata={"hnsw:space": "cosine"})
        yield chroma
        chroma.delete_collection()

    def test_chroma_deletes_by_metadata(self, store: SamKVVectorStore, engine: SamKVEngine) -> None:
        store.add_texts(TEXTS, [{"n": 1}, {"n": 2}, {"n": 2}], ids=["a", "b", "c"])
        store.delete(where={"n": 2})
        assert live_chunks(engine, LAMP)

    def test_collections_differ_by_name(self, store: SamKVVectorStore, engine: SamKVEngine) -> None:
        other = SamKVVectorStore(Chroma(f"other-{uuid.uuid4()}", WordEmbeddings()), engine=engine)
        store.add_texts([LAMP, KEEPER], ids=["a", "b"])
        other.add_texts([SEA, LAMP], ids=["a", "b"])
        other.delete(["a"])
        assert live_chunks(engine, LAMP, KEEPER)
        store.delete(["a", "b"])
        assert live_chunks(engine, LAMP)

    def test_from_texts_builds_a_chroma(self, engine: SamKVEngine) -> None:
        name = f"built-{uuid.uuid4()}"
        store = SamKVVectorStore.from_texts(
            TEXTS, WordEmbeddings(), vectorstore_cls=Chroma, engine=engine, collection_name=name
        )
        assert isinstance(store.vectorstore, Chroma) and live_chunks(engine, *TEXTS)
        assert {source.split("/")[0] for source in engine.sources()} == {f"Chroma%3A%3A{name}"}


class TestStandard(VectorStoreIntegrationTests):
    """langchain-tests' own suite."""

    @pytest.fixture
    def vectorstore(self) -> Iterator[VectorStore]:
        chroma = Chroma(f"standard-{uuid.uuid4()}", embedding_function=self.get_embeddings())
        yield SamKVVectorStore(chroma, engine=shared_engine())
        chroma.delete_collection()
