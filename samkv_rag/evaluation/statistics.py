"""How sure a difference between two methods is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_NUM_RESAMPLES = 10_000
_BATCH_RESAMPLES = 500


def bootstrap_interval(differences: Sequence[float], seed: int, share: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the mean of paired differences (Efron and Tibshirani 1993, chapter 13).

    ``differences`` holds one value a case; equal seeds give equal intervals.
    """
    tail = (1 - share) / 2
    low, high = np.quantile(_resampled_means(differences, seed), [tail, 1 - tail])
    return float(low), float(high)


def bootstrap_share(differences: Sequence[float], seed: int, at_least: float) -> float:
    """Share, in [0, 1], of the resamples whose mean difference is ``at_least`` so much."""
    rounding = 1e-12  # a mean of equal values may come out a little below them
    return float((_resampled_means(differences, seed) >= at_least - rounding).mean())


def _resampled_means(differences: Sequence[float], seed: int) -> NDArray[np.float64]:
    values, generator = np.asarray(differences, dtype=np.float64), np.random.default_rng(seed)
    means = []
    for _ in range(_NUM_RESAMPLES // _BATCH_RESAMPLES):  # all at once would not fit memory for many cases
        drawn = generator.integers(0, len(values), size=(_BATCH_RESAMPLES, len(values)))
        means.append(values[drawn].mean(axis=1))
    return np.concatenate(means)
