"""What is deleted from an index and its docstore is pruned from a KV store on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from llama_index.core import StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import Document
from llama_index.llms.samkv import SamKVIngestion

import tiny
from samkv_rag import SamKVEngine

SHARED = tiny.text(100)
DOCUMENTS = [Document(text=tiny.text(number), id_=f"document {number}") for number in range(3)]
DOCUMENTS += [Document(text=SHARED, id_="one of two"), Document(text=SHARED, id_="the other of two")]


@pytest.fixture
def engine(make_engine: Callable[..., SamKVEngine], tmp_path: Path) -> SamKVEngine:
    return make_engine(store=tmp_path / "kv")


@pytest.fixture
def ingestion(engine: SamKVEngine) -> SamKVIngestion:
    return SamKVIngestion(engine=engine)


@pytest.fixture
def index(ingestion: SamKVIngestion) -> VectorStoreIndex:
    return VectorStoreIndex.from_documents(DOCUMENTS, transformations=[SentenceSplitter(chunk_size=1024), ingestion])


def num_files(folder: Path) -> int:
    return sum(1 for _ in (folder / "kv").rglob("*.safetensors"))


def test_the_kv_of_a_deleted_document_goes_with_the_prune(
    index: VectorStoreIndex, ingestion: SamKVIngestion, engine: SamKVEngine, tmp_path: Path
) -> None:
    assert num_files(tmp_path) == 4
    index.delete_ref_doc("document 1", delete_from_docstore=True)
    assert engine.has_chunk(tiny.text(1)), "LlamaIndex tells nobody"
    assert ingestion.prune(index.docstore.docs.values()) == 1
    assert not engine.has_chunk(tiny.text(1))
    assert all(engine.has_chunk(text) for text in (tiny.text(0), tiny.text(2), SHARED))
    assert num_files(tmp_path) == 3


def test_a_text_that_another_document_still_has_stays(
    index: VectorStoreIndex, ingestion: SamKVIngestion, engine: SamKVEngine
) -> None:
    index.delete_ref_doc("one of two", delete_from_docstore=True)
    assert ingestion.prune(index.docstore.docs.values()) == 0
    assert engine.has_chunk(SHARED)
    index.delete_ref_doc("the other of two", delete_from_docstore=True)
    assert ingestion.prune(index.docstore.docs.values()) == 1
    assert not engine.has_chunk(SHARED)


def test_an_index_loaded_by_another_process_prunes_what_was_deleted_there(
    index: VectorStoreIndex, make_engine: Callable[..., SamKVEngine], tmp_path: Path
) -> None:
    index.storage_context.persist(tmp_path / "index")
    loaded = load_index_from_storage(StorageContext.from_defaults(persist_dir=str(tmp_path / "index")))
    for number in (0, 2):
        loaded.delete_ref_doc(f"document {number}", delete_from_docstore=True)
    later = SamKVIngestion(engine=make_engine(store=tmp_path / "kv"))
    assert later.prune(loaded.docstore.docs.values()) == 2
    assert num_files(tmp_path) == 2
