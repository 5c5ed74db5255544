"""SamKVVectorStore's searches and async calls, whatever store it wraps; subclasses supply that store."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from langchain_samkv import SamKVVectorStore
from samkv_rag import SamKVEngine
from tests.lighthouse import KEEPER, LAMP, QUERY, SEA, TEXTS, StoreFixtures, WordEmbeddings, documents, live_chunks


class SearchContract(StoreFixtures):
    """Searching, and everything from an event loop."""

    has_relevance_scores = True

    @pytest.fixture
    def announced(self, engine: SamKVEngine, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
        """The texts of every hint."""
        hints: list[list[str]] = []
        monkeypatch.setattr(engine, "announce", lambda texts: hints.append(list(texts)))
        return hints

    # -- searching

    SEARCHES = [
        ("similarity_search", (QUERY,), {"k": 2}),
        ("similarity_search_with_score", (QUERY,), {"k": 2}),
        ("similarity_search_with_relevance_scores", (QUERY,), {"k": 2, "score_threshold": 0.1}),
        ("similarity_search_by_vector", (WordEmbeddings().embed_query(QUERY),), {"k": 2}),
        ("max_marginal_relevance_search", (QUERY,), {"k": 2, "fetch_k": 3, "lambda_mult": 0.3}),
        ("max_marginal_relevance_search_by_vector", (WordEmbeddings().embed_query(QUERY),), {"k": 2}),
    ]

    @pytest.mark.parametrize(("name", "arguments", "options"), SEARCHES, ids=[name for name, *_ in SEARCHES])
    def test_searches_are_the_stores_own_and_hint_what_they_find(
        self, store: SamKVVectorStore, announced: list[list[str]], name: str, arguments: Any, options: Any
    ) -> None:
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

    def test_get_by_ids_and_embeddings(self, store: SamKVVectorStore) -> None:
        store.add_documents(documents(*TEXTS), ids=["a", "b", "c"])
        assert asyncio.run(store.aget_by_ids(["b"])) == store.get_by_ids(["b"])
        assert store.embeddings is store.vectorstore.embeddings is not None

    @pytest.mark.parametrize(
        ("search_type", "options"),
        [("similarity", {}), ("mmr", {"fetch_k": 3}), ("similarity_score_threshold", {"score_threshold": 0.01})],
    )
    def test_retrievers_of_every_kind(
        self, store: SamKVVectorStore, announced: list[list[str]], search_type: str, options: dict[str, Any]
    ) -> None:
        store.add_texts(TEXTS)
        retriever = store.as_retriever(search_type=search_type, search_kwargs={"k": 2, **options})
        if "score_threshold" in options and not self.has_relevance_scores:
            with pytest.raises(NotImplementedError):
                retriever.invoke(QUERY)
            return
        found = [document.page_content for document in retriever.invoke(QUERY)]
        again = [document.page_content for document in asyncio.run(retriever.ainvoke(QUERY))]
        assert found[0] == KEEPER and again == found and announced == [found, found]

    # -- from an event loop

    async def test_everything_from_an_event_loop_with_kv_off_it(
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
        """Also where the cancellation comes while a thread computes, which then cannot be stopped."""
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


def _noting_threads(function: Callable[..., Any], threads: list[int]) -> Callable[..., Any]:
    def noting(*arguments: Any, **options: Any) -> Any:
        threads.append(threading.get_ident())
        return function(*arguments, **options)

    return noting
