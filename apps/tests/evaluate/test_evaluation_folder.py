"""How an evaluation goes on in its folder, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evaluating import lines_of, runs_without_times, without_times, write_cases

from samkv_apps.evaluate import EvaluationOptions, evaluate, plots
from samkv_apps.evaluate.errors import EvaluationError
from samkv_rag.exceptions import ConfigurationError
from support.commands import Run, only_line

# -- going on --------------------------------------------------------------------------------------


def test_a_run_killed_in_the_middle_of_a_line_goes_on(
    options: Callable[..., EvaluationOptions], tmp_path: Path, answered: list[tuple[str, str, float | None]]
) -> None:
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


def test_a_finished_run_runs_nothing_again(
    options: Callable[..., EvaluationOptions], answered: list[tuple[str, str, float | None]]
) -> None:
    first = evaluate(options())
    answered.clear()
    assert evaluate(options()) == first
    assert answered == []


def test_cases_methods_ratios_and_data_may_be_added(
    options: Callable[..., EvaluationOptions], tmp_path: Path, answered: list[tuple[str, str, float | None]]
) -> None:
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
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_run_in_the_same_folder_is_refused(
    options: Callable[..., EvaluationOptions], tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    evaluate(options(limit=2, methods=["full_prefill"]))
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(ConfigurationError, match=f"{words}.*choose another --output-dir"):
        evaluate(options(**({"limit": 2, "methods": ["full_prefill"]} | changes)))
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_changed_data_under_the_same_name_is_refused(options: Callable[..., EvaluationOptions], tmp_path: Path) -> None:
    evaluate(options(limit=1, methods=["full_prefill"]))
    changed = write_cases(tmp_path / "tides.jsonl", question="Which lantern?")
    with pytest.raises(ConfigurationError, match="sha256 of data tides"):
        evaluate(options(limit=1, methods=["full_prefill"], data=[changed]))


def test_a_folder_of_something_else_is_left_alone(options: Callable[..., EvaluationOptions], tmp_path: Path) -> None:
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


def test_a_damaged_line_is_named(options: Callable[..., EvaluationOptions], tmp_path: Path) -> None:
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
        ({"options": {"sequence_ratio": 0.3}}, "sequence_ratio cannot be set"),
        ({"options": {"min_chunk_tokens": 9}}, "min_chunk_tokens cannot be set"),
        ({"options": {"nonsense": 1}}, "unknown option nonsense"),
        ({"options": {"block_tokens": "many"}}, "block_tokens is 'many'"),
    ],
    ids=str,
)
def test_bad_options_are_refused_before_anything_is_loaded(
    options: Callable[..., EvaluationOptions], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        options(**changes)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--sequence-ratio", "much"], 1, "sequence_ratio is 'much'"),
        (["--option", "block_tokens"], 1, "give name=value"),
        (["--methods", "magic"], 1, "unknown method magic"),
        (["--data", "missing.jsonl"], 1, "missing.jsonl cannot be read"),
        (["--limit", "0"], 2, "limit"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_the_command_line_fails_in_one_line(
    run: Run, arguments: list[str], status: int, words: str, tmp_path: Path, cases: Path
) -> None:
    common = ["--model", "none", "--data", cases, "--output-dir", tmp_path / "out"]
    result, _, errors = run("evaluate", *common, *arguments)
    assert result == status
    assert words in only_line(errors)
    assert not (tmp_path / "out").exists()


def test_a_fallback_to_full_prefill_is_an_error(options: Callable[..., EvaluationOptions], tmp_path: Path) -> None:
    short = {"chunks": [{"title": "", "text": "the ebb"}]}  # too short to be cached
    with pytest.raises(EvaluationError, match="case-0 of short: scout fell back to full prefill: no stored chunk"):
        evaluate(options(data=[write_cases(tmp_path / "short.jsonl", **short)]))


def test_missing_matplotlib_is_told_before_the_run(
    options: Callable[..., EvaluationOptions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'samkv-apps\[plots\]'"):
        evaluate(options(plots=True))
    assert not (tmp_path / "out").exists()
