"""Krippendorff's α: how far reviewers agree beyond chance, with any number of them and gaps.

K. Krippendorff, "Computing Krippendorff's Alpha-Reliability", University of Pennsylvania, 2011
(repository.upenn.edu/asc_papers/43), whose worked example the tests reproduce. NumPy only.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Level = Literal["nominal", "ordinal", "interval", "ratio"]


def krippendorff_alpha(ratings: ArrayLike, *, level: Level = "nominal") -> float | None:
    """α = 1 - D_o / D_e of ``ratings`` [reviewers, units], NaN where a reviewer gave none.

    1 is full agreement, 0 what chance gives, below 0 systematic disagreement. Units with fewer than
    two ratings are left out. None if no two ratings can be paired or all are the same value, where
    α is not defined. Raises ValueError for another shape or level, or for values that are not
    finite, and for "ratio" with negative values.
    """
    given = np.asarray(ratings, dtype=np.float64)
    if given.ndim != 2:
        raise ValueError(f"ratings are [reviewers, units], got the shape {given.shape}")
    if np.isinf(given).any():
        raise ValueError("ratings must be finite, or NaN where there is none")
    values = np.unique(given[~np.isnan(given)])
    if level == "ratio" and values.size and values[0] < 0:
        raise ValueError("ratio data cannot be negative")
    counts = np.array([(given == v).sum(axis=0) for v in values], dtype=np.float64)  # [values, u]
    of_unit = counts.sum(axis=0) if values.size else np.zeros(given.shape[1])
    paired = of_unit >= 2
    if values.size < 2 or not paired.any():
        return None
    counts, of_unit = counts[:, paired], of_unit[paired]
    # Coincidences: each ordered pair of ratings within a unit, weighted by 1 / (its ratings - 1).
    weighted = counts / (of_unit - 1)
    coincidences: Array = weighted @ counts.T - np.diag(weighted.sum(axis=1))
    totals: Array = coincidences.sum(axis=1)
    n = float(totals.sum())
    distance = _squared_distance(values, totals, level)
    expected = float(totals @ distance @ totals) / (n - 1)
    if expected <= 0:
        return None
    return 1.0 - float((coincidences * distance).sum()) / expected


def _squared_distance(values: Array, totals: Array, level: Level) -> Array:
    """Squared difference between each two values [values, values]."""
    a, b = values[:, None], values[None, :]
    if level == "nominal":
        differ: Array = (a != b).astype(np.float64)
        return differ
    if level == "interval":
        squared: Array = (a - b) ** 2
        return squared
    if level == "ratio":
        total = np.where(a + b > 0, a + b, 1.0)
        ratio: Array = ((a - b) / total) ** 2
        return ratio
    if level == "ordinal":
        up_to = np.cumsum(totals)
        low = np.minimum(np.arange(len(values))[:, None], np.arange(len(values))[None, :])
        high = np.maximum(np.arange(len(values))[:, None], np.arange(len(values))[None, :])
        between = up_to[high] - up_to[low] + totals[low]  # both ends and all between
        ordinal: Array = (between - (totals[low] + totals[high]) / 2) ** 2 * (low != high)
        return ordinal
    raise ValueError(f"unknown level {level!r}: nominal, ordinal, interval, ratio")
