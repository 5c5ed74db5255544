"""Servers, for all tests of a module or for one test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

import openai
from serving import Running, serving, tiny_engine

from support.browser import chromium

__all__ = ["chromium"]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """One server for all tests of a module."""
    with serving(tiny_engine()) as running:
        yield running


@pytest.fixture
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def serve() -> Iterator[Callable[..., Running]]:
    """A function: options of the engine (``engine``) and of the application to a server for one test."""
    with ExitStack() as stack:

        def start(engine: dict[str, Any] | None = None, **options: Any) -> Running:
            return stack.enter_context(serving(tiny_engine(**(engine or {})), **options))

        yield start
