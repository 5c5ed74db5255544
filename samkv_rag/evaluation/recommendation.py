"""Which method and ``sequence_ratio`` to use, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median, stdev
from typing import Any

from samkv_rag.evaluation.options import REFERENCE, TOLERANCE, Task
from samkv_rag.evaluation.records import Prediction
from samkv_rag.evaluation.statistics import bootstrap_interval, bootstrap_share
from samkv_rag.exceptions import ConfigurationError
from samkv_rag.methods import METHODS

_SURE = 0.95
_Z_SURE = 1.645  # one-sided
_MOST_CASES = 10_000  # beyond, nobody will ask so many
_HARD = 0.3
# One question lost and one won, in thought: else a few questions without a difference would seem to prove that
# there never is one. The idea is Agresti and Coull's (1998), for pairs Agresti and Min's (2005).
_IMAGINED = (-1.0, 1.0)


@dataclass(frozen=True)
class Evidence:
    """How one method at one ratio answered, question by question beside full prefill, over all data sets."""

    method: str
    sequence_ratio: float
    num_cases: int
    num_better: int
    num_worse: int
    recall: float
    recall_full: float
    recall_diff_ci95: tuple[float, float]
    likelihood: float
    """Share of bootstrap resamples, with one more question lost and one more won, in which it loses no more
    than the tolerance."""
    num_cases_needed: int | None
    """So that the same difference would be sure at 95%; None where no number of them would do."""
    gold_nll_diff_ci95: tuple[float, float]
    ttft_ratio_median: float
    kv_ratio_mean: float

    @property
    def difference(self) -> float:
        """Mean answer recall, less full prefill's."""
        return self.recall - self.recall_full


@dataclass(frozen=True)
class Recommendation:
    """What to put into :class:`~samkv_rag.SamKVConfig`: ``method``, and ``sequence_ratio`` with it.

    ``evidence`` speaks for it; where ``method`` is full_prefill, it shows what came nearest to it.
    ``worse_above`` are larger ratios of the same method that are not as good: a reason to doubt.
    """

    method: str
    sequence_ratio: float
    tolerance: float
    evidence: Evidence
    worse_above: tuple[float, ...] = ()

    @property
    def is_sure(self) -> bool:
        """Whether the likelihood is 95% or more."""
        return self.method != REFERENCE and self.evidence.likelihood >= _SURE

    def sentence(self) -> str:
        """Say it in one sentence."""
        shown = self.evidence
        low, high = shown.recall_diff_ci95
        figures = (
            f"answer recall {shown.recall:.2f} beside {shown.recall_full:.2f} on {shown.num_cases} questions, "
            f"{shown.num_better} better and {shown.num_worse} worse, difference {low:+.2f} to {high:+.2f} at 95%"
        )
        setting = f"{shown.method} at sequence_ratio {shown.sequence_ratio:g}"
        if self.method == REFERENCE:
            loss = f"came nearest, but loses more than {self.tolerance:g}"
            return f"Recommended: full_prefill; {setting} {loss} ({figures})."
        return (
            f"Recommended: {setting}, the smallest measured that is as good as full prefill ({figures}); that it "
            f"loses no more than {self.tolerance:g} has a likelihood of {shown.likelihood:.0%}."
        )

    def caveats(self) -> list[str]:
        """What to bear in mind, in sentences."""
        return list(_caveats(self))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self) | {
            "is_sure": self.is_sure,
            "sentence": self.sentence(),
            "caveats": self.caveats(),
        }


