"""Full prefill's answers are reused from another evaluation, only if they would be the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from evaluating import Answered, Options, config_of, lines_of, write_cases

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
    made = full_prefill_lines(reference)
    with (reference / "predictions.jsonl").open("a") as file:
        file.write('{"data": "ti')  # another process is writing its last line
    before = {path: path.read_bytes() for path in reference.iterdir()}
    answered.clear()
    metrics = evaluate(options(reference=reference, limit=2, options={"recompute": False}))
    assert {method for _, method, _ in answered} == {"scout", "naive_reuse"}
    out = tmp_path / "out"
    assert full_prefill_lines(out) == made
    assert {run.method: run.n for run in metrics.runs} == {"full_prefill": 2, "scout": 2, "naive_reuse": 2}
    assert {path: path.read_bytes() for path in reference.iterdir()} == before
    assert config_of(out)["references"] == [reference.name]
    assert f"Full prefill's answers were taken over from {reference.name}." in (out / "report.md").read_text()


def test_what_the_reference_lacks_is_run(options: Options, reference: Path, tmp_path: Path, answered: Answered) -> None:
    older = lines_of(reference)
    for line in older:
        del line["answer_retained"]  # an older file lacks this figure
    (reference / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in older))
    data = [*options().data, write_cases(tmp_path / "more.jsonl")]
    answered.clear()
    evaluate(options(reference=reference, data=data, methods=["full_prefill"]))
    lines = full_prefill_lines(tmp_path / "out")
    assert lines[:2] == [line | {"answer_retained": None} for line in full_prefill_lines(reference)]
    assert len(lines) == 6
    warm_ups = 2
    assert len(answered) == 4 + warm_ups
    assert ("case-2", "full_prefill", None) in answered


def test_a_reference_of_another_kind_or_machine_is_refused_before_anything_is_written(
    options: Options, tmp_path: Path, reference: Path
) -> None:
    def refused(words: str, **changes: Any) -> None:
        with pytest.raises(ConfigurationError, match=f"{words} .*in reference .*; evaluate without it"):
            evaluate(options(reference=reference, **changes))
        assert not (tmp_path / "out").exists()

    refused("max_new_tokens is 5, but 4", max_new_tokens=5)
    refused("dtype is 'bfloat16', but 'float32'", dtype="bfloat16")
    refused("sha256 of data tides is", data=[write_cases(tmp_path / "tides.jsonl", question="Which lantern?")])
    refused("template is 'plain', but None", template="plain")
    refused("retrieval is {'corpus': False, .*, but None", order="random")
    config = config_of(reference)
    for name, value in (("hardware", {"gpu": "another"}), ("versions", {"torch": "1.0"})):
        (reference / "config.json").write_text(json.dumps(config | {name: value}))
        refused(f"{name} is")


def test_a_folder_without_an_evaluation_is_no_reference(options: Options, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"empty holds no evaluation; give a folder that samkv evaluate wrote"):
        evaluate(options(reference=tmp_path / "empty"))
