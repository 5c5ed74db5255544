"""Clients in a closed loop against `samkv serve` in its own process: requests per second, time to the first token.

    python -m benchmarks.server [--model FOLDER] [--clients 1,4,8,16] [--requests 32] [--json FILE]
    python -m benchmarks.server --transformers   # beside `transformers serve` and its continuous batching
    python -m benchmarks.server --ray-replicas 1,2   # so many engines behind the server, a core each
    python -m benchmarks.server --hostile 10000   # broken and harmful requests: no failure, memory stays flat

Every client sends its next request when the last is answered. All servers listen on this machine only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import quantiles
from typing import Any

import httpx

from benchmarks import hostile
from benchmarks.machine import describe_machine
from benchmarks.serving import SUBJECTS
from samkv_apps.models import language_model

_TOKENS_PER_WORD = 1.3
_VARIANTS = {"scout_without_refreshes": {"refresh_tokens": None}}
_WARM_UP = 1000
"""Hostile requests before memory is measured first."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="default: the demo's")
    parser.add_argument("--clients", default="1,4,8,16")
    parser.add_argument("--requests", type=int, default=32, help="of all clients together")
    parser.add_argument("--chunk-tokens", type=int, default=2000, help="of each request, about")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--methods", default="scout,full_prefill")
    parser.add_argument("--transformers", action="store_true", help="measure `transformers serve` too")
    parser.add_argument("--ray-replicas", default="", metavar="N,N", help="measure so many replicas instead")
    parser.add_argument("--hostile", type=int, default=0, metavar="N", help="send so many broken requests instead")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    model = options.model or str(language_model(say=print))
    setup = {name: value for name, value in vars(options).items() if name != "json"} | {"model": Path(model).name}
    figures: dict[str, Any] = {"machine": describe_machine(), "setup": setup}
    if options.hostile:
        with _samkv(model) as (url, process_id):
            figures["hostile"] = measure_hostile(url, process_id, Path(model).name, options.hostile)
        print(json.dumps(figures["hostile"]))
    else:
        figures["rows"] = list(_replica_rows(model, options) if options.ray_replicas else _rows(model, options))
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def _rows(model: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Each number of clients, on each server in turn."""
    with ExitStack() as servers:
        url, _ = servers.enter_context(_samkv(model))
        prompts = _ingested(url, options)
        named: dict[str, Any] = {"model": Path(model).name}
        methods = options.methods.split(",")
        asked = [(method, url, named | {"samkv": _VARIANTS.get(method, method)}) for method in methods]
        if options.transformers:
            asked.append(("transformers", servers.enter_context(_transformers(model)), {"model": model}))
        for _, at, more in asked:  # warm up
            asyncio.run(measure(at, [_body(prompts[0], 0, options) | more] * 2, 1))
        for clients in map(int, options.clients.split(",")):
            for name, at, more in asked:
                bodies = [_body(prompts[i % len(prompts)], i, options) | more for i in range(options.requests)]
                yield _shown({"server": name, "clients": clients, **asyncio.run(measure(at, bodies, clients))})


def _replica_rows(model: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Each number of replicas, with each number of clients; requests are routed by the documents they name."""
    for replicas in options.ray_replicas.split(","):
        with _samkv(model, "--ray-replicas", replicas) as (url, _):
            prompts = _ingested(url, options)
            asked = [prompts[i % len(prompts)] for i in range(options.requests)]
            named = {"model": Path(model).name}
            bodies = [_body(one, i, options) | named | {"documents": one} for i, one in enumerate(asked)]
            asyncio.run(measure(url, bodies[: len(prompts)], 1))
            for clients in map(int, options.clients.split(",")):
                figures = asyncio.run(measure(url, bodies, clients))
                yield _shown({"replicas": int(replicas), "clients": clients, **figures})


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps(row), flush=True)
    return row