def recommend(predictions: Sequence[Prediction], tolerance: float = TOLERANCE, seed: int = 0) -> Recommendation | None:
    """Return the smallest measured ratio that is as good as full prefill; None where none was measured.

    As good: mean answer recall (the share of the reference answer's words that stand in the answer) is at most
    ``tolerance`` below full prefill's on the same questions. Recall is taken, not F1, because a right answer
    within a sentence is right; not the reference answer's likelihood, whose unit nobody can weigh, though it is
    watched (see ``caveats``). With few questions a mean tells little: ``likelihood`` and ``recall_diff_ci95`` of
    the evidence say how much.

    ``predictions`` are those of :func:`~samkv_rag.evaluation.read_predictions`. Methods are those of
    SamKVConfig that have a budget; of several the one with the smallest ratio wins, then that with the least KV.
    ``seed`` is the bootstrap's.

    Raises:
        ConfigurationError: ``tolerance`` is not from 0 to 1.
    """
    if not 0 <= tolerance <= 1:
        raise ConfigurationError(f"tolerance is {tolerance}; it must be a number from 0 to 1")
    measured = list(_measure(predictions, tolerance, seed))
    good = [evidence for evidence in measured if _is_as_good(evidence, tolerance)]
    if good:
        best = min(good, key=lambda e: (e.sequence_ratio, e.kv_ratio_mean, -e.difference))
        larger = (e for e in measured if e.method == best.method and e.sequence_ratio > best.sequence_ratio)
        worse = sorted(e.sequence_ratio for e in larger if e not in good)
        return Recommendation(best.method, best.sequence_ratio, tolerance, best, tuple(worse))
    nearest = max(measured, key=lambda e: e.difference, default=None)
    return Recommendation(REFERENCE, 1.0, tolerance, nearest) if nearest else None


def _is_as_good(evidence: Evidence, tolerance: float) -> bool:
    return evidence.difference >= -tolerance - 1e-12  # what rounding may take


def _measure(predictions: Sequence[Prediction], tolerance: float, seed: int) -> Iterator[Evidence]:
    full = {(p.data, p.case): p for p in predictions if p.method == REFERENCE}
    budgeted = [p for p in predictions if p.method in METHODS and p.ratio is not None and (p.data, p.case) in full]
    for task in dict.fromkeys(p.task for p in budgeted):
        yield _evidence(task, [(p, full[p.data, p.case]) for p in budgeted if p.task == task], tolerance, seed)


def _evidence(task: Task, pairs: Sequence[tuple[Prediction, Prediction]], tolerance: float, seed: int) -> Evidence:
    assert task.ratio is not None
    differences = [own.recall - full.recall for own, full in pairs]
    widened = [*differences, *_IMAGINED]
    return Evidence(
        method=task.method,
        sequence_ratio=task.ratio,
        num_cases=len(pairs),
        num_better=sum(difference > 0 for difference in differences),
        num_worse=sum(difference < 0 for difference in differences),
        recall=fmean(own.recall for own, _ in pairs),
        recall_full=fmean(full.recall for _, full in pairs),
        recall_diff_ci95=bootstrap_interval(differences, seed),
        likelihood=bootstrap_share(widened, seed, at_least=-tolerance),
        num_cases_needed=_num_cases_needed(fmean(differences) + tolerance, stdev(widened)),
        gold_nll_diff_ci95=bootstrap_interval([own.gold_nll - full.gold_nll for own, full in pairs], seed),
        ttft_ratio_median=median(own.ttft_s / full.ttft_s for own, full in pairs),
        kv_ratio_mean=fmean(own.kv_bytes_resident / own.kv_bytes_full for own, _ in pairs),
    )


def _num_cases_needed(margin: float, deviation: float) -> int | None:
    """How many until the standard error is small beside the margin; to two digits, it is no more exact."""
    if margin <= 0:
        return None
    needed = (_Z_SURE * deviation / margin) ** 2
    return int(round(needed, 1 - math.floor(math.log10(needed)))) if 10 <= needed <= _MOST_CASES else None


def _caveats(recommendation: Recommendation) -> Iterator[str]:
    shown = recommendation.evidence
    if shown.recall_full < _HARD:
        yield (
            f"Full prefill itself has an answer recall of {shown.recall_full:.2f} only: these questions, or what was "
            "retrieved for them, are too hard for the model to tell methods apart."
        )
    if recommendation.method != REFERENCE and not recommendation.is_sure:
        more = f"; with about {shown.num_cases_needed:,} like them it would be" if shown.num_cases_needed else ""
        yield f"{shown.num_cases} questions show a direction; it is not sure at 95%{more}."
    if recommendation.worse_above:
        ratios = ", ".join(f"{ratio:g}" for ratio in recommendation.worse_above)
        yield (
            f"It lost more at larger ratios ({ratios}). Less text may distract less, but one ratio of several may also "
            "do well by luck; more questions would tell."
        )
    low, high = shown.gold_nll_diff_ci95
    if low > 0:
        yield (
            f"The reference answers are less likely under it than under full prefill ({low:+.2f} to {high:+.2f} nats "
            "a token): harder questions may show a difference that these do not."
        )
