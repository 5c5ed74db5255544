"""Full prefill's answers are taken over from another evaluation, and only where they would be the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from evaluating import Answered, Options, lines_of, write_cases

from samkv_apps.evaluate import evaluate
from samkv_rag.exceptions import ConfigurationError


@pytest.fixture
def reference(options: Options, tmp_path: Path) -> Path:
    evaluate(options(output_dir=tmp_path / "full", methods=["scout"], limit=2))
    return tmp_path / "full"


def full_prefill_lines(folder: Path) -> list[dict[str, Any]]:
    return [line for line in lines_of(folder) if line["method"] == "full_prefill"]


def test_full_prefill_is_taken_over_and_the_rest_is_run(
    options: Options, tmp_path: Path, reference: Path, answered: Answered
) -> None:
    before = {path: path.read_bytes() for path in reference.iterdir()}
    answered.clear()
    metrics = evaluate(options(reference=reference, limit=2, options={"recompute": False}))
    assert "full_prefill" not in {method for _, method, _ in answered}
    assert {method for _, method, _ in answered} == {"scout", "naive_reuse"}
    out = tmp_path / "out"
    assert full_prefill_lines(out) == full_prefill_lines(reference)
    assert {run.method: run.n for run in metrics.runs} == {"full_prefill": 2, "scout": 2, "naive_reuse": 2}
    assert {path: path.read_bytes() for path in reference.iterdir()} == before
    assert json.loads((out / "config.json").read_text())["references"] == [reference.name]
    assert f"Full prefill's answers were taken over from {reference.name}." in (out / "report.md").read_text()


def test_what_the_reference_lacks_is_run(options: Options, reference: Path, tmp_path: Path, answered: Answered) -> None:
    more = write_cases(tmp_path / "more.jsonl")
    data = options().data[0]
    answered.clear()
    evaluate(options(reference=reference, data=[data, more], methods=["full_prefill"]))
    assert len(full_prefill_lines(tmp_path / "out")) == 6
    warm_ups = 2
    assert len(answered) == 4 + warm_ups
    assert ("case-2", "full_prefill", None) in answered


def test_a_reference_is_read_though_another_process_is_writing_its_last_line(
    options: Options, reference: Path, tmp_path: Path
) -> None:
    predictions = reference / "predictions.jsonl"
    content = predictions.read_bytes() + b'{"data": "ti'
    predictions.write_bytes(content)
    evaluate(options(reference=reference, limit=2, methods=["full_prefill"]))
    assert len(full_prefill_lines(tmp_path / "out")) == 2
    assert predictions.read_bytes() == content


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_new_tokens": 5}, "max_new_tokens is 5, but 4 in reference"),
        ({"dtype": "bfloat16"}, "dtype is 'bfloat16', but 'float32' in reference"),
        ({"data": "changed"}, "sha256 of data tides is"),
        ({"template": "plain"}, "template is 'plain', but None in reference"),
        ({"order": "random"}, "retrieval is {'corpus': False, .*, but None in reference"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_reference_of_another_kind_is_refused_before_anything_is_written(
    options: Options, tmp_path: Path, reference: Path, changes: dict[str, Any], words: str
) -> None:
    if "data" in changes:
        changes = {"data": [write_cases(tmp_path / "tides.jsonl", question="Which lantern?")]}
    with pytest.raises(ConfigurationError, match=words):
        evaluate(options(reference=reference, **changes))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "value"), [("hardware", {"gpu": "another"}), ("versions", {"torch": "1.0"})])
def test_a_reference_of_another_machine_is_refused(
    options: Options, reference: Path, name: str, value: dict[str, str]
) -> None:
    config = json.loads((reference / "config.json").read_text())
    (reference / "config.json").write_text(json.dumps(config | {name: value}))
    with pytest.raises(ConfigurationError, match=f"{name} is .* in reference .*; evaluate without it"):
        evaluate(options(reference=reference))


def test_a_reference_from_before_a_figure_was_added_is_read(options: Options, tmp_path: Path) -> None:
    evaluate(options(output_dir=tmp_path / "full", methods=["full_prefill"], limit=1))
    predictions = tmp_path / "full" / "predictions.jsonl"
    (line,) = lines_of(tmp_path / "full")
    predictions.write_text(json.dumps({k: v for k, v in line.items() if k != "answer_retained"}) + "\n")
    evaluate(options(reference=tmp_path / "full", methods=["full_prefill"], limit=1))
    assert lines_of(tmp_path / "out") == [line | {"answer_retained": None}]


def test_a_folder_without_an_evaluation_is_no_reference(options: Options, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"empty holds no evaluation; give a folder that samkv evaluate wrote"):
        evaluate(options(reference=tmp_path / "empty"))