def _ingested(url: str, options: argparse.Namespace) -> list[list[str]]:
    """Documents of several prompts, ingested."""
    prompts = [_documents(number, options.chunk_tokens) for number in range(max(8, options.requests // 4))]
    for documents in prompts:
        httpx.post(f"{url}/v1/samkv/documents", json={"documents": documents}, timeout=600).raise_for_status()
    return prompts


async def measure(url: str, bodies: Sequence[dict[str, Any]], clients: int) -> dict[str, float]:
    """Send the bodies from ``clients`` clients at once, each in sequence."""
    pending, ttft_s, num_tokens = iter(bodies), list[float](), 0

    async def loop(client: httpx.AsyncClient) -> None:
        nonlocal num_tokens
        for body in pending:
            started, first_s = time.perf_counter(), None
            async with client.stream("POST", "/v1/chat/completions", json=body) as response:
                response.raise_for_status()
                async for line in response.aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    said = json.loads(line[6:])
                    if "error" in said:
                        raise RuntimeError(said["error"]["message"])
                    if first_s is None and said["choices"] and said["choices"][0]["delta"].get("content"):
                        first_s = time.perf_counter() - started
                    num_tokens += (said.get("usage") or {}).get("completion_tokens", 0)
            ttft_s.append(first_s if first_s is not None else time.perf_counter() - started)

    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        started = time.perf_counter()
        await asyncio.gather(*(loop(client) for _ in range(clients)))
        elapsed_s = time.perf_counter() - started
    cuts = quantiles(ttft_s, n=100, method="inclusive")
    return {
        "requests_per_s": len(bodies) / elapsed_s,
        "tokens_per_s": num_tokens / elapsed_s,
        "ttft_p50_s": cuts[49],
        "ttft_p99_s": cuts[98],
    }


def measure_hostile(url: str, process_id: int, model: str, num_requests: int) -> dict[str, Any]:
    """Send broken and harmful requests; count statuses, and compare memory after the first thousand and the last."""
    statuses: Counter[int] = Counter()
    warm_bytes = 0
    with httpx.Client(base_url=url, timeout=300) as client:
        for body in _fillers(model):
            client.post("/v1/chat/completions", json=body).raise_for_status()
        for number, request in enumerate(hostile.requests(num_requests, model)):
            if number == min(_WARM_UP, num_requests // 2):
                warm_bytes = _resident_bytes(process_id)
            answer = client.request(request.method, request.path, content=request.body, headers=request.headers)
            statuses[answer.status_code] += 1
        client.get("/health").raise_for_status()
    end_bytes = _resident_bytes(process_id)
    return {
        "requests": num_requests,
        "failures": sum(count for status, count in statuses.items() if status >= 500),
        "statuses": dict(sorted(statuses.items())),
        "warm_bytes": warm_bytes,
        "end_bytes": end_bytes,
        "growth": end_bytes / warm_bytes - 1,
    }


def _fillers(model: str) -> Iterator[dict[str, Any]]:
    """Yield chats of different beginnings, questions and lengths, to fill the bounded caches of all three first."""
    for number in range(150):
        system, question = (f"{number} " + " ".join([word] * (20 + number)) for word in ("begin", "word"))
        messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
        documents = [f"{number} " + "text " * (300 + number)]
        yield {"model": model, "messages": messages, "documents": documents, "max_tokens": 1}


@contextmanager
def _samkv(model: str, *options: str) -> Iterator[tuple[str, int]]:
    """Run `samkv serve` and yield its address and process id."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["samkv_apps.main", "serve", "--model", model, "--store", f"{folder}/kv", "--port", "0", *options]
        with _process(command, Path(folder) / "log") as (process, log):
            yield _said(r"http://[\d.]+:\d+", process, log), process.pid


@contextmanager
def _transformers(model: str) -> Iterator[str]:
    """Run `transformers serve` and yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # By default its KV takes most of the machine's memory, which leaves none for ours.
    options = ["--continuous-batching", "--cb-max-memory-percent", "0.05", "--device", "cpu", "--port", str(port)]
    with tempfile.TemporaryDirectory() as folder:
        command = ["transformers.cli.transformers", "serve", model, "--host", "127.0.0.1", *options]
        with _process(command, Path(folder) / "log") as (process, log):
            _said("running on", process, log)
            yield f"http://127.0.0.1:{port}"


@contextmanager
def _process(module: Sequence[str], log: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    command = [sys.executable, "-m", *module]
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT) as process:
        try:
            yield process, log
        finally:
            process.terminate()


def _said(pattern: str, process: subprocess.Popen[bytes], log: Path) -> str:
    """Wait until ``pattern`` is in the log, and return the match."""
    while process.poll() is None:
        if found := re.search(pattern, log.read_text()):
            return found[0]
        time.sleep(0.1)
    raise RuntimeError(f"the server ended: {log.read_text()[-1000:]}")


def _resident_bytes(process_id: int) -> int:
    pages = int(Path(f"/proc/{process_id}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _body(documents: Sequence[str], number: int, options: argparse.Namespace) -> dict[str, Any]:
    """The same request for every server, with the documents in the message."""
    question = f"Tell the story of the {SUBJECTS[number % len(SUBJECTS)]}, at length."
    return {
        "messages": [{"role": "user", "content": "\n\n".join([*documents, question])}],
        "max_tokens": options.new_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def _documents(number: int, chunk_tokens: int) -> list[str]:
    """Eight documents of about ``chunk_tokens`` tokens together."""
    num_lines = max(1, round(chunk_tokens / 8 / (14 * _TOKENS_PER_WORD)))
    return [
        " ".join(
            f"In the year {1800 + line}, says entry {number}-{i}, the {subject} was mended {line} times over."
            for line in range(num_lines)
        )
        for i, subject in enumerate(SUBJECTS[:8])
    ]


if __name__ == "__main__":
    main()
