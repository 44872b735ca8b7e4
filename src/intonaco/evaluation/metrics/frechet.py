"""Fréchet distance between two Gaussians fitted to features (Dowson & Landau 1982; as a metric of
generators: Heusel et al. 2017).

Biased upwards at small n, and by an amount that depends on the model (Chong & Forsyth 2020):
compare only at equal n, or extrapolate.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from intonaco.evaluation.metrics.arrays import (
    Float,
    MetricWarning,
    matrix,
    same_width,
    warn_of_constants,
)
from intonaco.evaluation.metrics.feature_stats import ROUNDING, FeatureStats, check_same_features

ENOUGH = 1e-10  # of both traces: what rounding may cost before the slow, exact way is taken


@dataclass(frozen=True, slots=True, kw_only=True)
class FrechetDetails:
    """A distance with what one has to know of it: rows of both sides, columns, whose features they
    are, and cautions in words."""

    value: float
    n: tuple[int, int]
    d: int
    extractor: str
    preprocessing: str
    cautions: tuple[str, ...]


def frechet_distance(x: ArrayLike | FeatureStats, y: ArrayLike | FeatureStats) -> float:
    """``|mu_x - mu_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^1/2)``, of matrices [n, d] or statistics. The
    covariances are unbiased (n - 1).

    The trace of the root is the nuclear norm of ``R_x.T @ R_y`` for any ``R R.T = S``. It comes
    from the eigenvalues of ``R.T S R`` with the root of ``y``, which its statistics keep: give a
    reference as ``FeatureStats`` and each further candidate costs a tenth of scipy's ``sqrtm``.
    Where a covariance is singular or nearly so (n <= d, equal columns), rounding would cost up to
    half of the digits there; then singular values are taken, of the centred rows where there are
    rows. From statistics alone, what a covariance has lost in being summed cannot be had back.

    Raises ValueError (fewer than 2 rows, widths that differ, values that are not finite) and
    ConfigError (statistics of different extractors or preprocessing). Warns (MetricWarning) when
    all rows of a side are equal.
    """
    if isinstance(x, FeatureStats):
        if not isinstance(y, FeatureStats):
            return _to_stats(matrix(y, "y"), x)
        check_same_features(x, y)
        _warn_of_no_spread(x, y)
        return _of_stats(x, y)
    if isinstance(y, FeatureStats):
        return _to_stats(matrix(x, "x"), y)
    a, b = matrix(x, "x"), matrix(y, "y")
    same_width(x=a, y=b)
    warn_of_constants(x=a, y=b)
    mean_a, mean_b = a.mean(0), b.mean(0)
    if min(len(a), len(b)) > a.shape[1]:
        left, right = FeatureStats().update(a), FeatureStats().update(b)
        cross = _fast(left, right)
        if cross is not None:
            return _put_together(left.mean - right.mean, _trace(left) + _trace(right), cross)
    rows_a, rows_b = _factor(a - mean_a), _factor(b - mean_b)
    spread = (rows_a**2).sum() + (rows_b**2).sum()
    return _put_together(mean_a - mean_b, spread, _nuclear(rows_a @ rows_b.T))


def frechet_details(x: ArrayLike | FeatureStats, y: ArrayLike | FeatureStats) -> FrechetDetails:
    """``frechet_distance`` with its sample sizes and cautions. Raises as it does."""
    sides = [s if isinstance(s, FeatureStats) else None for s in (x, y)]
    value = frechet_distance(x, y)
    n = tuple(s.n if isinstance(s, FeatureStats) else len(np.asarray(s)) for s in (x, y))
    known = next((s for s in sides if s is not None), FeatureStats())
    d = len(known.mean) or np.asarray(x).shape[1]
    return FrechetDetails(
        value=value,
        n=(n[0], n[1]),
        d=d,
        extractor=known.extractor,
        preprocessing=known.preprocessing,
        cautions=tuple(_cautions((n[0], n[1]), d)),
    )


def _cautions(n: tuple[int, int], d: int) -> list[str]:
    out = []
    if min(n) <= d:
        out.append(f"{min(n)} rows for {d} columns: a covariance is singular and the bias is large")
    elif min(n) < 10 * d:
        out.append(f"{min(n)} rows for {d} columns: less than 10 a column, the bias is not small")
    if n[0] != n[1]:
        out.append(f"{n[0]} rows against {n[1]}: the bias differs from that at other sizes")
    return out


def _to_stats(rows: Float, stats: FeatureStats) -> float:
    same_width(features=rows, stats=stats.scatter)
    warn_of_constants(features=rows)
    _warn_of_no_spread(stats)
    if len(rows) > rows.shape[1]:
        other = FeatureStats(stats.extractor, preprocessing=stats.preprocessing).update(rows)
        return _of_stats(other, stats, rows=rows)
    mean = rows.mean(0)
    factor = _factor(rows - mean)
    spread = (factor**2).sum() + _trace(stats)
    return _put_together(mean - stats.mean, spread, _nuclear(factor @ stats.root))


def _warn_of_no_spread(*sides: FeatureStats) -> None:
    """What ``warn_of_constants`` is for rows. Raises ValueError with fewer than 2 rows."""
    same_width(**{f"statistics {i}": s.scatter for i, s in enumerate(sides)})
    for side in sides:
        rounding = (ROUNDING**2) * side.n * float((side.mean**2).sum())
        if _trace(side) <= 4.0 * rounding:
            warnings.warn(
                f"the statistics of {side.n} rows have no spread: is the extractor broken?",
                MetricWarning,
                stacklevel=4,
            )


def _of_stats(x: FeatureStats, y: FeatureStats, rows: Float | None = None) -> float:
    """``rows``: what ``x`` is of, if they are there."""
    cross = _fast(x, y)
    if cross is None:
        left = x.root.T if rows is None else _factor(rows - x.mean)
        cross = _nuclear(left @ y.root)
    return _put_together(x.mean - y.mean, _trace(x) + _trace(y), cross)


def _fast(x: FeatureStats, y: FeatureStats) -> float | None:
    """Trace of the root from eigenvalues; None if rounding may have moved it."""
    if x.has_root and not y.has_root:
        x, y = y, x  # use the root that is there
    root, covariance = y.root, x.covariance
    values = np.linalg.eigvalsh(root.T @ covariance @ root)
    kept = np.sqrt(np.maximum(values, 0.0))
    noise = 8.0 * ROUNDING * float(np.abs(values).max())
    resolved = kept > np.sqrt(noise)
    # what is below the noise may be off by its root; of the rest the bound is noise over the root,
    # of which a thousandth was never reached (spectra i^-p, p to 4, d to 256, rotated or not)
    doubt = np.sqrt(noise) * (~resolved).sum() + 1e-3 * (noise / kept[resolved]).sum()
    return None if doubt > ENOUGH * (_trace(x) + _trace(y)) else float(kept.sum())


def _factor(centred: Float) -> Float:
    """Of rows [n, d] about their mean: [min(n, d), d] with the same covariance as ``F.T @ F``."""
    scaled: Float = np.divide(centred, np.sqrt(len(centred) - 1))
    if len(scaled) <= scaled.shape[1]:
        return scaled
    return np.asarray(np.linalg.qr(scaled, mode="r"), dtype=np.float64)


def _nuclear(x: Float) -> float:
    return float(np.linalg.svd(x, compute_uv=False).sum())


def _trace(stats: FeatureStats) -> float:
    """Of the covariance. Raises ValueError with fewer than 2 rows."""
    if stats.n < 2:
        raise ValueError(f"a covariance needs 2 rows, got {stats.n}")
    return float(np.trace(stats.scatter)) / (stats.n - 1)


def _put_together(shift: Float, spread: float, cross: float) -> float:
    """Less than nothing by rounding is nothing."""
    return max(0.0, float((shift**2).sum()) + float(spread) - 2.0 * cross)
