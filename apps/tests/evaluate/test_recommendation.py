"""Which ratio is recommended, from made-up answers of known quality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from samkv_apps.evaluate import Prediction, Recommendation, recommend
from samkv_apps.evaluate.scoring import answer_recall
from samkv_apps.evaluate.statistics import bootstrap_share
from samkv_rag.exceptions import ConfigurationError

BLANK = Prediction(
    data="d", case="", method="full_prefill", ratio=None, prediction="", f1=0.0, em=0.0, recall=0.0, gold_nll=1.0,
    ttft_s=2.0, total_s=3.0, phase_s={}, sequence_ratio=1.0, recompute_ratio=1.0, kv_bytes_resident=100,
    kv_bytes_full=100, prompt_tokens=9, chunk_tokens=8, supporting_recall=None, diagnostics={},
)  # fmt: skip


def answers(method: str, ratio: float | None, recalls: Sequence[float], **changes: object) -> list[Prediction]:
    blank = replace(BLANK, method=method, ratio=ratio, **changes)  # type: ignore[arg-type]
    return [replace(blank, case=str(i), recall=recall) for i, recall in enumerate(recalls)]


def full(num_right: int = 20, of: int = 20) -> list[Prediction]:
    return answers("full_prefill", None, [1.0] * num_right + [0.0] * (of - num_right))


def scout(ratio: float, num_right: int, of: int = 20, **changes: object) -> list[Prediction]:
    return answers("scout", ratio, [1.0] * num_right + [0.0] * (of - num_right), **changes)


def found(predictions: Sequence[Prediction], tolerance: float = 0.02) -> Recommendation:
    recommendation = recommend(predictions, tolerance)
    assert recommendation is not None
    return recommendation


# -- which -----------------------------------------------------------------------------------------


def test_the_smallest_ratio_that_loses_no_more_than_the_tolerance() -> None:
    predictions = [*full(), *scout(0.1, 15), *scout(0.2, 19), *scout(0.4, 20)]
    assert (found(predictions).method, found(predictions).sequence_ratio) == ("scout", 0.4)
    assert found(predictions, tolerance=0.05).sequence_ratio == 0.2  # exactly one of twenty less
    assert found(predictions, tolerance=0.25).sequence_ratio == 0.1


def test_larger_ratios_that_fail_are_a_reason_to_doubt() -> None:
    recommendation = found([*full(), *scout(0.1, 20), *scout(0.2, 10), *scout(0.4, 20)])
    assert recommendation.sequence_ratio == 0.1
    assert recommendation.worse_above == (0.2,)
    assert any("It lost more at larger ratios (0.2)" in caveat for caveat in recommendation.caveats())
    assert found([*full(), *scout(0.1, 10), *scout(0.4, 20)]).worse_above == ()


def test_full_prefill_where_none_is_as_good() -> None:
    recommendation = found([*full(), *scout(0.1, 5), *scout(0.2, 15), *scout(0.4, 14)])
    assert (recommendation.method, recommendation.sequence_ratio) == ("full_prefill", 1.0)
    assert recommendation.evidence.sequence_ratio == 0.2
    assert not recommendation.is_sure
    assert (
        "Recommended: full_prefill; scout at sequence_ratio 0.2 came nearest, but loses more than 0.02"
        in recommendation.sentence()
    )


def test_of_two_methods_the_smaller_ratio_then_the_less_kv() -> None:
    small = scout(0.1, 20, kv_bytes_resident=30)
    rival = [replace(p, method="cacheblend", kv_bytes_resident=100) for p in small]
    assert found([*full(), *rival, *small]).method == "scout"
    assert found([*full(), *scout(0.1, 5), *scout(0.4, 20), *rival]).method == "cacheblend"


def test_only_settings_of_the_engine_are_recommended() -> None:
    others = [*answers("naive_reuse", None, [1.0] * 20), *answers("fewer_chunks", 0.1, [1.0] * 20)]
    assert recommend([*full(), *others]) is None
    assert recommend([*full()]) is None
    assert recommend(scout(0.1, 20)) is None, "nothing to compare with"


# -- how sure --------------------------------------------------------------------------------------


def test_evidence_counts_question_by_question() -> None:
    own = answers("scout", 0.2, [1.0, 0.0, 0.5, 1.0], ttft_s=0.5, kv_bytes_resident=20, gold_nll=1.5)
    shown = found([*answers("full_prefill", None, [1.0, 0.5, 0.0, 1.0]), *own]).evidence
    assert (shown.num_cases, shown.num_better, shown.num_worse) == (4, 1, 1)
    assert (shown.recall, shown.recall_full, shown.difference) == (0.625, 0.625, 0.0)
    assert shown.recall_diff_ci95[0] < 0 < shown.recall_diff_ci95[1]
    assert (shown.ttft_ratio_median, shown.kv_ratio_mean) == (0.25, 0.2)
    assert shown.gold_nll_diff_ci95 == (0.5, 0.5)


def test_cases_of_the_same_name_in_two_data_sets_are_two() -> None:
    predictions = [*full(), *scout(0.1, 20)]
    both = [*predictions, *(replace(p, data="other") for p in predictions)]
    assert found(both).evidence.num_cases == 40


def test_few_questions_without_a_difference_are_no_proof_and_many_are() -> None:
    few, many = (found([*full(n, of=n), *scout(0.1, n, of=n)]) for n in (8, 300))
    assert few.evidence.likelihood < 0.9 and not few.is_sure
    assert many.evidence.likelihood > 0.95 and many.is_sure
    assert any("8 questions show a direction; it is not sure at 95%" in caveat for caveat in few.caveats())
    assert not any("direction" in caveat for caveat in many.caveats())


def test_the_number_of_questions_it_would_take_grows_with_the_noise() -> None:
    def needed(num_noisy: int) -> int | None:
        noisy = [1.0, 0.0] * (num_noisy // 2)
        own = answers("scout", 0.1, [*noisy, *[1.0] * (40 - num_noisy)])
        reference = answers("full_prefill", None, [*reversed(noisy), *[1.0] * (40 - num_noisy)])
        return found([*reference, *own], tolerance=0.1).evidence.num_cases_needed

    assert 10 <= (needed(4) or 0) < (needed(20) or 0)


def test_caveats_name_hard_questions_and_a_lost_likelihood() -> None:
    caveats = " ".join(found([*full(2), *scout(0.1, 2, gold_nll=2.0)]).caveats())
    assert "an answer recall of 0.10 only" in caveats
    assert "less likely under it than under full prefill (+1.00 to +1.00" in caveats


def test_the_sentence_says_what_was_measured() -> None:
    recommendation = found([*full(), *scout(0.15, 20)])
    assert recommendation.sentence().startswith(
        "Recommended: scout at sequence_ratio 0.15, the smallest measured that is as good as full prefill (answer "
        "recall 1.00 beside 1.00 on 20 questions, 0 better and 0 worse, difference +0.00 to +0.00 at 95%)"
    )
    plain = recommendation.to_dict()
    assert plain["sentence"] == recommendation.sentence()
    assert plain["evidence"]["sequence_ratio"] == 0.15


@pytest.mark.parametrize("tolerance", [-0.1, 1.5])
def test_a_tolerance_out_of_range_is_refused(tolerance: float) -> None:
    with pytest.raises(ConfigurationError, match="tolerance is"):
        recommend([*full(), *scout(0.1, 20)], tolerance)


# -- what it stands on -----------------------------------------------------------------------------


def test_bootstrap_share_is_the_share_of_means() -> None:
    assert bootstrap_share([0.0] * 5, 0, at_least=0.0) == 1.0
    assert bootstrap_share([-1.0] * 5, 0, at_least=-0.5) == 0.0
    assert 0.4 < bootstrap_share([-1.0, 1.0] * 50, 0, at_least=0.0) < 0.7
    assert bootstrap_share([0.1] * 3, 0, at_least=0.1) == 1.0, "0.1 * 3 / 3 is not 0.1 in floats"


@pytest.mark.parametrize(
    ("prediction", "expected", "recall"),
    [
        ("The dog is named Bosun.", ["Bosun"], 1.0),
        ("The dog is named Rex.", ["Bosun"], 0.0),
        ("Flora", ["Flora and Mabel"], 1 / 3),
        ("Flora", ["Flora and Mabel", "flora"], 1.0),
        ("tide", ["tide tide"], 0.5),
        ("", ["the"], 1.0),
        ("tide", ["the"], 0.0),
    ],
)
def test_recall_does_not_punish_a_sentence(prediction: str, expected: list[str], recall: float) -> None:
    assert answer_recall(prediction, expected) == pytest.approx(recall)
