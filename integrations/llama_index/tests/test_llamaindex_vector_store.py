"""KV is removed with its document, whichever way LlamaIndex deletes it."""

from __future__ import annotations

import asyncio

import chromadb
import pytest
from llama_index.core import Document, StorageContext, VectorStoreIndex
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import MetadataFilters, SimpleVectorStore
from llama_index.llms.samkv import SamKVLLM, SamKVPostprocessor, SamKVVectorStore
from llama_index.vector_stores.chroma import ChromaVectorStore

from samkv_rag import SamKVEngine
from support import tiny
from support.bag_of_words import BagOfWords

TEXTS = [tiny.text(seed) for seed in range(4)]
DOCUMENTS = [Document(text=text, id_=f"document {number}") for number, text in enumerate(TEXTS)]
TWIN = Document(text=TEXTS[0], id_="twin of 0")


@pytest.fixture
def store(tiny_engine: SamKVEngine) -> SamKVVectorStore:
    return SamKVVectorStore(SimpleVectorStore(stores_text=False), engine=tiny_engine)


@pytest.fixture
def index(store: SamKVVectorStore) -> VectorStoreIndex:
    context = StorageContext.from_defaults(vector_store=store)
    splitter = SentenceSplitter(chunk_size=1024)
    return VectorStoreIndex.from_documents([*DOCUMENTS, TWIN], storage_context=context, transformations=[splitter])


def stored(engine: SamKVEngine) -> list[bool]:
    return [engine.has_chunk(text) for text in TEXTS]


def test_deleting_a_document_deletes_its_chunks(
    index: VectorStoreIndex, store: SamKVVectorStore, tiny_engine: SamKVEngine
) -> None:
    assert stored(tiny_engine) == [True] * 4
    index.delete_ref_doc("document 1", delete_from_docstore=True)
    assert stored(tiny_engine) == [True, False, True, True]
    index.delete_ref_doc("document 0", delete_from_docstore=True)
    assert stored(tiny_engine)[0], "another document has the same text"
    index.delete_ref_doc("twin of 0", delete_from_docstore=True)
    assert stored(tiny_engine) == [False, False, True, True]
    asyncio.run(store.adelete("document 2"))
    assert stored(tiny_engine) == [False, False, False, True]
    store.delete_nodes()
    assert stored(tiny_engine)[3], "no node is given"
    asyncio.run(store.adelete_nodes(index.docstore.get_ref_doc_info("document 3").node_ids))
    assert not any(stored(tiny_engine))
    asyncio.run(store.async_add([TextNode(text=TEXTS[1], embedding=[1.0])]))
    assert stored(tiny_engine) == [False, True, False, False]


@pytest.mark.parametrize("is_async", [False, True])
def test_clearing_a_collection_leaves_the_others(tiny_engine: SamKVEngine, is_async: bool) -> None:
    first, second = (
        SamKVVectorStore(SimpleVectorStore(stores_text=False), engine=tiny_engine, id_scope=scope)
        for scope in ("first", "second")
    )
    first.add([TextNode(id_=str(number), text=TEXTS[number], embedding=[1.0]) for number in (0, 1)])
    second.add([TextNode(id_=str(number), text=TEXTS[number], embedding=[1.0]) for number in (1, 2)])
    asyncio.run(first.aclear()) if is_async else first.clear()
    assert stored(tiny_engine) == [False, True, True, False]
    second.delete_nodes(["1"])
    assert stored(tiny_engine) == [False, False, True, False]


def test_a_pipeline_that_replaces_a_document_replaces_its_chunks(
    store: SamKVVectorStore, tiny_engine: SamKVEngine
) -> None:
    pipeline = IngestionPipeline(
        transformations=[SentenceSplitter(chunk_size=1024), BagOfWords()],
        docstore=SimpleDocumentStore(),
        docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE,
        vector_store=store,
    )
    pipeline.run(documents=DOCUMENTS)
    assert stored(tiny_engine) == [True] * 4
    changed = Document(text=tiny.text(50), id_="document 1")
    pipeline.run(documents=[DOCUMENTS[0], changed, DOCUMENTS[2]])
    assert stored(tiny_engine) == [True, False, True, False]
    assert tiny_engine.has_chunk(tiny.text(50))


def test_queries_are_the_wrapped_stores(index: VectorStoreIndex, tiny_engine: SamKVEngine) -> None:
    llm = SamKVLLM.from_engine(tiny_engine, max_tokens=4)
    query_engine = index.as_query_engine(llm=llm, similarity_top_k=2, node_postprocessors=[SamKVPostprocessor(llm)])
    response = query_engine.query(TEXTS[3][:60])
    assert response.source_nodes[0].text == TEXTS[3]
    assert llm.last_metrics is not None
    assert llm.last_metrics.chunks_hit == 2


@pytest.mark.parametrize("is_async", [False, True])
def test_nodes_deleted_by_a_filter_lose_their_kv(tiny_engine: SamKVEngine, is_async: bool) -> None:
    collection = chromadb.EphemeralClient().create_collection(f"filtered-{is_async}")
    store = SamKVVectorStore(ChromaVectorStore(chroma_collection=collection), engine=tiny_engine)
    store.add([TextNode(text=text, id_=f"n{i}", embedding=[1.0], metadata={"year": i}) for i, text in enumerate(TEXTS)])
    for ids, year, left in (
        (["n0", "n1"], 0, [False, True, True, True]),
        (["n2", "n3"], 2, [False, True, False, True]),
    ):
        filters = MetadataFilters.from_dict({"year": year})
        asyncio.run(store.adelete_nodes(ids, filters)) if is_async else store.delete_nodes(ids, filters)
        assert stored(tiny_engine) == left


@pytest.mark.parametrize("is_async", [False, True])
def test_kv_of_nodes_that_cannot_be_added_goes_again(
    store: SamKVVectorStore, tiny_engine: SamKVEngine, is_async: bool
) -> None:
    store.add([TextNode(text=TEXTS[0], id_="a", embedding=[1.0])])
    nodes = [TextNode(text=TEXTS[0], id_="a"), TextNode(text=TEXTS[1], id_="b")]  # without embeddings
    with pytest.raises(ValueError, match="embedding not set"):
        asyncio.run(store.async_add(nodes)) if is_async else store.add(nodes)
    assert stored(tiny_engine) == [True, False, False, False]
