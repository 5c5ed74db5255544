"""An evaluation continues in its folder, and refuses wrong folders and options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from evaluating import Answered, Options, config_of, lines_of, runs_of, without_times, write_cases

from samkv_apps.evaluate import evaluate
from samkv_apps.evaluate.errors import EvaluationError
from samkv_rag.exceptions import ConfigurationError
from support.commands import Run, only_line


def test_a_run_killed_in_the_middle_of_a_line_goes_on(options: Options, tmp_path: Path, answered: Answered) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    evaluate(options(output_dir=whole))
    evaluate(options())
    lines = (out / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    kept = b"".join(lines[:5])
    (out / "predictions.jsonl").write_bytes(kept + lines[5][:30])
    answered.clear()

    finished = evaluate(options())
    warm_ups = 3
    assert len(answered) - warm_ups == len(lines) - 5
    assert (out / "predictions.jsonl").read_bytes().startswith(kept)
    assert without_times(runs_of(out)) == without_times(runs_of(whole))
    assert without_times(lines_of(out)) == without_times(lines_of(whole))

    answered.clear()
    assert evaluate(options()) == finished
    assert answered == [], "a finished run runs nothing again"


def test_cases_methods_ratios_and_data_may_be_added(options: Options, tmp_path: Path, answered: Answered) -> None:
    evaluate(options(methods=["scout"], limit=1))
    answered.clear()
    more = write_cases(tmp_path / "more.jsonl")
    metrics = evaluate(options(methods=["naive_reuse", "samkv"], sequence_ratios=[0.6], limit=2, data=[more]))
    assert {(run.data, run.method, run.n) for run in metrics.runs} == {
        ("tides", "full_prefill", 1), ("tides", "scout", 1),
        ("more", "full_prefill", 2), ("more", "naive_reuse", 2), ("more", "samkv", 2),
    }  # fmt: skip
    config = config_of(tmp_path / "out")
    assert config["methods"] == ["full_prefill", "scout", "naive_reuse", "samkv"]
    assert (config["sequence_ratios"], list(config["data"]), config["limit"]) == ([0.4, 0.6], ["tides", "more"], 2)
    assert "scout" not in {method for _, method, _ in answered}


def test_another_run_in_the_same_folder_is_refused(options: Options, tmp_path: Path) -> None:
    same: dict[str, Any] = {"limit": 2, "methods": ["full_prefill"]}
    evaluate(options(**same))
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    changed = write_cases(tmp_path / "tides.jsonl", question="Which lantern?")
    refused: list[tuple[dict[str, Any], str]] = [
        ({"seed": 1}, "seed is 1, but None"),
        ({"dtype": "bfloat16"}, "dtype is 'bfloat16', but 'float32'"),
        ({"options": {"block_tokens": 16}}, "option block_tokens is 16, but 8"),
        ({"limit": 1}, "limit is 1, but 2"),
        ({"data": [changed]}, "sha256 of data tides"),
    ]
    for changes, words in refused:
        with pytest.raises(ConfigurationError, match=f"{words}.*choose another --output-dir"):
            evaluate(options(**same | changes))
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_folder_of_something_else_is_left_alone(options: Options, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name, text in (("thesis.txt", "mine"), ("config.json", '{"port": 80}')):
        (out / name).write_text(text)
        with pytest.raises(ConfigurationError, match="holds no evaluation; choose another --output-dir"):
            evaluate(options())
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "thesis.txt"]
    with pytest.raises(ConfigurationError, match="is a file"):
        evaluate(options(output_dir=out / "thesis.txt"))


def test_a_damaged_line_is_named(options: Options, tmp_path: Path) -> None:
    evaluate(options(limit=1, methods=["full_prefill"]))
    predictions = tmp_path / "out" / "predictions.jsonl"
    predictions.write_text('{"data": 1}\n' + predictions.read_text())
    with pytest.raises(EvaluationError, match=r"predictions\.jsonl, line 1"):
        evaluate(options(limit=1, methods=["full_prefill"]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": ["scout", "magic"]}, "unknown method magic; known are"),
        *(({"sequence_ratios": ratios}, "sequence_ratio is") for ratios in ([0.0], [1.5], [])),
        *(({name: 0}, f"{name} is 0") for name in ("limit", "max_new_tokens", "top_k", "more_top_k", "group")),
        ({"seed": -1}, "seed is -1"),
        ({"data": []}, "no data"),
        ({"data": [Path("a/x.jsonl"), Path("b/x.jsonl")]}, "two data files are named 'x'"),
        *(({name: "magic"}, f"{name} is 'magic'") for name in ("task", "template", "retriever", "order")),
        ({"prompt": "{passages}"}, "{question} 0 times"),
        ({"prompt": "{passages}{question}", "template": "plain"}, "template is 'plain' and a prompt is given too"),
        ({"corpus": True, "order": "file"}, "order is 'file', which a corpus lacks"),
        ({"methods": ["more_chunks"]}, "more_chunks reads more of a corpus; give corpus too"),
        ({"methods": ["more_chunks"], "corpus": True, "more_top_k": 3}, "more_top_k is 3; it must be at least top_k"),
        ({"methods": ["fewer_chunks"], "task": "long"}, "fewer_chunks answers other prompts"),
        ({"options": {"sequence_ratio": 0.3}}, "sequence_ratio cannot be set"),
        ({"options": {"nonsense": 1}}, "unknown option nonsense"),
        ({"options": {"block_tokens": "many"}}, "block_tokens is 'many'"),
    ],
    ids=str,
)
def test_bad_options_are_refused_before_anything_is_loaded(
    options: Options, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        options(**changes)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ("--data a.jsonl --sequence-ratio much", 1, "sequence_ratio is 'much'"),
        ("--data a.jsonl --option block_tokens", 1, "give name=value"),
        ("--data a.jsonl --prompt missing.txt", 1, "--prompt missing.txt cannot be read"),
        ("--data missing.jsonl", 1, "missing.jsonl cannot be read"),
        ("", 2, "give either --data FILE, or --documents FOLDER and --questions CSV"),
        ("--questions q.csv", 2, "--documents and --questions belong together"),
        ("--data a.jsonl --documents . --questions q.csv", 2, "give either --data"),
        ("--data a.jsonl --top-k 3", 2, "--top-k goes with --documents or --corpus"),
        ("--documents . --questions q.csv --corpus", 2, "--corpus goes with --data"),
        ("--documents . --questions missing.csv", 1, "missing.csv cannot be read"),
    ],
)
def test_the_command_line_fails_in_one_line(run: Run, arguments: str, status: int, words: str, tmp_path: Path) -> None:
    result, _, errors = run("evaluate", "--model", "none", "--output-dir", tmp_path / "out", *arguments.split())
    assert result == status
    assert words in only_line(errors)
    assert not (tmp_path / "out").exists()


def test_a_fallback_to_full_prefill_is_an_error(options: Options, tmp_path: Path) -> None:
    short = {"chunks": [{"title": "", "text": "the ebb"}]}  # too short to be cached
    with pytest.raises(EvaluationError, match="case-0 of short: scout fell back to full prefill: no stored chunk"):
        evaluate(options(data=[write_cases(tmp_path / "short.jsonl", **short)]))


def test_missing_matplotlib_is_told_before_the_run(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'samkv-apps\[plots\]'"):
        evaluate(options(plots=True))
    assert not (tmp_path / "out").exists()
