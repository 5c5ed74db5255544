"""`samkv evaluate` end to end on a tiny model: tasks, their order, and files."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import pytest
from evaluating import Answered, Options, config_of, lines_of, runs_of, write_cases

from samkv_apps.evaluate import evaluate, plots
from samkv_apps.evaluate.compressors import COMPRESSORS, Compressor
from samkv_apps.evaluate.datasets import Case
from samkv_apps.evaluate.errors import EvaluationError
from samkv_apps.evaluate.run import _Run
from samkv_rag import SamKVEngine
from samkv_rag.prefill import method_classes
from samkv_rag.store.disk import DiskStore

RUN_KEYS = {
    "data", "method", "sequence_ratio", "n", "f1", "em", "gold_nll", "f1_full", "f1_diff_ci95", "gold_nll_diff_ci95",
    "ttft_s_median", "ttft_ratio_median", "sequence_ratio_mean", "recompute_ratio_mean", "kv_bytes_resident_mean",
    "kv_bytes_full_mean", "supporting_recall", "gold_nll_full", "phase_s_median", "diagnostics", "recall",
    "recall_full", "recall_diff_ci95", "answer_retained", "n_full_right", "recall_full_right", "f1_full_right",
}  # fmt: skip
PREDICTION_KEYS = {
    "data", "case", "method", "ratio", "prediction", "f1", "em", "recall", "gold_nll", "ttft_s", "total_s",
    "phase_s", "sequence_ratio", "recompute_ratio", "kv_bytes_resident", "kv_bytes_full", "prompt_tokens",
    "chunk_tokens", "supporting_recall", "diagnostics", "answer_retained",
}  # fmt: skip


def test_the_command_line_from_end_to_end(command: Callable[..., str], cases: Path, tmp_path: Path) -> None:
    more, out = write_cases(tmp_path / "more.jsonl"), tmp_path / "out"
    arguments = "--methods scout,samkv --limit 2 --seed 3 --sequence-ratio 0.4,0.6 --max-new-tokens 4 --plots"
    arguments += " --option block_tokens=8 --option score_layers=(0.25,1.0)"
    printed = command(out, "--data", cases, more, *arguments.split())
    assert str(out) in printed
    assert "more  scout 0.4  recall " in printed

    assert all(set(run) == RUN_KEYS for run in runs_of(out))
    assert [(run["data"], run["method"], run["sequence_ratio"], run["n"]) for run in runs_of(out)] == [
        (data, method, ratio, 2)
        for data in ("more", "tides")
        for method, ratio in (("full_prefill", 1.0), ("samkv", 0.4), ("samkv", 0.6), ("scout", 0.4), ("scout", 0.6))
    ]
    config = config_of(out)
    assert (config["seed"], config["limit"], config["dtype"]) == (3, 2, "float32")
    assert config["options"] == {"block_tokens": 8, "score_layers": [0.25, 1.0]}
    assert set(config["versions"]) == {"samkv_rag", "python", "torch", "transformers"}
    assert {len(data["sha256"]) for data in config["data"].values()} == {64}
    report = (out / "report.md").read_text()
    for part in ("## tides", "## more", "## How it was measured", "## Diagnostics", "sample of 2 of each file, seed 3"):
        assert part in report
    for shared in (report, (out / "config.json").read_text()):
        assert str(out.parent) not in shared, "a report is made to be shared: no paths of this machine"
    for plot in (plots.QUALITY, plots.COST, plots.TTFT, plots.MEMORY):
        assert (out / plot).read_bytes().startswith(b"\x89PNG\r\n")
        assert f"({plot})" in report


def test_every_method_runs_and_keeps_its_figures_apart(options: Options, tmp_path: Path) -> None:
    runs = {run.method: run for run in evaluate(options(methods=list(method_classes()), limit=1)).runs}
    assert runs.keys() == set(method_classes())
    full, scout = runs["full_prefill"], runs["scout"]
    assert (full.ttft_ratio_median, full.f1_diff_ci95, full.gold_nll_diff_ci95) == (1.0, (0.0, 0.0), (0.0, 0.0))
    assert (full.recompute_ratio_mean, runs["naive_reuse"].recompute_ratio_mean) == (1.0, 0.0)
    assert 0 < scout.sequence_ratio_mean <= 0.4
    assert scout.supporting_recall is not None and 0 < scout.supporting_recall < 1
    assert scout.kv_bytes_resident_mean < scout.kv_bytes_full_mean == full.kv_bytes_resident_mean
    assert scout.gold_nll != full.gold_nll and math.isfinite(scout.gold_nll)
    for line in lines_of(tmp_path / "out"):
        assert set(line) == PREDICTION_KEYS
        assert (line["case"], line["ratio"] is None) == ("case-0", line["method"] in ("full_prefill", "naive_reuse"))
        assert line["total_s"] > line["ttft_s"] > 0


def test_diagnostics_are_counted_by_name(options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    diagnostics = {run.method: run.diagnostics for run in evaluate(options(sequence_ratios=[0.02])).runs}
    assert diagnostics == {"full_prefill": {}, "naive_reuse": {}, "scout": {"cache_underflow": 3}}
    report = (tmp_path / "out" / "report.md").read_text()
    assert "| tides | scout | 0.02 | cache_underflow | 3 of 3 | the budget does not hold" in report
    line = next(line for line in lines_of(tmp_path / "out") if line["method"] == "scout")
    assert "a budget of 2 tokens for 3 chunks" in line["diagnostics"]["cache_underflow"]

    monkeypatch.setattr(DiskStore, "get", lambda *_: None)  # as if every chunk were damaged
    lost = evaluate(options(output_dir=tmp_path / "lost", methods=["naive_reuse"], limit=1)).runs[1]
    assert lost.diagnostics == {"chunks_missed": 1, "excessive_recomputation": 1}
    report = (tmp_path / "lost" / "report.md").read_text()
    assert "naive_reuse | 1 | chunks_missed | 1 of 1 | the store lacked" in report


def test_every_method_is_warmed_up_once_a_file_and_the_order_rotates(options: Options, answered: Answered) -> None:
    evaluate(options(sequence_ratios=[0.4, 0.6]))
    warm_up, timed = answered[:3], answered[3:]
    assert warm_up == [("case-0", "full_prefill", None), ("case-0", "scout", 0.6), ("case-0", "naive_reuse", None)]
    full, scout4, scout6, naive = ("full_prefill", None), ("scout", 0.4), ("scout", 0.6), ("naive_reuse", None)
    assert [[(method, ratio) for case, method, ratio in timed if case == f"case-{n}"] for n in range(3)] == [
        [full, scout4, scout6, naive], [full, scout6, naive, scout4], [full, naive, scout4, scout6],
    ]  # fmt: skip


def test_an_intermediate_result_stands_after_every_file(
    options: Options, cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm_up = _Run._warm_up

    def stop_at_second(self: _Run, data: str, cases: list[Case]) -> None:
        if data == "more":
            raise KeyboardInterrupt
        warm_up(self, data, cases)

    monkeypatch.setattr(_Run, "_warm_up", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        evaluate(options(data=[cases, write_cases(tmp_path / "more.jsonl")], limit=1))
    assert {run["data"] for run in runs_of(tmp_path / "out")} == {"tides"}


class KeepFirst(Compressor):
    """Keeps the first chunk, even if it exceeds the budget."""

    name: ClassVar[str] = "keep_first"

    def __init__(self, engine: SamKVEngine) -> None:
        pass

    def compress(self, question: str, chunks: Sequence[str], max_tokens: int) -> list[str]:
        return list(chunks[:1])


def test_a_compressor_is_judged_by_the_whole_prompt_and_held_to_its_budget(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(COMPRESSORS, "keep_first", KeepFirst)
    evaluate(options(methods=["keep_first"], limit=1))
    full, shortened = lines_of(tmp_path / "out")
    for name in ("prompt_tokens", "chunk_tokens", "kv_bytes_full"):
        assert shortened[name] == full[name]
    assert 0.2 < shortened["sequence_ratio"] == shortened["recompute_ratio"] < 0.4
    assert shortened["kv_bytes_resident"] < full["kv_bytes_resident"]
    assert shortened["supporting_recall"] == 0.0  # the second chunk supports, the first was kept
    assert shortened["phase_s"]["compress"] < shortened["ttft_s"]
    assert shortened["gold_nll"] != full["gold_nll"]
    with pytest.raises(EvaluationError, match=r"keep_first kept .* tokens of a budget of"):
        evaluate(options(methods=["keep_first"], sequence_ratios=[0.2]))
