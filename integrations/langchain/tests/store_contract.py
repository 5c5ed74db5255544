"""Tests of SamKVVectorStore that hold for every wrapped store; subclasses supply that store."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStore

from langchain_samkv import SamKVVectorStore
from samkv_rag import SamKVEngine
from samkv_rag.exceptions import ChunkTooLongError, ConfigurationError
from tests.lighthouse import KEEPER, LAMP, QUERY, SEA, TEXTS, WordEmbeddings, documents, live_chunks


class StoreContract:
    """Subclasses override ``wrapped`` to return a new, empty store."""

    @pytest.fixture
    def wrapped(self) -> VectorStore:
        raise NotImplementedError

    @pytest.fixture
    def engine(self, tiny_engine: SamKVEngine) -> SamKVEngine:
        return tiny_engine

    @pytest.fixture
    def store(self, wrapped: VectorStore, engine: SamKVEngine) -> SamKVVectorStore:
        return SamKVVectorStore(wrapped, engine=engine)

    # Adding

    def test_adding_computes_kv_under_the_stores_ids(self, store: SamKVVectorStore, engine: SamKVEngine) -> None:
        ids = store.add_documents(documents(*TEXTS))
        assert len(set(ids)) == 3
        assert live_chunks(engine, *TEXTS)
        assert {document.page_content for document in store.get_by_ids(ids)} == set(TEXTS)
        store.delete(ids[:1])
        assert live_chunks(engine, KEEPER, SEA)

    def test_add_texts_does_the_same_however_often(self, store: SamKVVectorStore, engine: SamKVEngine) -> None:
        for _ in range(2):
            assert store.add_texts(iter(TEXTS[:2]), [{"n": 1}, {"n": 2}], ids=["a", "b"]) == ["a", "b"]
        assert store.get_by_ids(["b"]) == [Document(page_content=KEEPER, metadata={"n": 2}, id="b")]
        assert live_chunks(engine, LAMP, KEEPER) and len(engine.sources()) == 2

    def test_a_changed_document_replaces_its_chunk(self, store: SamKVVectorStore, engine: SamKVEngine) -> None:
        store.add_texts([LAMP, KEEPER], ids=["a", "b"])
        store.add_texts([SEA], ids=["a"])
        assert live_chunks(engine, SEA, KEEPER)
        store.add_texts([" "], ids=["a"])
        assert live_chunks(engine, KEEPER)

    def test_if_the_store_fails_nothing_is_left_and_nothing_lost(
        self, store: SamKVVectorStore, engine: SamKVEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store.add_texts([LAMP], ids=["a"])

        def fail(*arguments: Any, **options: Any) -> list[str]:
            assert engine.has_chunk(SEA), "KV is computed first"
            raise ConnectionError("no route to the vectors")

        monkeypatch.setattr(store.vectorstore, "add_texts", fail)
        monkeypatch.setattr(store.vectorstore, "aadd_texts", fail)
        with pytest.raises(ConnectionError):
            store.add_texts([SEA, KEEPER], ids=["a", "b"])
        with pytest.raises(ConnectionError):
            asyncio.run(store.aadd_texts([SEA, KEEPER], ids=["a", "b"]))
        assert live_chunks(engine, LAMP) and len(engine.sources()) == 1

    def test_if_kv_fails_the_store_is_not_touched(self, store: SamKVVectorStore, engine: SamKVEngine) -> None:
        too_long = " ".join(TEXTS * 200)
        with pytest.raises(ChunkTooLongError):
            store.add_texts([LAMP, too_long], ids=["a", "b"])
        assert store.get_by_ids(["a", "b"]) == []
        assert live_chunks(engine)

    def test_too_few_ids_raise_a_warning(self, store: SamKVVectorStore, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(store.vectorstore, "add_texts", lambda texts, *rest, **options: ["only one"])
        with pytest.warns(UserWarning, match="returned 1 ids for 2 texts"):
            store.add_texts([LAMP, SEA])
        assert live_chunks(store.engine, LAMP, SEA)

    # Deleting

    def test_kv_is_removed_after_the_document(self, store: SamKVVectorStore, monkeypatch: pytest.MonkeyPatch) -> None:
        store.add_texts([LAMP], ids=["a"])
        for refused in (lambda *_, **__: False, _refuse):
            monkeypatch.setattr(store.vectorstore, "delete", refused)
            with suppress(PermissionError):
                assert store.delete(["a"]) is False
            assert live_chunks(store.engine, LAMP)

    @pytest.mark.parametrize(("criteria", "left"), [({}, []), ({"where": 1}, TEXTS)])
    def test_a_store_without_get_by_ids_deletes_all_or_by_criteria(
        self, store: SamKVVectorStore, monkeypatch: pytest.MonkeyPatch, criteria: dict[str, Any], left: list[str]
    ) -> None:
        store.add_texts(TEXTS)
        monkeypatch.setattr(store.vectorstore, "delete", lambda ids=None, **_: None)
        monkeypatch.setattr(store.vectorstore, "get_by_ids", lambda ids: VectorStore.get_by_ids(store.vectorstore, ids))
        with pytest.raises(NotImplementedError):
            store.prune()
        store.delete(None, **criteria)
        assert live_chunks(store.engine, *left)

    def test_deletions_and_prune_leave_other_scopes_alone(
        self, store: SamKVVectorStore, wrapped: VectorStore, engine: SamKVEngine
    ) -> None:
        other = SamKVVectorStore(wrapped, engine=engine, id_scope="another collection")
        store.add_texts([LAMP], ids=["a"])
        other.add_texts([KEEPER, LAMP], ids=["b", "a"])
        assert store.prune() == 0
        other.delete(["a"])
        assert live_chunks(engine, LAMP, KEEPER), "both collections may use the same ids"
        engine.add_chunks([SEA])
        store.vectorstore.delete(["a", "b"])
        assert store.prune() == 1
        assert live_chunks(engine, KEEPER, SEA)
        assert store.prune(unreferenced=True) == 1
        assert live_chunks(engine, KEEPER)
        assert other.prune() == 1

    def test_ingest_adds_what_the_wrapped_store_has(self, store: SamKVVectorStore, engine: SamKVEngine) -> None:
        store.vectorstore.add_texts(TEXTS, ids=["a", "b", "c"])
        assert store.ingest(store.similarity_search(QUERY, k=3)).num_added == 3
        assert live_chunks(engine, *TEXTS)
        store.delete(["a"])
        assert live_chunks(engine, KEEPER, SEA)
        with pytest.raises(ConfigurationError, match="1 documents have no id"):
            store.ingest(documents(LAMP))

    def test_counts_outlive_the_process(
        self, wrapped: VectorStore, make_engine: Callable[..., SamKVEngine], tmp_path: Path
    ) -> None:
        SamKVVectorStore(wrapped, engine=make_engine(store=tmp_path), id_scope="own").add_texts(
            [LAMP, LAMP, SEA], ids=["a", "b", "c"]
        )
        engine = make_engine(store=tmp_path)
        again = SamKVVectorStore(wrapped, engine=engine, id_scope="own")
        again.delete(["a", "c"])
        assert live_chunks(engine, LAMP)
        again.delete(["b"])
        assert live_chunks(engine)

    # Searching

    SEARCHES = [
        ("similarity_search", (QUERY,), {"k": 2}),
        ("similarity_search_with_score", (QUERY,), {"k": 2}),
        ("similarity_search_with_relevance_scores", (QUERY,), {"k": 2, "score_threshold": 0.1}),
        ("similarity_search_by_vector", (WordEmbeddings().embed_query(QUERY),), {"k": 2}),
        ("max_marginal_relevance_search", (QUERY,), {"k": 2, "fetch_k": 3, "lambda_mult": 0.3}),
        ("max_marginal_relevance_search_by_vector", (WordEmbeddings().embed_query(QUERY),), {"k": 2}),
    ]

    @pytest.mark.parametrize(("name", "arguments", "options"), SEARCHES, ids=[name for name, *_ in SEARCHES])
    def test_searches_are_the_stores_own_and_announce_what_they_find(
        self, store: SamKVVectorStore, monkeypatch: pytest.MonkeyPatch, name: str, arguments: Any, options: Any
    ) -> None:
        announced: list[list[str]] = []
        monkeypatch.setattr(store.engine, "announce", lambda texts: announced.append(list(texts)))
        store.add_texts(TEXTS, ids=["a", "b", "c"])
        try:
            expected = getattr(store.vectorstore, name)(*arguments, **dict(options))
        except NotImplementedError:
            with pytest.raises(NotImplementedError):
                getattr(store, name)(*arguments, **options)
            return
        assert getattr(store, name)(*arguments, **dict(options)) == expected
        assert asyncio.run(getattr(store, f"a{name}")(*arguments, **dict(options))) == expected
        found = [(item[0] if isinstance(item, tuple) else item).page_content for item in expected]
        assert found[0] == KEEPER and announced == [found, found]

    # From an event loop

    async def test_everything_works_from_an_event_loop_with_kv_off_it(
        self, store: SamKVVectorStore, engine: SamKVEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        threads: list[int] = []
        for name in ("add_chunks", "remove_sources", "announce"):
            monkeypatch.setattr(engine, name, _noting_threads(getattr(engine, name), threads))
        ids = await store.aadd_documents(documents(LAMP, LAMP, KEEPER))
        assert await store.aadd_texts([SEA], ids=["sea"]) == ["sea"]
        assert (await store.asimilarity_search(QUERY, k=1))[0].page_content == KEEPER
        await store.adelete([ids[0], "sea"])
        assert live_chunks(engine, LAMP, KEEPER)
        await store.adelete([ids[1]])
        assert live_chunks(engine, KEEPER)
        assert threads and threading.get_ident() not in threads

    async def test_a_cancelled_addition_leaves_no_kv(
        self, store: SamKVVectorStore, engine: SamKVEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Even if the cancellation comes while a thread computes, which cannot be stopped."""
        computing, go_on = threading.Event(), threading.Event()
        add_chunks = engine.add_chunks

        def slow(*arguments: Any, **options: Any) -> Any:
            computing.set()
            assert go_on.wait(timeout=10)
            return add_chunks(*arguments, **options)

        monkeypatch.setattr(engine, "add_chunks", slow)
        addition = asyncio.create_task(store.aadd_texts([LAMP], ids=["a"]))
        await asyncio.to_thread(computing.wait, 10)
        addition.cancel()
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await addition
        assert live_chunks(engine) and engine.sources() == []
        assert store.get_by_ids(["a"]) == []


def _refuse(*arguments: Any, **options: Any) -> bool:
    raise PermissionError("read only")


def _noting_threads(function: Callable[..., Any], threads: list[int]) -> Callable[..., Any]:
    def noting(*arguments: Any, **options: Any) -> Any:
        threads.append(threading.get_ident())
        return function(*arguments, **options)

    return noting
