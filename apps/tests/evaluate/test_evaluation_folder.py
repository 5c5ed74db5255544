"""How an evaluation goes on in its folder, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from evaluating import Answered, Options, lines_of, runs_without_times, without_times, write_cases

from samkv_apps.evaluate import evaluate, plots
from samkv_apps.evaluate.errors import EvaluationError
from samkv_rag.exceptions import ConfigurationError
from support.commands import Run, only_line

# -- going on --------------------------------------------------------------------------------------


def test_a_run_killed_in_the_middle_of_a_line_goes_on(options: Options, tmp_path: Path, answered: Answered) -> None:
    evaluate(options(output_dir=tmp_path / "whole"))
    evaluate(options())
    predictions = tmp_path / "out" / "predictions.jsonl"
    whole_lines = predictions.read_bytes().splitlines(keepends=True)
    predictions.write_bytes(b"".join(whole_lines[:5]) + whole_lines[5][:30])
    answered.clear()

    evaluate(options())
    warm_ups = 3
    assert len(answered) - warm_ups == len(whole_lines) - 5
    assert runs_without_times(tmp_path / "out") == runs_without_times(tmp_path / "whole")
    assert predictions.read_bytes().startswith(b"".join(whole_lines[:5]))
    assert [without_times(line) for line in lines_of(tmp_path / "out")] == [
        without_times(line) for line in lines_of(tmp_path / "whole")
    ]


def test_a_finished_run_runs_nothing_again(options: Options, answered: Answered) -> None:
    first = evaluate(options())
    answered.clear()
    assert evaluate(options()) == first
    assert answered == []


def test_cases_methods_ratios_and_data_may_be_added(options: Options, tmp_path: Path, answered: Answered) -> None:
    evaluate(options(methods=["scout"], limit=1))
    answered.clear()
    more = write_cases(tmp_path / "more.jsonl")
    metrics = evaluate(options(methods=["naive_reuse", "samkv"], sequence_ratios=[0.6], limit=2, data=[more]))
    assert {(run.data, run.method, run.n) for run in metrics.runs} == {
        ("tides", "full_prefill", 1), ("tides", "scout", 1),
        ("more", "full_prefill", 2), ("more", "naive_reuse", 2), ("more", "samkv", 2),
    }  # fmt: skip
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["methods"] == ["full_prefill", "scout", "naive_reuse", "samkv"]
    assert config["sequence_ratios"] == [0.4, 0.6]
    assert list(config["data"]) == ["tides", "more"]
    assert config["limit"] == 2
    assert "scout" not in {method for _, method, _ in answered}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, "seed is 1, but None"),
        ({"dtype": "bfloat16"}, "dtype is 'bfloat16', but 'float32'"),
        ({"max_new_tokens": 5}, "max_new_tokens is 5, but 4"),
        ({"options": {"block_tokens": 16}}, "option block_tokens is 16, but 8"),
        ({"limit": 1}, "limit is 1, but 2"),
        ({"prompt": "{passages}{question}"}, "prompt is '{passages}{question}', but None"),
        ({"data": "changed"}, "sha256 of data tides"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_run_in_the_same_folder_is_refused(
    options: Options, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    evaluate(options(limit=2, methods=["full_prefill"]))
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    if "data" in changes:
        changes = {"data": [write_cases(tmp_path / "tides.jsonl", question="Which lantern?")]}
    with pytest.raises(ConfigurationError, match=f"{words}.*choose another --output-dir"):
        evaluate(options(**({"limit": 2, "methods": ["full_prefill"]} | changes)))
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_folder_of_something_else_is_left_alone(options: Options, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name, text in (("thesis.txt", "mine"), ("config.json", '{"port": 80}')):
        (out / name).write_text(text)
        with pytest.raises(ConfigurationError, match="holds no evaluation; choose another --output-dir"):
            evaluate(options())
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "thesis.txt"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigurationError, match="is a file"):
        evaluate(options(output_dir=tmp_path / "file"))


def test_a_damaged_line_is_named(options: Options, tmp_path: Path) -> None:
    evaluate(options(limit=1, methods=["full_prefill"]))
    predictions = tmp_path / "out" / "predictions.jsonl"
    predictions.write_text('{"data": 1}\n' + predictions.read_text())
    with pytest.raises(EvaluationError, match=r"predictions\.jsonl, line 1"):
        evaluate(options(limit=1, methods=["full_prefill"]))


# -- what it refuses -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": ["scout", "magic"]}, "unknown method magic; known are"),
        ({"sequence_ratios": [0.0]}, "sequence_ratio is"),
        ({"sequence_ratios": [1.5]}, "sequence_ratio is"),
        ({"sequence_ratios": []}, "sequence_ratio is"),
        ({"limit": 0}, "limit is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"data": []}, "no data"),
        ({"data": [Path("a/x.jsonl"), Path("b/x.jsonl")]}, "two data files are named 'x'"),
        ({"top_k": 0}, "top_k is 0"),
        ({"template": "haystack"}, "template is 'haystack'"),
        ({"retriever": "magic"}, "retriever is 'magic'"),
        ({"order": "upside_down"}, "order is 'upside_down'"),
        ({"prompt": "{passages}"}, "{question} 0 times"),
        ({"prompt": "{passages}{passages}{question}"}, "{passages} 2 times"),
        ({"prompt": "{passages}{question}", "template": "plain"}, "template is 'plain' and a prompt is given too"),
        ({"corpus": True, "order": "file"}, "order is 'file', which a corpus has not"),
        ({"methods": ["more_chunks"]}, "more_chunks reads more of a corpus; give corpus too"),
        ({"methods": ["more_chunks"], "corpus": True, "more_top_k": 3}, "more_top_k is 3; it must be at least top_k"),
        ({"options": {"sequence_ratio": 0.3}}, "sequence_ratio cannot be set"),
        ({"options": {"min_chunk_tokens": 9}}, "min_chunk_tokens cannot be set"),
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
        ("--data a.jsonl --option sequence_ratio=0.3", 1, "sequence_ratio cannot be set"),
        ("--data a.jsonl --methods magic", 1, "unknown method magic"),
        ("--data a.jsonl --prompt missing.txt", 1, "--prompt missing.txt cannot be read"),
        ("--data missing.jsonl", 1, "missing.jsonl cannot be read"),
        ("--data a.jsonl --limit 0", 2, "limit"),
        ("", 2, "give either --data FILE, or --documents FOLDER and --questions CSV"),
        ("--documents .", 2, "--documents and --questions belong together"),
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
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'samkv-apps\[plots\]'"):
        evaluate(options(plots=True))
    assert not (tmp_path / "out").exists()
