"""After index() and aindex() on a wrapped Chroma, the KV store holds exactly the live documents' chunks."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_core.indexing import InMemoryRecordManager, aindex, index

from langchain_samkv import SamKVVectorStore
from samkv_rag import SamKVEngine
from tests.lighthouse import KEEPER, LAMP, SEA, WordEmbeddings, live_chunks

NEW = "The new lamp of the lighthouse is electric, and it turns twice in a minute."
Index = Callable[[list[Document]], dict[str, int]]


def documents(source: str, *texts: str) -> list[Document]:
    return [Document(page_content=text, metadata={"source": source}) for text in texts]


@pytest.fixture
def store(tiny_engine: SamKVEngine) -> Iterator[SamKVVectorStore]:
    chroma = Chroma(f"indexed-{uuid.uuid4()}", WordEmbeddings())
    yield SamKVVectorStore(chroma, engine=tiny_engine)
    chroma.delete_collection()


@pytest.fixture(params=["index", "aindex"])
def indexed(request: pytest.FixtureRequest, store: SamKVVectorStore) -> Callable[..., Index]:
    """A function from a cleanup mode to a function that indexes documents and compares KV with Chroma."""
    records = InMemoryRecordManager("tests")
    records.create_schema()

    def run(cleanup: str | None, docs: list[Document], batch_size: int) -> dict[str, int]:
        options: dict[str, Any] = {"cleanup": cleanup, "source_id_key": "source", "key_encoder": "sha256"}
        if request.param == "index":
            result: Any = index(docs, records, store, batch_size=batch_size, **options)
        else:
            result = asyncio.run(aindex(docs, records, store, batch_size=batch_size, **options))
        assert live_chunks(store.engine, *set(store.vectorstore.get()["documents"]))
        return dict(result)

    return lambda cleanup, batch_size=100: partial(run, cleanup, batch_size=batch_size)


@pytest.mark.parametrize("cleanup", [None, "incremental", "full", "scoped_full"])
def test_added_changed_duplicated_and_deleted_documents(
    indexed: Callable[..., Index], cleanup: str | None, tiny_engine: SamKVEngine
) -> None:
    run = indexed(cleanup)
    first = [*documents("a", LAMP, KEEPER), *documents("b", LAMP, SEA)]  # the lamp's text twice
    assert run(first)["num_added"] == 4
    assert live_chunks(tiny_engine, LAMP, KEEPER, SEA)

    result = run([*documents("a", NEW, KEEPER), *documents("b", LAMP, SEA)])  # one of the two lamps changed
    assert (result["num_added"], result["num_deleted"]) == (1, 0 if cleanup is None else 1)
    assert live_chunks(tiny_engine, LAMP, KEEPER, SEA, NEW)

    run(documents("b", SEA))  # the other lamp deleted, and source a not seen
    expected = {
        None: [LAMP, KEEPER, SEA, NEW],
        "incremental": [KEEPER, SEA, NEW],
        "scoped_full": [KEEPER, SEA, NEW],
        "full": [SEA],
    }
    assert live_chunks(tiny_engine, *expected[cleanup])

    run([])
    assert live_chunks(tiny_engine, *([] if cleanup == "full" else expected[cleanup]))


def test_batches_smaller_than_a_source(indexed: Callable[..., Index], tiny_engine: SamKVEngine) -> None:
    run = indexed("incremental", batch_size=1)
    run(documents("a", LAMP, KEEPER, SEA))
    run(documents("a", LAMP, SEA))
    assert live_chunks(tiny_engine, LAMP, SEA)
