"""Requests that a server refuses or cancels, and answers that it finishes before it stops."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from serving import MODEL, Running, command, wait_until

from benchmarks import hostile
from samkv_apps.serve import guard, schema
from samkv_apps.serve.schema import ChatRequest
from samkv_rag.prefill.base import PrefillContext, Prefilled
from samkv_rag.prefill.full_prefill import FullPrefill
from support.commands import Run, only_line

Serve = Callable[..., Running]
MANY_LENGTHS = """
from pathlib import Path
from samkv_apps.serve.command import _bound_kernels

_bound_kernels()

import torch

weights = [torch.ones(64 * n, 64, dtype=torch.bfloat16) for n in (1, 2, 3, 4)]
pages = []
for num_tokens in range(1, 301):
    for weight in weights:
        torch.nn.functional.linear(torch.ones(num_tokens, 64, dtype=torch.bfloat16), weight)
    pages.append(int(Path("/proc/self/statm").read_text().split()[1]))
assert pages[-1] < 1.2 * pages[99], (pages[99], pages[-1])
"""
LONG = {"model": MODEL, "prompt": "tide", "max_tokens": 3000}


@dataclass(frozen=True)
class Gated(FullPrefill):
    """Full prefill that waits until the gate is open."""

    name: ClassVar[str] = "gated"
    gate: threading.Event = field(default_factory=threading.Event, compare=False)

    def prefill(self, context: PrefillContext) -> Prefilled:
        assert self.gate.wait(60)
        return super().prefill(context)


@pytest.fixture
def gated() -> Iterator[Gated]:
    method = Gated()
    yield method
    method.gate.set()


def test_without_the_key_nothing_is_answered(serve: Serve) -> None:
    running = serve(api_key="secret")
    assert running.http.get("/v1/models").status_code == 200
    for wrong in ("", "Bearer", "Bearer secreT", "Bearer secret2", "Basic secret", "secret", "Bearer \xff"):
        for path in ("/v1/models", "/metrics", "/docs", "/v1/nothing"):
            refused = httpx.get(running.url + path, headers={"Authorization": wrong.encode("latin-1")})
            assert refused.status_code == 401
            assert refused.json()["error"]["code"] == "invalid_api_key"
    for path in guard.OPEN_PATHS:
        assert httpx.get(running.url + path).status_code == 200


def test_a_body_that_is_too_large_is_refused(serve: Serve) -> None:
    running = serve(max_body_bytes=1000)
    url = f"{running.url}/v1/completions"
    assert running.http.post(url, content=b" " * 1001).status_code == 413
    assert running.http.post(url, content=iter([b" " * 600] * 2)).status_code == 413  # of undeclared length
    assert running.http.post(url, content=b" " * 1000).status_code == 400


def test_a_body_that_does_not_arrive_is_not_waited_for(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_BODY_S", 0.3)
    running = serve()
    with socket.create_connection((httpx.URL(running.url).host, httpx.URL(running.url).port or 0)) as slow:
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: here\r\nContent-Length: 99\r\n\r\n{")
        slow.settimeout(20)
        assert slow.recv(200).startswith(b"HTTP/1.1 408")


def test_a_full_queue_answers_at_once(serve: Serve, gated: Gated) -> None:
    running = serve({"method": gated, "max_waiting": 1, "max_running": 1}, max_queue=1)
    scheduler, body = running.engine._runtime._scheduler, {"model": MODEL, "prompt": "tide", "max_tokens": 2}

    def status() -> int:
        return running.http.post("/v1/completions", json=body).status_code

    with ThreadPoolExecutor(2) as clients:
        answers = [clients.submit(status)]
        wait_until(lambda: bool(scheduler.prefilling))
        answers.append(clients.submit(status))
        wait_until(lambda: scheduler.num_waiting == 1)
        for stream in (False, True):
            refused = running.http.post("/v1/completions", json=body | {"stream": stream})
            assert refused.status_code == 429
            assert int(refused.headers["Retry-After"]) >= 1
            assert refused.json()["error"]["type"] == "rate_limit_error"
        assert running.http.get("/ready").status_code == 503
        assert running.http.get("/health").status_code == 200
        gated.gate.set()
        assert [answer.result() for answer in answers] == [200, 200]
    assert running.http.get("/ready").status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_place(serve: Serve, stream: bool) -> None:
    running = serve()
    if stream:
        with running.http.stream("POST", "/v1/completions", json=LONG | {"stream": True}) as response:
            lines = response.iter_lines()
            next(lines)
            assert running.figure("samkv_running") == 1
    else:
        with pytest.raises(httpx.ReadTimeout):
            running.http.post("/v1/completions", json=LONG, timeout=0.5)
    running.wait_for("samkv_running", 0)
    wait_until(lambda: not running.engine._runtime._scheduler.running)
    assert running.figure("samkv_answer_seconds_count") == 0  # it was cancelled, not finished


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_while_it_waits_frees_its_place(serve: Serve, gated: Gated, stream: bool) -> None:
    running = serve({"method": gated})
    with pytest.raises(httpx.ReadTimeout):
        running.http.post("/v1/completions", json=LONG | {"stream": stream}, timeout=0.5)
    running.wait_for("samkv_waiting", 0)
    gated.gate.set()
    wait_until(lambda: not running.engine._runtime._scheduler.prefilling)
    assert not running.engine._runtime._scheduler.running


def test_what_fails_within_a_stream_is_told_in_it(serve: Serve) -> None:
    running = serve()
    with running.http.stream("POST", "/v1/completions", json=LONG | {"stream": True}) as response:
        lines = response.iter_lines()
        next(lines)
        running.engine.close()
        last = [line for line in lines if line][-1]
    assert '"error"' in last
    assert "shutting down" in last
    assert running.http.post("/v1/completions", json=LONG).status_code == 503


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_of_the_server_is_answered_and_counted(
    serve: Serve, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = serve()
    with monkeypatch.context() as patch:
        patch.setattr(running.engine, "astream", lambda *_, **__: 1 // 0)
        response = running.http.post("/v1/completions", json=LONG | {"stream": stream})
    assert (response.status_code, response.json()["error"]["type"]) == (500, "server_error")
    assert running.figure('samkv_requests_total{route="/v1/completions",status="500"}') == 1
    assert running.http.post("/v1/completions", json=LONG | {"max_tokens": 1}).status_code == 200


def test_an_empty_key_is_no_open_server(run: Run, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("", " \n"):
        monkeypatch.setenv("SAMKV_API_KEY", key)
        status, _, error = run("serve", "--model", model_folder, "--store", ":memory:")
        assert status == 1
        assert "the API key is empty" in only_line(error)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_hostile_requests_meet_no_failure(serve: Serve) -> None:
    running = serve()
    statuses = set()
    for request in hostile.requests(300, MODEL):
        response = running.http.request(request.method, request.path, content=request.body, headers=request.headers)
        assert response.status_code < 500, request
        statuses.add(response.status_code)
        if response.status_code >= 400:
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}
            assert len(response.content) < 3000
    assert {200, 400, 405} <= statuses
    assert (running.figure("samkv_waiting"), running.figure("samkv_running")) == (0, 0)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory as Linux tells it")
def test_prompts_of_many_lengths_leave_memory_flat() -> None:
    # In another process, since PyTorch reads the limits once. A processor that compiles no kernels always passes.
    subprocess.run([sys.executable, "-c", MANY_LENGTHS], check=True)


def test_the_openapi_document_holds(serve: Serve) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

    running = serve()
    schema = schemathesis.openapi.from_url(f"{running.url}/openapi.json")
    checks = [not_a_server_error, response_schema_conformance, status_code_conformance]
    few = settings(
        max_examples=15, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck), database=None
    )
    seen = set()
    for result in schema.get_all_operations():
        operation = result.ok()
        seen.add(operation.path)

        @few
        @given(case=operation.as_strategy())
        def holds(case: Any) -> None:
            if isinstance(case.body, dict) and "model" in case.body:
                case.body |= {"model": MODEL, "max_tokens": 1, "max_completion_tokens": 1}
            case.call_and_validate(checks=checks)

        holds()
    assert len(seen) >= 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--model-kwargs [4]", "--model-kwargs is '[4]'; it must be a JSON object"),
        ('--model-kwargs {"varient":"a"}', "unknown option varient; did you mean variant?"),
        ("--device abacus", "device is 'abacus'"),
        ("--dtype int3", "dtype is 'int3'"),
        ("--decode-with http://there", "--decode-with URL goes with --handover FOLDER"),
        ("--decode-with there:8000 --handover folder", "it must be a URL"),
        ("--ray-max-replicas 2", "--ray-max-replicas is 2; it goes with --ray-replicas"),
        ("--ray-replicas 3 --ray-max-replicas 2", "--ray-max-replicas is 2; it goes with --ray-replicas"),
    ],
)
def test_wrong_options_are_told_in_one_line(
    run: Run, model_folder: Path, monkeypatch: pytest.MonkeyPatch, options: str, words: str
) -> None:
    monkeypatch.setattr("samkv_apps.serve.command._log_as_json", lambda: None)  # for all of the process
    status, _, error = run("serve", "--model", model_folder, "--store", ":memory:", *options.split())
    assert status == 1
    assert words in only_line(error)


@pytest.mark.slow
def test_sigterm_lets_answers_be_written_to_their_end(model_folder: Path) -> None:
    with command("--model", str(model_folder), "--store", ":memory:", "--api-key", "key") as (process, url):
        headers = {"Authorization": "Bearer key"}
        body = LONG | {"model": model_folder.name, "max_tokens": 300, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, headers=headers, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert process.wait(30) in (0, -signal.SIGTERM)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")


def test_fields_without_a_value_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "get_close_matches", None)  # slow; thousands of fields fit into a body
    body = {"model": MODEL, "messages": [{"role": "user", "content": "?"}]}
    ChatRequest.model_validate(body | {f"max_toke{number}": None for number in range(100)})
