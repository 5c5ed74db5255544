"""A server with a tiny model on a free port of this machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn

from samkv_apps.serve.app import create_app
from samkv_apps.serve.backend import Backend, EngineBackend
from samkv_apps.serve.decoding import VllmDecoder
from samkv_rag import EngineConfig, SamKVEngine
from support import tiny

MODEL = "tiny"


@dataclass
class Running:
    """A server and its client."""

    url: str
    engine: SamKVEngine
    http: httpx.Client

    def figure(self, name: str) -> float:
        """Return the value of a metric, named with its labels."""
        lines = self.http.get("/metrics").text.splitlines()
        return next((float(line.split()[-1]) for line in lines if line.rpartition(" ")[0] == name), 0.0)

    def wait_for(self, name: str, value: float) -> None:
        """Return once a metric has a value."""
        wait_until(lambda: self.figure(name) == value)


def wait_until(holds: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def tiny_engine(**options: Any) -> SamKVEngine:
    """Return an engine that uses its caches for short prompts, too."""
    options = {"config": EngineConfig(block_tokens=8), "method": tiny.method(), "tokenizer": tiny.tokenizer()} | options
    return SamKVEngine.from_pretrained(tiny.model(), **options)


@contextmanager
def serving(
    engine: SamKVEngine, backend: Backend | None = None, decoder: VllmDecoder | None = None, **options: Any
) -> Iterator[Running]:
    """Serve from ``engine``, or another backend, while the context is open."""
    app = create_app(backend or EngineBackend(engine, decoder), MODEL, **options)
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    headers = {"Authorization": f"Bearer {options['api_key']}"} if "api_key" in options else {}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=60) as http:
            yield Running(url, engine, http)
    finally:
        server.should_exit = True
        thread.join(30)


@contextmanager
def command(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `samkv serve` in a process; yield the process and its URL."""
    code = "import typer; from samkv_apps.serve.command import serve; typer.run(serve)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = [sys.executable, "-c", code, "--port", "0", *options]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        try:
            yield process, next(found[0] for line in process.stderr if (found := re.search(r"http://[\d.]+:\d+", line)))
        finally:
            process.kill()
