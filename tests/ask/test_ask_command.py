"""`samkv ask`, with a tiny model: what it prints, where, and how it fails."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import pdfs
from support import tiny
from asking import WordCounts
from commands import Run, only_line
from samkv_rag import Explanation, SamKVEngine, ask
from samkv_rag.ask import run as run_module
from samkv_rag.ask.options import AskOptions
from samkv_rag.ask.screen import Screen

Ask = Callable[..., tuple[int, str, str]]
QUESTION = "What does the keeper of record 3 write?"


@pytest.fixture
def ask_it(
    run: Run, handbook: Path, model_folder: Path, tmp_path: Path, embed: WordCounts, monkeypatch: pytest.MonkeyPatch
) -> Ask:
    """A function: options of `samkv ask` to exit status, standard output and standard error."""
    monkeypatch.setattr(run_module, "load_embedder", lambda device: embed)
    fixed = ["--model", model_folder, "--store", tmp_path / "store", "--max-tokens", 8]
    return lambda *options, question=QUESTION: run("ask", question, handbook, *fixed, *options)


def as_json(result: tuple[int, str, str]) -> dict[str, Any]:
    status, out, error = result
    assert (status, error) == (0, "")
    found: dict[str, Any] = json.loads(out)
    return found


# -- what it says ----------------------------------------------------------------------------------


def test_answer_sources_and_figures_go_to_a_pipe_without_colour(ask_it: Ask) -> None:
    status, out, error = ask_it()
    assert (status, error) == (0, "")
    assert "\x1b" not in out
    answer, _, header, *sources, _, figures = out.removesuffix("\n").split("\n")
    assert answer
    assert header.split() == ["score", "tokens", "kept", "source"]
    assert len(sources) == 4
    assert sources[0].endswith("three.pdf, page 1")
    assert "of" in sources[0]
    assert figures.startswith("first token after ")


def test_json_is_all_of_standard_output(ask_it: Ask) -> None:
    found = as_json(ask_it("--json", "--top-k", 3))
    assert found["question"] == QUESTION
    assert found["answer"] == found["answer"].strip()
    assert [source["file"] for source in found["sources"]].count("three.pdf") >= 1
    best = found["sources"][0]
    assert (best["file"], best["page"], best["text"], best["also_in"]) == ("three.pdf", 1, tiny.text(3), [])
    assert 0 < best["num_kept"] <= best["num_tokens"]
    scores = [source["score"] for source in found["sources"]]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 3
    assert found["metrics"]["chunks_hit"] == 3
    assert (found["update"]["num_files"], found["update"]["num_computed"]) == (3, 4)


def test_the_explanation_in_json_names_the_sources(ask_it: Ask, model_folder: Path) -> None:
    found = as_json(ask_it("--json"))
    explanation = Explanation.from_dict(found["explanation"])
    assert explanation.model_name == str(model_folder)
    named = {chunk.text: chunk.source for chunk in explanation.chunks}
    assert named[tiny.text(4)] == "three.pdf, page 3"
    assert named[tiny.text(2)] == "more/two.txt"
    kept = {source["text"]: source["num_kept"] for source in found["sources"]}
    assert {chunk.text: chunk.num_kept for chunk in explanation.chunks} == kept


def test_asked_again_it_computes_nothing_and_says_the_same(ask_it: Ask, embed: WordCounts) -> None:
    first = as_json(ask_it("--json"))
    embedded = len(embed.embedded)
    second = as_json(ask_it("--json"))
    assert embed.embedded[embedded:] == [QUESTION]
    assert second["update"]["num_computed"] == second["update"]["num_read"] == 0
    assert (second["answer"], second["sources"]) == (first["answer"], first["sources"])
    assert second["metrics"]["chunks_missed"] == 0


def test_streamed_is_what_json_says(ask_it: Ask) -> None:
    _, out, _ = ask_it()
    found = as_json(ask_it("--json"))
    assert (
        found["answer"].split() == out.partition("\nscore ")[0].removesuffix(" … (cut off by --max-tokens)\n").split()
    )


def test_a_text_in_two_files_names_both(ask_it: Ask, handbook: Path) -> None:
    (handbook / "copy.pdf").write_bytes(pdfs.pdf([tiny.text(3)]))
    found = as_json(ask_it("--json", "--top-k", 1))
    (best,) = found["sources"]
    assert (best["file"], best["page"]) == ("copy.pdf", 1)
    assert best["also_in"] == [{"file": "three.pdf", "page": 1}]
    assert "copy.pdf, page 1; three.pdf, page 1" in ask_it("--top-k", 1)[1]


def test_what_cannot_be_read_is_a_warning_and_stands_in_json(ask_it: Ask, handbook: Path) -> None:
    (handbook / "scanned.pdf").write_bytes(pdfs.pdf([""]))
    status, out, error = ask_it("--json")
    assert status == 0
    (problem,) = json.loads(out)["update"]["problems"]
    assert error == f"samkv: warning: {problem}\n"
    assert "scanned.pdf holds no text" in problem


def test_budget_and_method_are_heeded(ask_it: Ask, handbook: Path) -> None:
    for seed in range(10, 18):
        (handbook / f"{seed}.md").write_text(tiny.text(seed))
    assert as_json(ask_it("--json"))["metrics"]["sequence_ratio"] <= 0.15
    half = as_json(ask_it("--json", "--sequence-ratio", 0.5))["metrics"]["sequence_ratio"]
    assert 0.4 < half <= 0.5
    full = as_json(ask_it("--json", "--method", "full_prefill"))
    assert full["metrics"]["method"] == "full_prefill"
    assert all(source["num_kept"] == source["num_tokens"] for source in full["sources"])


def test_files_of_several_folders_are_named_from_where_they_meet(
    run: Run, ask_it: Ask, handbook: Path, model_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "other.md").write_text(tiny.text(30))
    arguments = ["--model", model_folder, "--store", tmp_path / "store", "--max-tokens", 2, "--json"]
    found = as_json(run("ask", tiny.text(30), tmp_path / "other.md", handbook / "one.md", *arguments))
    assert [source["file"] for source in found["sources"]] == ["other.md", "handbook/one.md"]


def test_two_folders_may_share_a_store(
    run: Run, ask_it: Ask, handbook: Path, model_folder: Path, tmp_path: Path
) -> None:
    as_json(ask_it("--json"))
    arguments = ["--model", model_folder, "--store", tmp_path / "store", "--max-tokens", 2, "--json"]
    found = as_json(run("ask", QUESTION, handbook / "more", *arguments))
    assert (found["update"]["num_passages"], found["update"]["num_computed"]) == (1, 0)
    assert as_json(ask_it("--json"))["update"]["num_computed"] == 0, "what one folder lacks is not removed of another"


def test_braces_and_markup_in_texts_and_questions_are_nothing_special(ask_it: Ask, handbook: Path) -> None:
    (handbook / "one.md").write_text("{passages} [bold]The lens[/bold] {0} \x1b[31m" + tiny.text(1))
    status, out, error = ask_it(question="{question} [red]What?[/red] %s")
    assert (status, error) == (0, "")
    assert "\x1b" not in out


# -- two at once, damage ---------------------------------------------------------------------------


def test_two_at_once_share_the_work(
    handbook: Path, tmp_path: Path, make_engine: Callable[..., SamKVEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "load_embedder", lambda device: WordCounts())
    options = AskOptions(QUESTION, (handbook,), store=tmp_path)
    computed: list[int] = []

    def retrieve(engine: SamKVEngine) -> None:
        update, found = run_module._retrieve(options, engine, Screen(quiet=True))
        computed.append(update.num_computed)
        assert len(found) == 4

    threads = [threading.Thread(target=retrieve, args=[make_engine(store=tmp_path / "kv")]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(computed) == [0, 4]


def test_a_damaged_index_is_made_again(ask_it: Ask, tmp_path: Path) -> None:
    first = as_json(ask_it("--json"))
    (index,) = (tmp_path / "store").glob("*.sqlite")
    data = bytearray(index.read_bytes())
    data[4096:] = b"\xff" * len(data[4096:])
    index.write_bytes(data)
    status, out, error = ask_it("--json")
    assert status == 0
    assert "is made again from the files" in error
    found = json.loads(out)
    assert found["sources"] == first["sources"]
    assert (found["update"]["num_embedded"], found["update"]["num_computed"]) == (4, 0)


# -- pictures --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "begins"), [("a.html", b"<!doctype html>"), ("b.PNG", b"\x89PNG")])
def test_what_was_read_is_drawn_to_a_file(ask_it: Ask, tmp_path: Path, name: str, begins: bytes) -> None:
    (tmp_path / name).write_text("what stood there before")
    status, _, error = ask_it("--explain", tmp_path / name)
    assert (status, error) == (0, "")
    data = (tmp_path / name).read_bytes()
    assert data[: len(begins)].lower() == begins.lower()
    assert not list(tmp_path.glob(".*"))
    if name == "a.html":
        assert b"three.pdf, page 1" in data


# -- how it fails ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sequence-ratio", "0"], "sequence_ratio is 0.0"),
        (["--method", "magic"], "method is 'magic'"),
        (["--explain", "a.pdf"], "it must end in .html or .png"),
        (["--explain", "/no/such/folder/a.html"], "a folder that exists"),
    ],
)
def test_bad_options_are_refused_before_anything_heavy(
    ask_it: Ask, tmp_path: Path, options: list[str], words: str
) -> None:
    status, out, error = ask_it(*options)
    assert (status, out) == (1, "")
    assert words in only_line(error)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("question", ["", " \n"])
def test_an_empty_question_is_refused(ask_it: Ask, question: str) -> None:
    status, _, error = ask_it(question=question)
    assert status == 1
    assert "the question is empty" in only_line(error)


@pytest.mark.parametrize(
    "arguments", [[], ["Why?"], ["Why?", ".", "--top-k", "0"], ["Why?", ".", "--max-tokens", "many"]], ids=" ".join
)
def test_wrong_usage_exits_2(run: Run, arguments: list[str]) -> None:
    status, out, error = run("ask", *arguments)
    assert (status, out) == (2, "")
    assert "--help" in only_line(error)


def test_folders_that_are_not_there_or_empty(run: Run, tmp_path: Path) -> None:
    for folder, words in ((tmp_path / "missing", "does not exist"), (tmp_path, "holds no files to read")):
        status, _, error = run("ask", "Why?", folder, "--store", tmp_path / "store")
        assert status == 1
        assert words in only_line(error)


def test_a_store_that_is_a_file_is_refused(run: Run, handbook: Path, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("something else")
    status, _, error = run("ask", "Why?", handbook, "--store", tmp_path / "store")
    assert status == 1
    assert "--store is" in only_line(error)


def test_nothing_readable_is_an_error(ask_it: Ask, handbook: Path) -> None:
    for file in handbook.rglob("*.*"):
        file.write_bytes(b"\0")
    status, out, error = ask_it()
    assert (status, out) == (1, "")
    assert "none of 3 files can be read" in only_line(error)


def test_missing_packages_are_named_before_anything_heavy(
    run: Run, handbook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = {"rich", "gguf", "matplotlib"}
    monkeypatch.setattr(ask, "find_spec", lambda name: None if name in absent else find_spec(name))
    arguments = ["--store", tmp_path / "store", "--explain", tmp_path / "a.png"]
    status, out, error = run("ask", "Why?", handbook, *arguments)
    assert (status, out) == (1, "")
    assert 'samkv ask needs rich, gguf, matplotlib; pip install "samkv-rag[ask]"' in only_line(error)


def test_more_passages_than_the_window_holds(ask_it: Ask, handbook: Path) -> None:
    for seed in range(10, 70):
        (handbook / f"{seed}.md").write_text(tiny.text(seed, num_words=150))
    status, out, error = ask_it("--top-k", 60)
    assert (status, out) == (1, "")
    assert "context window" in only_line(error)
    assert "--top-k is 60" in error


def test_the_default_store_is_told_apart_by_folder_and_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMKV_CACHE_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    here, relative = AskOptions("Why?", (tmp_path / "a",)), AskOptions("Who?", (Path("b/../a"),), top_k=3)
    assert here.folder == relative.folder == tmp_path / "ask" / here.scope
    others = [AskOptions("Why?", (tmp_path / "b",)), AskOptions("Why?", (tmp_path / "a",), model="another")]
    assert len({options.folder for options in (here, *others)}) == 3
