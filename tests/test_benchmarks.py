"""The benchmarks run on a tiny shape."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest
import torch

from benchmarks import chat, contexts, faults, ranking, server, serving, variants
from benchmarks import store as store_benchmark
from support import tiny
from support.commands import model_folder

__all__ = ["model_folder"]


def test_contexts_are_measured_against_full_prefill(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "contexts.json"
    options = ["--shape", "tiny", "--dtype", "float32", "--contexts", "256,512", "--chunk-tokens", "128"]
    contexts.main([*options, "--rounds", "1", "--decode-tokens", "3", "--json", str(path)])
    figures = json.loads(path.read_text())
    rows = figures["rows"]
    assert [(row["context_tokens"], row["method"]) for row in rows] == [
        (context, method) for context in (256, 512) for method in ("full_prefill", "scout")
    ]
    for full, sparse in zip(rows[::2], rows[1::2], strict=True):
        assert full["kv_ratio"] == full["ttft_ratio"] == 1
        assert sparse["kv_bytes_resident"] < full["kv_bytes_resident"] / 2
        assert sparse["ttft_ratio"] == pytest.approx(sparse["ttft_s"] / full["ttft_s"])
        assert sparse["decode_tokens_per_s"] > 0
        assert sparse["peak_bytes"] is None  # no CUDA here
    assert {"processor", "torch"} <= set(figures["machine"])
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(rows)


def test_the_store_benchmark_reads_every_dtype_and_opens_a_store(tmp_path: Path) -> None:
    path = tmp_path / "store.json"
    store_benchmark.main(["--shape", "tiny", "--rounds", "1", "--chunks", "50", "--json", str(path)])
    figures = json.loads(path.read_text())
    reading = figures["reading"]
    assert reading["bfloat16"]["file_bytes"] > reading["int8"]["file_bytes"] > 0
    assert all(row[f"{way}_ms"] > 0 for row in reading.values() for way in ("plain", "warm", "first"))
    assert figures["opening"]["chunks"] == 50
    answers = figures["answers"]
    ways = itertools.product(("full", "index"), ("folder", "500 MB/s"))
    assert answers.keys() == {f"{storage}, {place}" for storage, place in ways}
    assert all(row["ttft_ms"] > 0 for row in answers.values())
    assert 0 < answers["index, folder"]["bytes"] < 0.5 * answers["full, folder"]["bytes"]


def test_requests_together_get_the_answers_they_get_alone(model_folder: Path, tmp_path: Path) -> None:
    options = ["--model", str(model_folder), "--dtype", "float32", "--requests", "3", "--chunk-tokens", "600"]
    serving.main([*options, "--new-tokens", "8", "--rounds", "1", "--json", str(tmp_path / "serving.json")])
    figures = json.loads((tmp_path / "serving.json").read_text())
    assert figures["decoding"]["equal_answers"] == 3
    assert figures["decoding"]["ratio"] > 0
    assert figures["short_beside_long"]["beside_s"] > 0


@pytest.mark.slow
def test_clients_of_a_server_are_timed_and_hostile_ones_counted(model_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("uvicorn")
    written = tmp_path / "server.json"
    common = ["--model", str(model_folder), "--json", str(written)]
    few = ["--clients", "1,2", "--requests", "4", "--chunk-tokens", "200", "--new-tokens", "4", "--methods", "scout"]
    server.main([*common, *few])
    rows = json.loads(written.read_text())["rows"]
    assert [row["clients"] for row in rows] == [1, 2]
    assert all(0 < row["ttft_p50_s"] <= row["ttft_p99_s"] for row in rows)
    assert all(row["tokens_per_s"] == pytest.approx(4 * row["requests_per_s"]) for row in rows)
    server.main([*common, "--hostile", "20"])
    hostile = json.loads(written.read_text())["hostile"]
    assert hostile["failures"] == 0
    assert sum(hostile["statuses"].values()) == 20


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("storage", ["full", "index"])
@pytest.mark.parametrize("suite", ["kill_writers", "damage_files", "fill_disk", "share_folder"])
def test_a_disk_store_keeps_its_promises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suite: str, storage: str
) -> None:
    monkeypatch.setitem(faults._config, "storage", storage)
    run = getattr(faults, suite)
    few = {"kill_writers": (12, random.Random(0)), "damage_files": (24, random.Random(0))}
    result = run(tmp_path, *few.get(suite, ()))
    assert result.get("passed", True), result


def test_variants_are_compared_on_the_same_cases(model_folder: Path, tmp_path: Path) -> None:
    case = {"question": "Who?", "answers": ["Ada"], "chunks": [{"title": "", "text": "Ada wrote it. " * 9}]}
    data, found = tmp_path / "cases.jsonl", tmp_path / "variants.json"
    data.write_text("".join(json.dumps(case | {"id": str(number)}) + "\n" for number in range(2)))
    options = ["--model", str(model_folder), "--dtype", "float32", "--data", str(data), "--json", str(found)]
    variants.main([*options, "--variant", '{"sequence_ratio": 0.15}', "--variant", '{"sequence_ratio": 1}'])
    full, scout, same, everything = json.loads(found.read_text())["rows"]
    assert scout["gold_nll"] == same["gold_nll"] != full["gold_nll"]
    assert everything["gold_nll"] == pytest.approx(full["gold_nll"], abs=1e-4)


def test_chats_are_timed_turn_by_turn_with_and_without_their_history(model_folder: Path, tmp_path: Path) -> None:
    chunks = [{"title": "", "text": tiny.text(seed, 90)} for seed in range(4)]
    case = {"question": "Who?", "answers": ["Ada"], "chunks": chunks}
    data, found = tmp_path / "cases.jsonl", tmp_path / "chat.json"
    data.write_text("".join(json.dumps(case | {"id": str(number)}) + "\n" for number in range(4)))
    options = ["--model", str(model_folder), "--dtype", "float32", "--cases", str(data), "--json", str(found)]
    chat.main([*options, "--turns", "2", "--chats", "2", "--max-new-tokens", "4"])
    rows = json.loads(found.read_text())["rows"]
    ways = ["history kept", "history computed", "full prefill"]
    assert [(row["way"], row["turn"], row["n"]) for row in rows] == [(way, turn, 2) for way in ways for turn in (1, 2)]
    assert all(row["ttft_s"] > 0 and (row["turn"] == 2 or row["ttft_ratio"] == 1) for row in rows)
    assert all(two["prompt_tokens"] > one["prompt_tokens"] for one, two in zip(rows[::2], rows[1::2], strict=True))


class FirstLetter:
    """Embeds a text as its first letter."""

    def embed(self, text: str) -> torch.Tensor:
        return torch.eye(128)[None, ord(text[0])]


def test_rankings_are_compared_by_their_supporting_chunks(model_folder: Path, tmp_path: Path) -> None:
    titles = ["Aa", "Bb", "Cc", "Who", "Ee"]
    chunks = [{"title": title, "text": tiny.text(seed, 20)} for seed, title in enumerate(titles)]
    case = {"id": "1", "question": "Who is it?", "answers": ["Ada"], "supporting": ["Who", "Aa", "Ee"]}
    data = tmp_path / "cases.jsonl"
    data.write_text(json.dumps(case | {"chunks": chunks}))
    said: list[str] = []
    ranking.main(["--model", str(model_folder), "--cases", str(data)], said.append, FirstLetter)
    rows = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:] for line in said}
    assert rows["MiniLM"] == ["1.00", "0.67", "0.67"], "the question's letter, then the order of the file"
    assert set(rows) >= {"the engine's match", "BM25", "MiniLM, reranked", "BM25, reranked"}
