"""The vectors nearest to one, exactly: fewer than 100,000 chunks need no approximate index."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]

_TOLERANCE = 1e-3  # by which a unit vector's length may differ from 1


def nearest(stored: Sequence[bytes], query: Vectors, top_k: int) -> list[tuple[int, float]]:
    """Return the indices of the ``top_k`` nearest of ``stored``, best first, and their cosines.

    Each of ``stored`` is little-endian float32 ``[windows, dimensions]`` of unit vectors, of which the best counts;
    ``query`` is a unit vector ``[dimensions]``.

    Raises:
        ValueError: one of ``stored`` is something else.
    """
    if not stored:
        return []
    row_bytes = 4 * len(query)
    if any(not data or len(data) % row_bytes for data in stored):
        raise ValueError("vectors of another length")
    matrix = np.frombuffer(b"".join(stored), dtype="<f4").reshape(-1, len(query))
    if not np.all(np.abs(np.linalg.norm(matrix, axis=1) - 1) < _TOLERANCE):  # false for NaN too
        raise ValueError("vectors that are no unit vectors")
    starts = np.cumsum([0, *(len(data) // row_bytes for data in stored[:-1])])
    scores = np.maximum.reduceat(matrix @ query, starts)
    best = np.argsort(-scores, kind="stable")[:top_k]
    return [(int(i), float(scores[i])) for i in best]


def as_bytes(vectors: Vectors) -> bytes:
    """Vectors ``[windows, dimensions]`` as :func:`nearest` reads them."""
    return vectors.astype("<f4").tobytes()
