"""Confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import bootstrap  # type: ignore[import-untyped]

_NUM_RESAMPLES = 10_000


def bootstrap_interval(differences: Sequence[float], seed: int) -> tuple[float, float]:
    """Return the 95% percentile interval of the mean of paired differences, one per case; repeatable by ``seed``."""
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2 or np.ptp(values) == 0:  # nothing to resample
        mean = float(values.mean())
        return mean, mean
    generator = np.random.default_rng(seed)
    found = bootstrap(
        (values,), np.mean, n_resamples=_NUM_RESAMPLES, batch=500, method="percentile", rng=generator
    ).confidence_interval
    return float(found.low), float(found.high)
