"""Fixtures shared by all tests. No test uses the network."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Callable
from typing import Any

import pytest
import torch

import tiny
from samkv_rag import SamKVConfig, SamKVEngine

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


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    return tiny.tokenizer()


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., Any]:
    """A function: family name to tiny random model."""
    return tiny.model


@pytest.fixture
def make_engine() -> Callable[..., SamKVEngine]:
    """A function: options of SamKVConfig to an engine; ``family`` and ``store`` beside them."""

    def make(family: str = "llama", store: Any = ":memory:", **options: Any) -> SamKVEngine:
        config = SamKVConfig(**({"min_chunk_tokens": 0, "block_tokens": 8} | options))
        return SamKVEngine.from_pretrained(tiny.model(family), tokenizer=tiny.tokenizer(), store=store, config=config)

    return make


@pytest.fixture
def tiny_engine(make_engine: Callable[..., SamKVEngine]) -> SamKVEngine:
    """Llama family, in-memory store, caches used however short the prompt."""
    return make_engine()
