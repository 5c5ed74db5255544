"""Two real processes that share a store: which of them answers, and what happens if one is killed."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import MODEL, Running, command, serving, wait_until

from samkv_apps.demo.corpus import sections
from samkv_apps.models import language_model
from samkv_apps.serve.schema import ChatRequest
from samkv_rag import SamKVEngine

pytest.importorskip("ray", reason="needs ray: pip install 'samkv-apps[ray]'")

import ray
from ray import serve

from samkv_apps.serve.ray import APPLICATION, Answered, RayBackend, deploy

pytestmark = pytest.mark.slow
TEXTS = [section.text[:200] for section in sections()[16:32]]
GENERATORS = next(section.text for section in sections() if "Flora" in section.text)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store that both write to."""
    return tmp_path_factory.mktemp("shared") / "kv"


@pytest.fixture(scope="module")
def backend(store: Path) -> RayBackend:
    """Two replicas with the demo's model; each decodes one answer at a time."""
    return deploy(str(language_model(say=print)), str(store), num_replicas=2, max_running=1, max_queue=1)


@pytest.fixture(scope="module")
def server(backend: RayBackend, store: Path) -> Iterator[Running]:
    """A server in front of the replicas, which it stops, and an engine in this process over their store."""
    engine = SamKVEngine.from_pretrained(language_model(say=print), store=store)
    with engine, serving(engine, backend) as running:
        yield running


def body(*texts: str, **options: Any) -> dict[str, Any]:
    asked = [{"role": "user", "content": "What are the names of the two diesel generators?"}]
    return {"model": MODEL, "messages": asked, "documents": list(texts), "max_tokens": 8} | options


def ask(backend: RayBackend, *texts: str) -> Answered:
    """Return an answer with its replica."""

    async def answered() -> Answered:
        asked = ChatRequest(**body(*texts, max_tokens=1, samkv={"min_chunk_tokens": 0}))
        *_, last = [one async for one in backend._handle.options(stream=True).answer.remote(asked, 100)]
        return last

    return asyncio.run(answered())


def on_each(backend: RayBackend) -> dict[str, str]:
    """Return one document for each replica."""
    found: dict[str, str] = {}
    for text in TEXTS:
        found.setdefault(ask(backend, text).replica, text)
        if len(found) == 2:
            break
    return found


def wait_longer(holds: Callable[[], bool]) -> None:
    wait_until(holds, seconds=120)


class Reader:
    """Reads the stream of a long answer in a thread."""

    def __init__(self, server: Running, text: str) -> None:
        self.lines: list[str] = []
        self.thread = threading.Thread(target=self._read, args=(server, body(text, stream=True, max_tokens=300)))
        self.leave = False
        time.sleep(1)  # until the router knows that the earlier requests have ended
        self.thread.start()
        wait_longer(lambda: len(self.lines) > 3)

    def _read(self, server: Running, sent: dict[str, Any]) -> None:
        endless = {"name": "text", "schema": {"type": "string", "minLength": 10_000}}
        sent |= {"response_format": {"type": "json_schema", "json_schema": endless}}
        with server.http.stream("POST", "/v1/chat/completions", json=sent) as response:
            for line in response.iter_lines():
                self.lines += [line] if line else []
                if self.leave:
                    return

    def end(self, leave: bool = False) -> str:
        self.leave = leave
        self.thread.join(120)
        return self.lines[-1]


def test_the_command_starts_replicas_and_ends_them(model_folder: Path) -> None:
    with command("--model", str(model_folder), "--store", "kv", "--ray-replicas", "1") as (process, url):
        sent = body(TEXTS[0], samkv={"min_chunk_tokens": 0}) | {"model": model_folder.name}
        assert httpx.post(f"{url}/v1/chat/completions", json=sent, timeout=60).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, signal.SIGTERM, -signal.SIGTERM)
    assert len([*Path("kv").rglob("*.safetensors")]) == 1


def test_answers_are_those_of_an_engine_and_both_write_into_the_store(server: Running, backend: RayBackend) -> None:
    answer = server.http.post("/v1/chat/completions", json=body(GENERATORS, max_tokens=24, explain=True)).json()
    assert "Flora and Mabel" in answer["choices"][0]["message"]["content"]
    assert answer["samkv"]["explanation"]["chunks"][0]["text"] == GENERATORS.strip()
    texts = on_each(backend)
    assert len(texts) == 2
    wait_longer(lambda: all(server.engine.has_chunk(text) for text in texts.values()))
    report = server.http.post("/v1/samkv/documents", json={"documents": [*texts.values(), TEXTS[-1]]}).json()
    assert report["num_added"] + report["num_reused"] == 3
    assert report["num_reused"] >= 2, "what one has written, the other finds"
    refused = server.http.post("/v1/chat/completions", json=body("x" * 20, samkv="none"))
    assert (refused.status_code, "it must be a PrefillMethod" in refused.text) == (400, True)


def test_requests_go_where_their_documents_are_in_memory(backend: RayBackend) -> None:
    seen: dict[str, set[str]] = defaultdict(set)
    known: set[str] = set()
    num_known = num_there = 0
    for turn in range(100):
        texts = [TEXTS[(3 * turn + i) % len(TEXTS)] for i in range(3 - turn % 2)]
        replica = ask(backend, *texts).replica
        num_known += known.issuperset(texts)
        num_there += known.issuperset(texts) and seen[replica].issuperset(texts)
        seen[replica].update(texts)
        known.update(texts)
    assert len(seen) == 2
    assert num_there / num_known >= 0.9


def test_a_busy_replica_is_passed_over_and_one_that_is_left_is_free(server: Running, backend: RayBackend) -> None:
    (one, text), (other, _) = on_each(backend).items()
    long = Reader(server, text)
    assert ask(backend, text).replica == other
    assert long.end(leave=True) != "data: [DONE]"
    wait_longer(lambda: ask(backend, text).replica == one)


def test_more_than_may_wait_are_refused(server: Running, backend: RayBackend) -> None:
    long = [Reader(server, text) for text in on_each(backend).values()]
    statuses: list[int] = []

    def post() -> None:
        statuses.append(server.http.post("/v1/chat/completions", json=body(TEXTS[0])).status_code)

    with ThreadPoolExecutor(6) as clients:
        for _ in range(6):
            clients.submit(post)
        wait_longer(lambda: 429 in statuses)
        for one in long:
            one.end(leave=True)
    assert {200, 429} == set(statuses)


def test_of_a_killed_replica_the_others_answers_go_on(server: Running, backend: RayBackend) -> None:
    texts = on_each(backend)
    streams, killed = [Reader(server, text) for text in texts.values()], next(iter(texts))  # each has one
    ray.kill(ray.get_actor(f"SERVE_REPLICA::{APPLICATION}#Replica#{killed}", namespace="serve"))
    done, lost = sorted((stream.end() for stream in streams), key=len)
    assert done == "data: [DONE]"
    assert "the process for this answer has ended; send the request again" in lost
    assert server.http.post("/v1/chat/completions", json=body(texts[killed])).status_code == 200
    wait_longer(
        lambda: serve.status().applications[APPLICATION].deployments["Replica"].replica_states == {"RUNNING": 2}
    )
    wait_longer(lambda: len(on_each(backend)) == 2)
    assert killed not in on_each(backend), "another took its place"
