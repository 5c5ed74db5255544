"""SamKVIngestion: stores KV, changes no node, and lives with a pipeline's cache and worker processes."""

from __future__ import annotations

import asyncio
import pickle
import threading
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.ingestion import IngestionCache, IngestionPipeline
from llama_index.core.ingestion.pipeline import get_transformation_hash
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import Document, ImageNode, NodeWithScore, TextNode, TransformComponent
from llama_index.llms.samkv import SamKVIngestion, SamKVLLM, SamKVPostprocessor

from samkv_rag.exceptions import ConfigurationError

TEXTS = ["The lamp turns.", "The keeper rests.", "The sea is rough."]
NODES = [TextNode(text=text, id_=str(number), metadata={"n": number}) for number, text in enumerate(TEXTS)]


@pytest.fixture
def ingestion(fake_engine: Any) -> SamKVIngestion:
    return SamKVIngestion(engine=fake_engine)


class TestStep:
    def test_is_a_transformation(self, ingestion: SamKVIngestion) -> None:
        assert isinstance(ingestion, TransformComponent)
        assert SamKVIngestion.class_name() == "SamKVIngestion"

    def test_stores_texts_and_returns_the_nodes_untouched(self, ingestion: SamKVIngestion, fake_engine: Any) -> None:
        before = [node.model_dump_json() for node in NODES]
        after = ingestion(NODES)
        assert after is NODES and [node.model_dump_json() for node in after] == before
        assert fake_engine.chunks == set(TEXTS)

    def test_nodes_without_text_are_left_out(self, ingestion: SamKVIngestion, fake_engine: Any) -> None:
        ingestion([ImageNode(image_path="picture.png"), TextNode(text=""), Document(text="Whole.")])
        assert fake_engine.chunks == {"Whole."}

    def test_acall_works_off_the_event_loop(self, ingestion: SamKVIngestion, fake_engine: Any) -> None:
        assert asyncio.run(ingestion.acall(NODES)) is NODES
        assert fake_engine.chunks == set(TEXTS)
        assert threading.get_ident() not in fake_engine.threads

    def test_show_progress_is_a_field_and_an_argument(self, fake_engine: Any) -> None:
        SamKVIngestion(engine=fake_engine)(NODES)
        SamKVIngestion(engine=fake_engine, show_progress=True)(NODES)
        SamKVIngestion(engine=fake_engine, show_progress=True)(NODES, show_progress=False)
        assert fake_engine.progress == [None, True, False]

    def test_ingest_reports_and_takes_nodes_scores_and_texts(self, ingestion: SamKVIngestion) -> None:
        report = ingestion.ingest([NODES[0], NodeWithScore(node=NODES[1]), TEXTS[2], TEXTS[2] + "\n"])
        assert (report.num_added, report.num_reused) == (3, 0)
        assert ingestion.ingest(NODES).num_reused == 3

    def test_prune_without_a_scope_is_refused(self, ingestion: SamKVIngestion, fake_engine: Any) -> None:
        ingestion(NODES)
        with pytest.raises(ConfigurationError, match="prune needs an id_scope, or it would remove other indexes' KV"):
            ingestion.prune([])
        assert fake_engine.chunks == set(TEXTS)

    def test_prune_keeps_only_what_it_is_given(self, fake_engine: Any) -> None:
        ingestion = SamKVIngestion(engine=fake_engine, id_scope="own")
        ingestion(NODES)
        assert ingestion.prune([NODES[0], TEXTS[1]]) == 1
        assert fake_engine.chunks == set(TEXTS[:2])

    def test_nodes_of_one_text_share_its_chunk_until_the_last_goes(
        self, ingestion: SamKVIngestion, fake_engine: Any
    ) -> None:
        ingestion([TextNode(text="Twin.", id_="one"), TextNode(text="Twin.", id_="two")])
        assert ingestion.remove_nodes(["one", "unknown"]) == 0
        assert ingestion.remove_nodes(["two"]) == 1
        assert fake_engine.chunks == set()

    def test_plain_texts_have_no_node_to_go_with(self, ingestion: SamKVIngestion, fake_engine: Any) -> None:
        ingestion.ingest([TEXTS[0], NODES[1]])
        assert fake_engine.sources() == ["/1"]

    def test_id_scopes_keep_equal_node_ids_apart(self, fake_engine: Any) -> None:
        one, other = (SamKVIngestion(engine=fake_engine, id_scope=name) for name in ("a", "a/b"))
        one([TextNode(text="Of one index.", id_="b/1")])
        other([TextNode(text="Of the other index.", id_="1")])
        assert one.remove_nodes(["b/1"]) == 1
        assert fake_engine.chunks == {"Of the other index."}

    def test_refuses_bad_arguments(self, fake_engine: Any) -> None:
        with pytest.raises(ConfigurationError, match="unknown option batch_size"):
            SamKVIngestion(engine=fake_engine, batch_size=3)
        with pytest.raises(ConfigurationError, match="exactly one"):
            SamKVIngestion()


