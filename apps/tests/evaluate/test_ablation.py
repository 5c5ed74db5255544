"""The ablation on a tiny model: every variant can be run, full prefill answers once, figures are the evaluation's."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from evaluating import lines_of, write_cases

from benchmarks import ablation
from samkv_rag import SamKVConfig
from samkv_apps.evaluate import run

Run = Callable[..., dict[str, Any]]
Answered = list[tuple[str, str, float | None]]


@pytest.fixture
def run_ablation(model_folder: str, cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A function: further arguments to what ablation.json holds."""
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setattr(run, "draw_plots", lambda *_: None)  # three files a variant, tested elsewhere

    def main(*arguments: str) -> dict[str, Any]:
        common = ["--model", model_folder, "--data", str(cases), "--output-dir", str(tmp_path / "out")]
        ablation.main([*common, "--limit", "1", "--sequence-ratio", "0.4", "--dtype", "float32", *arguments])
        figures: dict[str, Any] = json.loads((tmp_path / "out" / "ablation.json").read_text())
        return figures

    return main


def test_every_variant_is_run_and_full_prefill_once(
    run_ablation: Run, tmp_path: Path, answered: Answered, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = run_ablation()["rows"]
    printed = capsys.readouterr().out
    variants = [("full_prefill", ""), *((variant.method, variant.name) for variant in ablation.VARIANTS)]
    assert [(row["figures"]["method"], row["name"]) for row in rows] == variants
    assert all(row["figures"]["n"] == 1 and math.isfinite(row["figures"]["gold_nll"]) for row in rows)
    assert [method for _, method, _ in answered].count("full_prefill") == 2  # warm-up and answer

    table = (tmp_path / "out" / "ablation.md").read_text()
    assert table.endswith(printed)
    assert printed.startswith("## tides\n\n| method | variant |")
    assert len(printed.splitlines()) == 4 + len(rows)


def test_variants_change_what_they_say(run_ablation: Run) -> None:
    by_name = {
        (row["figures"]["method"], row["name"]): row["figures"]
        for row in run_ablation("--sequence-ratio", "0.9")["rows"]
    }
    for method in ("samkv", "scout"):
        whole, without = by_name[method, "all parts"], by_name[method, "no recomputation"]
        assert (without["sequence_ratio_mean"], without["recompute_ratio_mean"]) == (whole["sequence_ratio_mean"], 0.0)
        assert whole["recompute_ratio_mean"] == whole["sequence_ratio_mean"] > 0
        assert without["gold_nll"] != whole["gold_nll"]
    whole, fixed = by_name["samkv", "all parts"], by_name["samkv", "fixed budget instead of the dynamic share"]
    assert whole["sequence_ratio_mean"] < fixed["sequence_ratio_mean"] <= 0.9
    nlls = [figures["gold_nll"] for (_, name), figures in by_name.items() if "fusion" in name or name == "all parts"]
    assert len(set(nlls)) == len(nlls) == 4


def test_equal_configurations_are_run_once_and_a_second_call_goes_on(
    run_ablation: Run, tmp_path: Path, answered: Answered
) -> None:
    first = run_ablation("--methods", "samkv")["rows"]
    configs = {tuple(sorted(v.options.items())) for v in ablation.VARIANTS if v.method == "samkv"}
    folders = [folder for folder in (tmp_path / "out").iterdir() if folder.name.startswith("samkv")]
    assert len(folders) == len(configs) - 1  # the last 4 layers are the default
    answered.clear()
    assert run_ablation("--methods", "samkv")["rows"] == first
    assert answered == []


def test_a_table_for_each_data_set(
    run_ablation: Run, cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablation, "VARIANTS", ablation.VARIANTS[:1])
    run_ablation("--data", str(cases), str(write_cases(tmp_path / "more.jsonl")))
    table = (tmp_path / "out" / "ablation.md").read_text()
    assert table.count("| samkv | all parts | 1 |") == 2
    assert table.index("## more") < table.index("## tides")
    assert {line["data"] for line in lines_of(tmp_path / "out" / "samkv")} == {"more", "tides"}


def test_variants_name_options_that_there_are_and_folders_that_differ() -> None:
    known = {field.name for field in fields(SamKVConfig)}
    assert all(set(variant.options) <= known for variant in ablation.VARIANTS)
    folders = [variant.folder for variant in ablation.VARIANTS]
    assert len(set(folders)) == len(folders)
    assert {variant.method for variant in ablation.VARIANTS} == {"samkv", "scout"}


def test_a_method_without_variants_is_refused(run_ablation: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_ablation("--methods", "epic")
    assert "invalid choice: 'epic'" in capsys.readouterr().err
