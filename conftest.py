"""Fixtures shared by all tests. No test uses the network."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch

from samkv_rag import EngineConfig, SamKVEngine
from support import servers, tiny
from support.engines import MakeEngine

# Tiny models gain nothing from threads, and spinning threads of two runs slow each other down.
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run tests on real models")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs --slow"))


@pytest.fixture(autouse=True)
def own_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in a folder of its own, and keeps catalogs of remote stores in another."""
    monkeypatch.chdir(tmp_path_factory.mktemp("working"))
    monkeypatch.setenv("SAMKV_CATALOGS", str(tmp_path_factory.mktemp("catalogs")))


@pytest.fixture
def make_engine() -> MakeEngine:
    """A function: options of EngineConfig to an engine; ``family``, ``store`` and so on beside them."""

    def make(
        family: str = "llama",
        store: Any = ":memory:",
        method: Any = "scout",
        chunks: Iterable[str] = (),
        namespace: str = "",
        **options: Any,
    ) -> SamKVEngine:
        # As the models compute, so that answers equal the slow path's.
        config = EngineConfig(**({"block_tokens": 8, "kv_dtype": "float32"} | options))
        chosen = tiny.method(method) if isinstance(method, str) else method
        model, tokenizer = tiny.model(family), tiny.tokenizer()
        engine = SamKVEngine.from_pretrained(
            model, tokenizer=tokenizer, store=store, config=config, method=chosen, namespace=namespace
        )
        engine.add_chunks(chunks)
        return engine

    return make


@pytest.fixture
def tiny_engine(make_engine: MakeEngine) -> SamKVEngine:
    """Llama family, in-memory store, caches used however short the prompt."""
    return make_engine()


@pytest.fixture(scope="session")
def s3_options() -> Iterator[dict[str, Any]]:
    """Storage options of a local S3 server with an empty bucket ``samkv``."""
    with servers.s3_server() as options:
        yield options


@pytest.fixture(scope="session")
def redis() -> Iterator[servers.RedisServer]:
    """A local Redis server."""
    with servers.redis_server() as server:
        yield server
