"""Summarise predictions: one row per data set, method and ratio."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

from samkv_apps.evaluate.options import FULL, REFERENCE, Task
from samkv_apps.evaluate.records import Prediction
from samkv_apps.evaluate.statistics import bootstrap_interval


@dataclass(frozen=True)
class RunMetrics:
    """One method at one ratio on one data set, over ``n`` cases. Times are in seconds, sizes in bytes.

    Names with ``_full`` are full prefill's figures on the same cases. Differences and time ratios are paired, case by
    case. ``sequence_ratio`` was requested (1 if a method keeps all); ``sequence_ratio_mean`` was kept.
    """

    data: str
    method: str
    sequence_ratio: float
    n: int
    f1: float
    em: float
    gold_nll: float
    f1_full: float
    f1_diff_ci95: tuple[float, float]
    gold_nll_diff_ci95: tuple[float, float]
    ttft_s_median: float
    ttft_ratio_median: float
    sequence_ratio_mean: float
    recompute_ratio_mean: float
    kv_bytes_resident_mean: float
    kv_bytes_full_mean: float
    supporting_recall: float | None
    gold_nll_full: float
    recall: float
    """Mean share of the right answer's words that are in the answer."""
    recall_full: float
    recall_diff_ci95: tuple[float, float]
    phase_s_median: dict[str, float]
    diagnostics: dict[str, int]
    """Number of cases by diagnostic."""
    answer_retained: float | None
    """Share of cases whose retained text contains a right answer, among those whose chunks contain one."""
    n_full_right: int
    """Number of cases in which full prefill's answer has all words of a right answer."""
    recall_full_right: float | None
    """Recall on these cases only; None if there are none."""
    f1_full_right: float | None


@dataclass(frozen=True)
class EvaluationMetrics:
    """All rows by data set, full prefill first."""

    runs: tuple[RunMetrics, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {"runs": [asdict(run) for run in self.runs]}


def summarise(predictions: Sequence[Prediction], seed: int = 0) -> EvaluationMetrics:
    """Compute the figures; ``seed`` is the bootstrap's. Cases without full prefill's answer are left out."""
    groups: dict[tuple[str, Task], dict[str, Prediction]] = {}
    for prediction in predictions:
        groups.setdefault((prediction.data, prediction.task), {})[prediction.case] = prediction
    rows = []
    for (data, task), answered in sorted(groups.items(), key=_order):
        reference = groups.get((data, FULL), {})
        pairs = [(answered[case], reference[case]) for case in answered if case in reference]
        if pairs:
            rows.append(_summarise_pairs(data, task, pairs, seed))
    return EvaluationMetrics(tuple(rows))


def _order(group: tuple[tuple[str, Task], Any]) -> tuple[str, bool, str, float]:
    (data, task), _ = group
    return data, task.method != REFERENCE, task.method, task.ratio or 1.0


def _summarise_pairs(data: str, task: Task, pairs: Sequence[tuple[Prediction, Prediction]], seed: int) -> RunMetrics:
    own, full = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    full_right = [p for p, q in pairs if q.recall == 1]
    return RunMetrics(
        data=data,
        method=task.method,
        sequence_ratio=1.0 if task.ratio is None else task.ratio,
        n=len(pairs),
        f1=_mean(own, lambda p: p.f1),
        em=_mean(own, lambda p: p.em),
        gold_nll=_mean(own, lambda p: p.gold_nll),
        f1_full=_mean(full, lambda p: p.f1),
        f1_diff_ci95=bootstrap_interval([p.f1 - q.f1 for p, q in pairs], seed),
        gold_nll_diff_ci95=bootstrap_interval([p.gold_nll - q.gold_nll for p, q in pairs], seed),
        ttft_s_median=median(p.ttft_s for p in own),
        ttft_ratio_median=median(p.ttft_s / q.ttft_s for p, q in pairs),
        sequence_ratio_mean=_mean(own, lambda p: p.sequence_ratio),
        recompute_ratio_mean=_mean(own, lambda p: p.recompute_ratio),
        kv_bytes_resident_mean=_mean(own, lambda p: p.kv_bytes_resident),
        kv_bytes_full_mean=_mean(own, lambda p: p.kv_bytes_full),
        supporting_recall=_mean_of_known(p.supporting_recall for p in own),
        gold_nll_full=_mean(full, lambda p: p.gold_nll),
        recall=_mean(own, lambda p: p.recall),
        recall_full=_mean(full, lambda p: p.recall),
        recall_diff_ci95=bootstrap_interval([p.recall - q.recall for p, q in pairs], seed),
        phase_s_median={name: median(p.phase_s.get(name, 0.0) for p in own) for name in _phases(own)},
        diagnostics=dict(sorted(Counter(name for p in own for name in p.diagnostics).items())),
        answer_retained=_mean_of_known(p.answer_retained for p in own),
        n_full_right=len(full_right),
        recall_full_right=_mean_of_known(p.recall for p in full_right),
        f1_full_right=_mean_of_known(p.f1 for p in full_right),
    )


def _mean_of_known(figures: Iterable[float | None]) -> float | None:
    known = [figure for figure in figures if figure is not None]
    return fmean(known) if known else None


def _mean(predictions: Sequence[Prediction], figure: Callable[[Prediction], float]) -> float:
    return fmean(figure(prediction) for prediction in predictions)


def _phases(predictions: Sequence[Prediction]) -> list[str]:
    return list(dict.fromkeys(name for prediction in predictions for name in prediction.phase_s))