class TestPipeline:
    def test_runs_in_a_pipeline(self, ingestion: SamKVIngestion, fake_engine: Any) -> None:
        steps = [SentenceSplitter(chunk_size=20, chunk_overlap=0), ingestion]
        nodes = IngestionPipeline(transformations=steps).run(documents=[Document(text=text) for text in TEXTS])
        assert {node.get_content() for node in nodes} == fake_engine.chunks == set(TEXTS)

    def test_runs_in_an_async_pipeline(self, ingestion: SamKVIngestion, fake_engine: Any) -> None:
        asyncio.run(IngestionPipeline(transformations=[ingestion]).arun(nodes=NODES))
        assert fake_engine.chunks == set(TEXTS)

    def test_runs_as_an_index_transformation(self, ingestion: SamKVIngestion, fake_engine: Any) -> None:
        index = VectorStoreIndex.from_documents(
            [Document(text=text) for text in TEXTS], transformations=[ingestion], show_progress=True
        )
        assert fake_engine.chunks == set(TEXTS)
        index.insert(Document(text="A new one."))
        assert fake_engine.has_chunk("A new one.")

    def test_the_index_docstore_can_be_pruned_to(self, fake_engine: Any) -> None:
        ingestion = SamKVIngestion(engine=fake_engine, id_scope="own")
        documents = [Document(text=text, id_=text) for text in TEXTS]
        index = VectorStoreIndex.from_documents(documents, transformations=[SentenceSplitter(), ingestion])
        index.delete_ref_doc(TEXTS[0], delete_from_docstore=True)
        assert ingestion.prune(index.docstore.docs.values()) == 1
        assert fake_engine.chunks == set(TEXTS[1:])

    def test_a_cache_hit_skips_the_step_and_ensure_makes_up_for_it(self, make_fake_engine: Any) -> None:
        cache, full, empty = IngestionCache(), make_fake_engine(), make_fake_engine()
        IngestionPipeline(transformations=[SamKVIngestion(engine=full)], cache=cache).run(nodes=NODES)
        ingestion = SamKVIngestion(engine=empty)
        nodes = IngestionPipeline(transformations=[ingestion], cache=cache).run(nodes=NODES)
        assert empty.chunks == set()
        assert ingestion.ingest(nodes).num_added == 3
        assert empty.chunks == set(TEXTS)

    def test_without_ensure_a_hint_makes_the_engine_recognise_them(self, make_fake_engine: Any) -> None:
        engine = make_fake_engine()
        SamKVPostprocessor(engine=engine).postprocess_nodes([NodeWithScore(node=node) for node in NODES])
        assert engine.announced == TEXTS


class TestCacheKey:
    def test_is_the_same_for_equal_steps(self, make_fake_engine: Any) -> None:
        one = SamKVIngestion(engine=make_fake_engine())
        other = SamKVIngestion(engine=make_fake_engine(), show_progress=True)
        assert one.to_dict() == other.to_dict() == one.model_dump()
        assert get_transformation_hash(NODES, one) == get_transformation_hash(NODES, other)

    def test_differs_between_models(self, make_fake_engine: Any) -> None:
        one = SamKVIngestion(engine=make_fake_engine())
        other = SamKVIngestion(engine=make_fake_engine(model_name="other/model"))
        assert get_transformation_hash(NODES, one) != get_transformation_hash(NODES, other)

    def test_names_model_store_and_version_without_loading_the_model(self) -> None:
        ingestion = SamKVIngestion(SamKVLLM("no/such-model", store="kv"))
        assert ingestion.to_dict() == {
            "class_name": "SamKVIngestion",
            "model": "no/such-model",
            "store": "kv",
            "version": 1,
            "namespace": "",
            "id_scope": "",
        }

    def test_differs_between_tenants_and_shows_no_password(self) -> None:
        llms = [SamKVLLM("a/b", store="redis://u:hidden@host", namespace=n, store_secret="hidden") for n in "xy"]
        one, other = map(SamKVIngestion, llms)
        assert get_transformation_hash(NODES, one) != get_transformation_hash(NODES, other)
        assert "hidden" not in repr(one) + one.to_json()

    def test_is_unchanged_by_a_run(self, ingestion: SamKVIngestion) -> None:
        before = get_transformation_hash(NODES, ingestion)
        ingestion(NODES)
        assert get_transformation_hash(NODES, ingestion) == before


def test_a_copy_in_a_worker_process_says_what_to_do(ingestion: SamKVIngestion) -> None:
    """LlamaIndex pickles the steps of a pipeline that runs with num_workers."""
    copy = pickle.loads(pickle.dumps(ingestion))
    with pytest.raises(ConfigurationError, match=r"leave it out .* call ingest\(nodes\)"):
        copy(NODES)
