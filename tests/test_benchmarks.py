"""The benchmarks run on a toy shape, so that they do not rot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from support import tiny
from benchmarks import gpu, memory, quantization
from benchmarks import store as store_benchmark
from benchmarks.synthetic import parse_token_counts, random_chunk, random_decoder, store_chunks
from samkv_rag import SamKVConfig
from samkv_rag.store import DiskStore

DEFAULT = SamKVConfig().method


def by_method(rows: list[dict[str, Any]], context: int) -> dict[str, dict[str, Any]]:
    return {row["method"]: row for row in rows if row["context_tokens"] == context}


def test_the_gpu_benchmark_measures_every_context_and_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gpu.json"
    options = ["--device", "cpu", "--tiny", "--contexts", "256,512", "--chunk-tokens", "64"]
    gpu.main([*options, "--rounds", "1", "--decode-tokens", "3", "--json", str(path)])
    figures = json.loads(path.read_text())
    rows = figures["rows"]
    assert [(row["context_tokens"], row["method"], row["caches"]) for row in rows] == [
        (context, method, caches)
        for context in (256, 512)
        for method, caches in (("full_prefill", "none"), (DEFAULT, "memory"), (DEFAULT, "disk"))
    ]
    for row in rows:
        assert row["ttft_s"] > 0
        assert row["ttft_ratio"] == pytest.approx(
            row["ttft_s"] / by_method(rows, row["context_tokens"])["full_prefill"]["ttft_s"]
        )
        assert sum(row["phase_s"].values()) > 0
        assert all(speed > 0 for speed in row["decode_tokens_per_s"].values())
        assert set(row["decode_tokens_per_s"]) == {"1", "8"}
        assert row["peak_bytes"] is None  # no CUDA here
    assert {"processor", "torch"} <= set(figures["machine"])
    printed = capsys.readouterr().out
    assert "flash-attn: not installed" in printed
    assert len(printed.splitlines()) == 2 + len(rows)


def test_resident_kv_is_what_the_layout_and_the_ratio_say(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    options = ["--device", "cpu", "--tiny", "--contexts", "512", "--chunk-tokens", "64", "--layers", "2"]
    gpu.main([*options, "--rounds", "1", "--decode-tokens", "1", "--json", str(path)])
    rows = by_method(json.loads(path.read_text())["rows"], 512)
    token_bytes = 2 * 2 * 2 * 16 * 4  # keys and values, layers, kv heads, head_dim, float32
    text_tokens = 32 + 7 + 32
    assert rows["full_prefill"]["kv_bytes_resident"] == (512 + text_tokens) * token_bytes
    assert rows[DEFAULT]["kv_bytes_resident"] <= (int(0.15 * 512) + text_tokens) * token_bytes
    assert rows[DEFAULT]["kv_bytes_resident"] > text_tokens * token_bytes


def test_chunks_longer_than_the_context_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu", "--tiny", "--contexts", "32", "--chunk-tokens", "64"])
    assert "--chunk-tokens is 64; the shortest context has 32 tokens" in capsys.readouterr().err


def test_the_memory_benchmark_runs_full_prefill_only_as_far_as_asked(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    options = ["--shape", "tiny", "--contexts", "512", "--full-up-to", "256", "--chunk-tokens", "64"]
    memory.main([*options, "--json", str(path)])
    rows = by_method(json.loads(path.read_text())["rows"], 512)
    full, sparse = rows["full_prefill"], rows[DEFAULT]
    assert full["kv_bytes_resident"] == full["kv_bytes_full"] == sparse["kv_bytes_full"]
    assert full["peak_process_bytes"] is None
    assert sparse["kv_bytes_resident"] < full["kv_bytes_resident"] / 2
    assert sparse["peak_process_bytes"] >= 0


def test_arithmetic_says_what_a_full_prefill_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--shape", "tiny", "--contexts", "256", "--chunk-tokens", "64", "--store", str(tmp_path)]
    caches = (random_chunk(random_decoder("tiny", torch.device("meta")), 64, seed) for seed in range(4))
    store_chunks(DiskStore(tmp_path), caches)
    memory.main([*options, "--only", "full_prefill"])  # what a child process does
    row = json.loads(capsys.readouterr().out)
    assert row["kv_bytes_resident"] == row["kv_bytes_full"]
    assert row["prompt_tokens"] == 32 + 256 + 3 + 32
    assert row["peak_process_bytes"] >= 0


def test_the_store_benchmark_reads_every_dtype_and_keeps_other_parts(tmp_path: Path) -> None:
    path = tmp_path / "store.json"
    path.write_text('{"other": 1}')
    store_benchmark.main(["read", "--shape", "tiny", "--rounds", "1", "--folder", str(tmp_path), "--json", str(path)])
    figures = json.loads(path.read_text())
    assert figures["other"] == 1
    rows = {row["kv_dtype"]: row for row in figures["read"]["rows"]}
    assert rows["bfloat16"]["file_bytes"] > rows["int8"]["file_bytes"] > rows["int4"]["file_bytes"] > 0
    assert all(row[speed] > 0 for row in rows.values() for speed in ("plain_gb_s", "warm_gb_s", "first_gb_s"))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_the_store_benchmark_knows_its_parts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        store_benchmark.main(["write"])
    assert "unknown part write; known are" in capsys.readouterr().err


def test_quantised_stores_are_compared_and_continued(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model"
    tiny.model("llama").save_pretrained(model)
    tiny.tokenizer().save_pretrained(model)
    chunks = [{"title": "", "text": tiny.text(seed)} for seed in range(3)]
    case = {"id": "a", "question": "What does the keeper record?", "answers": ["tide"], "chunks": chunks}
    cases, results = tmp_path / "cases.jsonl", tmp_path / "results.json"
    cases.write_text("".join(json.dumps({**case, "id": name}) + "\n" for name in "ab"))
    command = ["--model", str(model), "--data", str(cases), "--output-dir", str(tmp_path / "out")]
    quantization.main([*command, "--limit", "1"])
    first = (tmp_path / "out" / "answers.jsonl").read_text()
    assert len(first.splitlines()) == 9
    quantization.main([*command, "--json", str(results)])
    assert (tmp_path / "out" / "answers.jsonl").read_text().startswith(first)
    figures = json.loads(results.read_text())
    assert figures["stored_bytes"]["int4"] < figures["stored_bytes"]["int8"] < figures["stored_bytes"]["auto"]
    rows = {(row["mode"], row["kv_dtype"]): row for row in figures["rows"]}
    assert len(rows) == 9
    assert {row["n"] for row in rows.values()} == {2}
    assert rows["kept, resumed", "auto"]["overlap_mean"] == 1
    assert 0 < rows["kept, resumed", "int4"]["overlap_mean"] <= 1
    assert "| int8 |" in capsys.readouterr().out


def test_token_counts() -> None:
    assert parse_token_counts("4k, 500,64K") == [4096, 500, 65536]
    with pytest.raises(ValueError, match="below 1"):
        parse_token_counts("0")
