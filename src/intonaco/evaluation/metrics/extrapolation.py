"""The Fréchet distance at infinitely many images (Chong & Forsyth 2020, "Effectively Unbiased FID
and Inception Score")."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from intonaco.evaluation.metrics.arrays import MetricWarning, matrix, same_width
from intonaco.evaluation.metrics.feature_stats import FeatureStats
from intonaco.evaluation.metrics.frechet import frechet_distance


@dataclass(frozen=True, slots=True, kw_only=True)
class Extrapolation:
    """``value``: the line at 1/n = 0. ``slope``: the bias times n. ``residual``: root mean square
    of what the points lie off the line; many times the ``slope`` over the largest size means that
    the line says little. The points are ``sizes`` and ``distances``."""

    value: float
    slope: float
    residual: float
    sizes: tuple[int, ...]
    distances: tuple[float, ...]


def frechet_infinity(
    generated: ArrayLike,
    reference: ArrayLike | FeatureStats,
    *,
    sizes: int = 15,
    smallest: int | None = None,
    seed: int = 0,
) -> Extrapolation:
    """Distance of subsets of ``generated`` [n, d] to the whole reference, by least squares linear
    in 1 / size, at infinity. It takes away the bias of the generated side only: the reference's own
    is the same for all candidates.

    ``sizes`` sizes evenly from ``smallest`` (5,000, or a tenth of the rows if that is less) to n,
    one subset each, drawn without replacement by ``numpy.random.default_rng(seed)`` in that order,
    as in dgm-eval. The subsets overlap, so the residual is no standard error.

    Raises ValueError and ConfigError as ``frechet_distance``, and ValueError for fewer than 2
    sizes that differ. Warns (MetricWarning) where subsets have no more rows than columns: there the
    bias is not linear in 1 / size.
    """
    x = matrix(generated, "generated")
    n, d = x.shape
    least = min(5000, max(n // 10, 2)) if smallest is None else smallest
    if not 2 <= least < n or sizes < 2:
        raise ValueError(
            f"2 or more sizes from 2 or more rows to all {n} are needed, got {sizes} from {least}"
        )
    counts = np.linspace(least, n, sizes).astype(np.int32)
    if len(set(counts.tolist())) < 2:
        raise ValueError(f"{n} rows give only one size")
    known = (
        reference
        if isinstance(reference, FeatureStats)
        else FeatureStats().update(matrix(reference, "reference"))
    )
    same_width(generated=x, reference=known.scatter)
    if least <= d:
        warnings.warn(
            f"subsets of {least} rows with {d} columns: the bias is not linear in 1/n there, take "
            f"smallest above {d}",
            MetricWarning,
            stacklevel=2,
        )
    rng = np.random.default_rng(seed)
    distances = np.array(
        [frechet_distance(rng.choice(x, count, replace=False), known) for count in counts]
    )
    inverse = 1.0 / counts
    centred = inverse - inverse.mean()
    slope = float((centred * distances).sum() / (centred**2).sum())
    value = float(distances.mean() - slope * inverse.mean())
    off = distances - value - slope * inverse
    return Extrapolation(
        value=value,
        slope=slope,
        residual=float(np.sqrt((off**2).mean())),
        sizes=tuple(int(c) for c in counts),
        distances=tuple(float(v) for v in distances),
    )
