"""Answers that vLLM decodes equal the server's own; failures of vLLM are reported."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import safetensors.torch
from serving import MODEL, Running, wait_until

from samkv_apps.serve import backend
from samkv_apps.serve.decoding import VllmDecoder
from support import handovers, tiny

pytestmark = pytest.mark.filterwarnings("ignore:.past_key_values. is deprecated")

CHUNKS = [tiny.text(seed) for seed in range(3)]
PROMPT = tiny.rag_prompt(CHUNKS)
BODY: dict[str, Any] = {"model": MODEL, "prompt": PROMPT, "documents": CHUNKS, "max_tokens": 12}


class Elsewhere(httpx.AsyncBaseTransport):
    """Stands in for vLLM with the connector, on transformers. ``breaks`` is its failure, ``after`` some tokens."""

    def __init__(self, folder: Path, breaks: str = "", after: int = 0) -> None:
        self.folder, self.breaks, self.after = folder, breaks, after
        self.bodies: list[dict[str, Any]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/v1/completions"
        assert request.headers["Authorization"] == "Bearer theirs"
        if self.breaks == "connection":
            raise httpx.ConnectError("refused")
        body = json.loads(await request.aread())
        self.bodies.append(body)
        status = 500 if self.breaks == "status" else 200
        return httpx.Response(status, content=self._events(body), request=request)

    async def _events(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        (key,) = body["kv_transfer_params"].values()
        assert body["cache_salt"] == key
        stored = safetensors.torch.load_file(self.folder / f"{key}.safetensors")
        assert stored["token_ids"].tolist() == body["prompt"]
        held, token_id = handovers.cache(stored["keys"], stored["values"]), body["prompt"][-1]
        for number in range(body["max_tokens"]):
            await asyncio.sleep(0)  # as a network does
            if self.breaks and number == self.after:
                if self.breaks == "event":
                    yield b'data: {"error": {"message": "Internal server error", "code": 500}}\n\n'
                return
            token_id = int(handovers.logits(tiny.model(), held, [token_id])[-1].argmax())
            ended = "stop" if token_id in body["stop_token_ids"] else None
            ended = ended or ("length" if number == body["max_tokens"] - 1 else None)
            choice = {"index": 0, "text": "\u2028", "token_ids": [token_id], "finish_reason": ended}
            yield f"data: {json.dumps({'choices': [choice]}, ensure_ascii=False)}\n\n".encode()
            if ended:
                break
        yield b"data: [DONE]\n\n"


Decoding = Callable[..., tuple[Running, Elsewhere]]


@pytest.fixture
def decoding(serve: Callable[..., Running], tmp_path: Path) -> Decoding:
    """A function: the other engine's failure to a server and that engine."""

    def start(**breaks: Any) -> tuple[Running, Elsewhere]:
        there = Elsewhere(tmp_path, **breaks)
        running = serve(decoder=VllmDecoder("http://there", tmp_path, "theirs", there))
        running.engine.add_chunks(CHUNKS)
        return running, there

    return start


def events(response: httpx.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def test_the_answer_is_the_one_decoded_here(decoding: Decoding, tmp_path: Path) -> None:
    running, there = decoding()
    here = running.engine.generate(PROMPT, max_new_tokens=12, method=tiny.method(refresh_tokens=None))
    whole = running.http.post("/v1/completions", json=BODY).json()
    assert (whole["choices"][0]["text"], whole["choices"][0]["finish_reason"]) == (here.text, here.finish_reason)
    assert whole["usage"]["completion_tokens"] == 12
    assert whole["usage"]["prompt_tokens"] == here.metrics.prompt_tokens > len(there.bodies[0]["prompt"])
    streamed = events(running.http.post("/v1/completions", json=BODY | {"stream": True}))
    assert "".join(one["choices"][0]["text"] for one in streamed) == here.text
    assert sum(bool(one["choices"][0]["text"]) for one in streamed) > 3
    assert len(there.bodies) == 2
    assert not list(tmp_path.iterdir())
    assert running.figure("samkv_running") == 0


@pytest.mark.parametrize("at", [0, 4])
def test_a_stop_text_ends_it_here(decoding: Decoding, at: int) -> None:
    """A stop text may also begin in the first token, which is part of the other engine's prompt."""
    running, _ = decoding()
    stop = running.engine.generate(PROMPT, max_new_tokens=12).text[at : at + 4]
    here = running.engine.generate(PROMPT, max_new_tokens=12, stop=stop)
    (choice,) = running.http.post("/v1/completions", json=BODY | {"stop": stop}).json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == (here.text, "stop")


@pytest.mark.parametrize("asked", [{}, {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "seed": 3}])
def test_no_default_of_the_other_server_counts(decoding: Decoding, asked: dict[str, Any]) -> None:
    running, there = decoding()
    running.http.post("/v1/completions", json=BODY | asked)
    expected = {"temperature": 0, "top_p": 1, "top_k": 0, "min_p": 0, "seed": None, "repetition_penalty": 1}
    expected |= {"ignore_eos": True, "stop_token_ids": [1]}
    assert there.bodies[0].items() >= (expected | asked | {"max_tokens": 11}).items()


OWN = ({"n": 2}, {"logprobs": 1}, {"repetition_penalty": 1.5}, {"response_format": {"type": "json_object"}})


@pytest.mark.parametrize("options", [*OWN, {"samkv": {"refresh_tokens": 4}}, {"max_tokens": 1}], ids=str)
def test_what_the_other_engine_does_not_carry_out_is_decoded_here(decoding: Decoding, options: dict[str, Any]) -> None:
    running, there = decoding(breaks="connection")
    answer = running.http.post("/v1/completions", json=BODY | options)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["text"]
    assert not there.bodies


@pytest.mark.parametrize("breaks", ["connection", "status", "event", "end"])
@pytest.mark.parametrize("stream", [False, True])
def test_whoever_asks_is_told_that_the_other_engine_failed(
    decoding: Decoding, breaks: str, stream: bool, tmp_path: Path
) -> None:
    running, _ = decoding(breaks=breaks, after=2)
    response = running.http.post("/v1/completions", json=BODY | {"stream": stream})
    error = events(response)[-1]["error"] if stream else response.json()["error"]
    assert response.status_code == (200 if stream else 502)
    assert "the engine that decodes failed" in error["message"]
    assert not list(tmp_path.iterdir())


def test_too_many_are_refused_before_any_work(decoding: Decoding, monkeypatch: pytest.MonkeyPatch) -> None:
    running, there = decoding()
    monkeypatch.setattr(backend, "_MAX_ELSEWHERE", 0)
    refused = running.http.post("/v1/completions", json=BODY)
    assert refused.status_code == 429
    assert refused.headers["Retry-After"] == "1"
    assert not there.bodies


def test_a_client_that_goes_away_ends_the_work_there(decoding: Decoding, tmp_path: Path) -> None:
    running, _ = decoding()
    with running.http.stream("POST", "/v1/completions", json=BODY | {"stream": True, "max_tokens": 3000}) as response:
        next(response.iter_lines())
    running.wait_for("samkv_running", 0)
    wait_until(lambda: not list(tmp_path.iterdir()))
