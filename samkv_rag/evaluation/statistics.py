"""How sure a difference between two methods is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_NUM_RESAMPLES = 10_000
_BATCH_RESAMPLES = 500


def bootstrap_interval(differences: Sequence[float], seed: int, share: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the mean of paired differences (Efron and Tibshirani 1993, chapter 13).

    ``differences`` holds one value a case; equal seeds give equal intervals.
    """
    values, generator = np.asarray(differences, dtype=np.float64), np.random.default_rng(seed)
    means = []
    for _ in range(_NUM_RESAMPLES // _BATCH_RESAMPLES):  # all at once would not fit memory for many cases
        drawn = generator.integers(0, len(values), size=(_BATCH_RESAMPLES, len(values)))
        means.append(values[drawn].mean(axis=1))
    tail = (1 - share) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)
