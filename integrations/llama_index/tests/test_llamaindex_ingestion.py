"""SamKVIngestion: stores KV, changes no node, and copes with a pipeline's cache and worker processes."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core.ingestion import IngestionCache, IngestionPipeline
from llama_index.core.ingestion.pipeline import get_transformation_hash
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import Document, ImageNode, NodeWithScore, TextNode, TransformComponent
from llama_index.llms.samkv import SamKVIngestion, SamKVLLM

from samkv_rag import SamKVEngine
from samkv_rag.exceptions import ConfigurationError
from support import tiny

TEXTS = [tiny.text(seed) for seed in range(3)]
NODES = [TextNode(text=text, id_=str(number), metadata={"n": number}) for number, text in enumerate(TEXTS)]


@pytest.fixture
def ingestion(tiny_engine: SamKVEngine) -> SamKVIngestion:
    return SamKVIngestion(engine=tiny_engine)


def stored(engine: SamKVEngine) -> list[bool]:
    """Which of TEXTS have KV."""
    return [engine.has_chunk(text) for text in TEXTS]


class TestStep:
    def test_stores_texts_and_returns_the_nodes_untouched(self, ingestion: SamKVIngestion) -> None:
        before = [node.model_dump_json() for node in NODES]
        after = ingestion(NODES)
        assert isinstance(ingestion, TransformComponent)
        assert after is NODES and [node.model_dump_json() for node in after] == before
        assert stored(ingestion.engine) == [True] * 3

    def test_nodes_without_text_are_left_out(self, ingestion: SamKVIngestion) -> None:
        ingestion([ImageNode(image_path="picture.png"), TextNode(text=""), Document(text=TEXTS[0], id_="whole")])
        assert (stored(ingestion.engine), ingestion.engine.sources()) == ([True, False, False], ["/whole"])

    def test_acall_works_off_the_event_loop_and_show_progress_is_a_field_and_an_argument(
        self, tiny_engine: SamKVEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shown: list[Any] = []
        monkeypatch.setattr(
            tiny_engine,
            "add_chunks",
            lambda *_, show_progress, **__: shown.append((show_progress, threading.get_ident() == own)),
        )
        own = threading.get_ident()
        shows = SamKVIngestion(engine=tiny_engine, show_progress=True)
        SamKVIngestion(engine=tiny_engine)(NODES)
        assert asyncio.run(shows.acall(NODES)) is NODES
        shows(NODES, show_progress=False)
        assert shown == [(None, True), (True, False), (False, True)]

    def test_ingest_reports_and_takes_nodes_scores_and_texts(self, ingestion: SamKVIngestion) -> None:
        report = ingestion.ingest([NODES[0], NodeWithScore(node=NODES[1]), TEXTS[2], TEXTS[2] + "\n"])
        assert (report.num_added, report.num_reused) == (3, 0)
        assert ingestion.ingest(NODES).num_reused == 3
        assert sorted(ingestion.engine.sources()) == ["/0", "/1", "/2"], "plain texts have no node"

    def test_nodes_of_one_text_share_its_chunk_until_the_last_goes(self, ingestion: SamKVIngestion) -> None:
        ingestion([TextNode(text=TEXTS[0], id_="one"), TextNode(text=TEXTS[0], id_="two")])
        assert ingestion.remove_nodes(["one", "unknown"]) == 0
        assert ingestion.remove_nodes(["two"]) == 1
        assert not any(stored(ingestion.engine))

    def test_id_scopes_keep_equal_node_ids_apart(self, tiny_engine: SamKVEngine) -> None:
        one, other = (SamKVIngestion(engine=tiny_engine, id_scope=name) for name in ("a", "a/b"))
        one([TextNode(text=TEXTS[0], id_="b/1")])
        other([TextNode(text=TEXTS[1], id_="1")])
        assert one.remove_nodes(["b/1"]) == 1
        assert stored(tiny_engine) == [False, True, False]

    def test_a_nodes_new_text_replaces_its_old_one(self, ingestion: SamKVIngestion) -> None:
        for text in TEXTS[:2]:
            ingestion([TextNode(text=text, id_="changing")])
        assert (stored(ingestion.engine), ingestion.engine.sources()) == ([False, True, False], ["/changing"])

    def test_what_it_cannot_do_is_refused(self, ingestion: SamKVIngestion) -> None:
        ingestion(NODES)
        with pytest.raises(ConfigurationError, match="prune needs an id_scope, or it would remove other indexes' KV"):
            ingestion.prune([])
        assert stored(ingestion.engine) == [True] * 3
        with pytest.raises(ConfigurationError, match="unknown option batch_size"):
            SamKVIngestion(engine=ingestion.engine, batch_size=3)

    def test_a_copy_in_a_worker_process_says_what_to_do(self, ingestion: SamKVIngestion) -> None:
        """LlamaIndex pickles the steps of a pipeline with num_workers."""
        copy = pickle.loads(pickle.dumps(ingestion))
        with pytest.raises(ConfigurationError, match=r"leave it out .* call ingest\(nodes\)"):
            copy(NODES)


class TestPipeline:
    def test_runs_in_a_pipeline_awaited_or_not(self, ingestion: SamKVIngestion) -> None:
        steps = [SentenceSplitter(chunk_size=1024), ingestion]
        nodes = IngestionPipeline(transformations=steps).run(documents=[Document(text=text) for text in TEXTS[:2]])
        assert {node.get_content() for node in nodes} == set(TEXTS[:2])
        assert stored(ingestion.engine) == [True, True, False]
        asyncio.run(IngestionPipeline(transformations=[ingestion]).arun(nodes=NODES))
        assert stored(ingestion.engine) == [True] * 3

    def test_a_cache_hit_skips_the_step_and_ingest_does_not(
        self, ingestion: SamKVIngestion, make_engine: Callable[..., SamKVEngine]
    ) -> None:
        cache, later = IngestionCache(), SamKVIngestion(engine=make_engine())
        before = get_transformation_hash(NODES, ingestion)
        IngestionPipeline(transformations=[ingestion], cache=cache).run(nodes=NODES)
        assert get_transformation_hash(NODES, ingestion) == get_transformation_hash(NODES, later) == before
        nodes = IngestionPipeline(transformations=[later], cache=cache).run(nodes=NODES)
        assert not any(stored(later.engine))
        assert later.ingest(nodes).num_added == 3


class TestCacheKey:
    def test_names_model_store_and_version_without_loading_the_model(self) -> None:
        ingestion = SamKVIngestion(SamKVLLM("no/such-model", store="kv"), show_progress=True)
        identity = {"model": "no/such-model", "store": "kv", "version": 1, "namespace": "", "id_scope": ""}
        assert ingestion.to_dict() == identity | {"class_name": "SamKVIngestion"}

    def test_differs_between_models_and_tenants_and_shows_no_password(self) -> None:
        steps = [
            SamKVIngestion(SamKVLLM(model, store="redis://u:hidden@host", namespace=namespace, store_secret="hidden"))
            for model, namespace in (("a/b", "x"), ("a/b", "y"), ("c/d", "x"))
        ]
        assert len({get_transformation_hash(NODES, step) for step in steps}) == 3
        assert "hidden" not in repr(steps) + steps[0].to_json()
