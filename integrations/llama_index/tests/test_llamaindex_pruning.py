"""Pruning removes from a KV store on disk what was deleted from an index and its docstore."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import Document
from llama_index.llms.samkv import SamKVIngestion

from samkv_rag import SamKVEngine
from support import tiny

SHARED = tiny.text(100)
DOCUMENTS = [Document(text=tiny.text(number), id_=f"document {number}") for number in range(3)]
DOCUMENTS += [Document(text=SHARED, id_="one of two"), Document(text=SHARED, id_="the other of two")]


@pytest.fixture
def engine(make_engine: Callable[..., SamKVEngine], tmp_path: Path) -> SamKVEngine:
    return make_engine(store=tmp_path / "kv")


@pytest.fixture
def ingestion(engine: SamKVEngine) -> SamKVIngestion:
    return SamKVIngestion(engine=engine, id_scope="manuals")


def indexed(ingestion: SamKVIngestion, documents: Sequence[Document]) -> VectorStoreIndex:
    steps = [SentenceSplitter(chunk_size=1024), ingestion]
    return VectorStoreIndex.from_documents(documents, transformations=steps)


@pytest.fixture
def index(ingestion: SamKVIngestion) -> VectorStoreIndex:
    return indexed(ingestion, DOCUMENTS)


def num_files(folder: Path) -> int:
    return sum(1 for _ in (folder / "kv").rglob("*.safetensors"))


def test_an_index_loaded_by_another_process_prunes_what_was_deleted_there(
    index: VectorStoreIndex, make_engine: Callable[..., SamKVEngine], tmp_path: Path
) -> None:
    index.storage_context.persist(tmp_path / "index")
    loaded = load_index_from_storage(StorageContext.from_defaults(persist_dir=str(tmp_path / "index")))
    for deleted in ("document 0", "document 2", "one of two"):
        loaded.delete_ref_doc(deleted, delete_from_docstore=True)
    engine = make_engine(store=tmp_path / "kv")
    assert num_files(tmp_path) == 4, "LlamaIndex does not report deletions"
    later = SamKVIngestion(engine=engine, id_scope="manuals")
    assert later.prune(loaded.docstore.docs.values()) == 2
    assert num_files(tmp_path) == 2
    assert [engine.has_chunk(tiny.text(number)) for number in (0, 1, 2, 100)] == [False, True, False, True]


def test_what_another_index_has_stays(index: VectorStoreIndex, ingestion: SamKVIngestion, engine: SamKVEngine) -> None:
    other, own, both = SamKVIngestion(engine=engine, id_scope="other"), tiny.text(50), tiny.text(1)
    other_index = indexed(other, [Document(text=own), Document(text=both, id_="in both")])
    for number in (1, 2):
        index.delete_ref_doc(f"document {number}", delete_from_docstore=True)
    assert ingestion.prune(index.docstore.docs.values()) == 1
    assert engine.has_chunk(own) and engine.has_chunk(both) and not engine.has_chunk(tiny.text(2))
    other_index.delete_ref_doc("in both", delete_from_docstore=True)
    assert other.prune(other_index.docstore.docs.values()) == 1
    assert engine.has_chunk(own) and not engine.has_chunk(both)


def test_kv_without_a_node_is_removed_only_if_asked(
    index: VectorStoreIndex, ingestion: SamKVIngestion, engine: SamKVEngine
) -> None:
    indexed(SamKVIngestion(engine=engine, id_scope="other"), [Document(text=tiny.text(50))])
    engine.add_chunks([tiny.text(60), tiny.text(61), tiny.text(50), tiny.text(0)])
    keep = [*index.docstore.docs.values(), tiny.text(61)]
    assert ingestion.prune(keep) == 0
    assert ingestion.prune(keep, unreferenced=True) == 1
    assert [engine.has_chunk(tiny.text(number)) for number in (60, 61, 50, 0)] == [False, True, True, True]
    assert ingestion.prune([]) == 4
    assert engine.has_chunk(tiny.text(50)) and len(engine.sources()) == 1


@pytest.mark.parametrize(
    ("keep", "text"),
    [([f" {SHARED}\n"], SHARED), (SentenceSplitter(chunk_size=1024)(DOCUMENTS[:1]), tiny.text(0))],
    ids=["text", "node that was never recorded"],
)
def test_kept_texts_stay_even_without_a_recorded_node(
    index: VectorStoreIndex, ingestion: SamKVIngestion, engine: SamKVEngine, keep: Any, text: str
) -> None:
    assert ingestion.prune(keep) == 3
    assert engine.has_chunk(text)
    assert ingestion.prune([]) == 1


def test_node_ids_of_earlier_runs_are_forgotten(
    index: VectorStoreIndex, ingestion: SamKVIngestion, engine: SamKVEngine
) -> None:
    again = indexed(ingestion, DOCUMENTS)
    assert len(engine.sources()) == 2 * len(DOCUMENTS), "a splitter's ids are new on each run"
    assert ingestion.prune(again.docstore.docs.values()) == 0
    assert len(engine.sources()) == len(DOCUMENTS)
