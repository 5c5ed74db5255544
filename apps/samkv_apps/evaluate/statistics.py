"""How sure a difference between two methods is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import bootstrap  # type: ignore[import-untyped]

_NUM_RESAMPLES = 10_000


def bootstrap_interval(differences: Sequence[float], seed: int, share: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the mean of paired differences, one value a case; equal seeds give equal intervals."""
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2 or np.ptp(values) == 0:  # nothing to resample
        mean = float(values.mean())
        return mean, mean
    generator = np.random.default_rng(seed)
    found = bootstrap(
        (values,),
        np.mean,
        confidence_level=share,
        n_resamples=_NUM_RESAMPLES,
        batch=500,
        method="percentile",
        rng=generator,
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
