"""The real vLLM gives the same answers; ``SAMKV_VLLM_PYTHON`` names the Python of its environment."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("samkv_apps.serve.app", exc_type=ImportError)

from fastapi.testclient import TestClient

from samkv_apps.serve.app import create_app
from samkv_apps.serve.backend import EngineBackend
from samkv_apps.serve.decoding import VllmDecoder
from samkv_rag import EngineConfig, SamKVEngine
from support import tiny
from support.servers import free_port

PYTHON = os.environ.get("SAMKV_VLLM_PYTHON", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="SAMKV_VLLM_PYTHON names no Python that has vLLM (see the README)"),
]
START_S = 280
# vLLM's CPU kernels need heads of at least 32 dimensions.
MODEL: dict[str, Any] = {"hidden_size": 128, "head_dim": 32}


@contextmanager
def vllm_server(model: Path, folder: Path) -> Iterator[str]:
    """Run vLLM with the connector on a free port."""
    port = free_port()
    transfer = {
        "kv_connector": "SamKVConnector",
        "kv_connector_module_path": "samkv_vllm.connector",
        "kv_role": "kv_consumer",
        "kv_connector_extra_config": {"folder": str(folder)},
    }
    options = {
        "--model": model,
        "--dtype": "float32",
        "--max-num-seqs": 8,
        "--port": port,
        "--kv-transfer-config": json.dumps(transfer),
    }
    words = [str(word) for option in options.items() for word in option]
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager", *words]
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
    }
    log = folder.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_S
        while not _answers(f"{url}/health"):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-5000:]
            time.sleep(1)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.HTTPError:
        return False


def test_twenty_answers_are_those_decoded_here(tmp_path: Path) -> None:
    tiny.model(**MODEL).save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "handovers").mkdir()
    with vllm_server(tmp_path / "model", tmp_path / "handovers") as url:
        engine = SamKVEngine.from_pretrained(
            tiny.model(**MODEL),
            tokenizer=tiny.tokenizer(),
            config=EngineConfig(block_tokens=8, kv_dtype="float32"),
            method=tiny.method(sequence_ratio=0.6, refresh_tokens=None),
        )
        texts = [tiny.text(seed, num_words=120) for seed in range(20)]
        engine.add_chunks(texts)
        prompts = [tiny.rag_prompt([texts[(seed + at) % 20] for at in (0, 3, 5)]) for seed in range(20)]
        expected = [engine.generate(prompt, max_new_tokens=24) for prompt in prompts]
        num_retained = [sum(len(use.retained_tokens) for use in one.chunks) for one in expected]
        assert min(num_retained) > 128, "more than one of vLLM's blocks"
        backend = EngineBackend(engine, VllmDecoder(url, tmp_path / "handovers"))
        with TestClient(create_app(backend, "tiny")) as client, ThreadPoolExecutor(8) as threads:
            bodies = [{"model": "tiny", "prompt": prompt, "max_tokens": 24} for prompt in prompts]
            answers = threads.map(lambda body: client.post("/v1/completions", json=body).json(), bodies)
            found = [(one["choices"][0]["text"], one["usage"]["completion_tokens"]) for one in answers]
        assert found == [(one.text, one.metrics.completion_tokens) for one in expected]
        # A request without its KV fails; it is not answered from the retained tokens alone.
        body = {"prompt": [5] * 300, "cache_salt": "0" * 64, "kv_transfer_params": {"samkv_key": "0" * 64}}
        assert httpx.post(f"{url}/v1/completions", json=body, timeout=60).status_code == 500
        assert httpx.post(f"{url}/v1/completions", json={"prompt": [5] * 300}, timeout=60).status_code == 200
    assert not list((tmp_path / "handovers").iterdir())
