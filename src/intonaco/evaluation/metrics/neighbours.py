"""Metrics of nearest neighbours: fidelity, coverage, copying."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from intonaco.evaluation.metrics.arrays import Float, distance_blocks, matrix, same_width


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionRecall:
    """Shares: of generated rows inside the real manifold, of real rows inside the generated one."""

    precision: float
    recall: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DensityCoverage:
    """``density``: how many real neighbourhoods a generated row lies in, over k (may exceed 1).
    ``coverage``: share of real neighbourhoods that hold a generated row."""

    density: float
    coverage: float


def precision_recall(real: ArrayLike, generated: ArrayLike, *, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al. 2019): a manifold is the union of balls
    that reach to each row's k-th neighbour; the border counts as inside.

    ``real`` [n, d], ``generated`` [m, d], both with more than ``k`` rows. Recall is what falls when
    a generator loses variety. Raises ValueError.
    """
    x, y = _pair(real, generated, k)
    radius_x, radius_y = kth_neighbour(x, k), kth_neighbour(y, k)
    inside_x = np.zeros(len(y), dtype=bool)
    inside_y = np.zeros(len(x), dtype=bool)
    for rows, d in distance_blocks(x, y):
        inside_x |= (d <= radius_x[rows, None]).any(0)
        inside_y[rows] = (d <= radius_y[None, :]).any(1)
    return PrecisionRecall(precision=float(inside_x.mean()), recall=float(inside_y.mean()))


def density_coverage(real: ArrayLike, generated: ArrayLike, *, k: int = 5) -> DensityCoverage:
    """Density and coverage (Naeem et al. 2020), which outliers among the generated rows move less.
    Shapes and errors as ``precision_recall``."""
    x, y = _pair(real, generated, k)
    radius = kth_neighbour(x, k)
    hits = 0
    covered = np.zeros(len(x), dtype=bool)
    for rows, d in distance_blocks(x, y):
        inside = d <= radius[rows, None]
        hits += int(inside.sum())
        covered[rows] = inside.any(1)
    return DensityCoverage(density=hits / (k * len(y)), coverage=float(covered.mean()))


def authenticity(training: ArrayLike, generated: ArrayLike) -> float:
    """Share of generated rows that are no near copy (Alaa et al. 2022): farther from their nearest
    training row than that row is from its own nearest neighbour. 1 minus it is the copy rate.
    Raises ValueError."""
    x, y = _pair(training, generated, 1)
    own = kth_neighbour(x, 1)
    nearest = np.full(len(y), np.inf)
    owner = np.zeros(len(y), dtype=np.intp)
    for rows, d in distance_blocks(x, y):
        index = d.argmin(0)
        value = d[index, np.arange(len(y))]
        closer = value < nearest
        nearest[closer] = value[closer]
        owner[closer] = index[closer] + rows.start
    return float((nearest > own[owner]).mean())


def kth_neighbour(x: Float, k: int) -> Float:
    """Squared distance [n] of each row to its k-th nearest other row."""
    out = np.empty(len(x))
    for rows, d in distance_blocks(x, x):
        d[np.arange(len(d)), np.arange(rows.start, rows.stop)] = np.inf
        out[rows] = np.partition(d, k - 1, axis=1)[:, k - 1]
    return out


def _pair(real: ArrayLike, generated: ArrayLike, k: int) -> tuple[Float, Float]:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    x = matrix(real, "real", rows=k + 1)
    y = matrix(generated, "generated", rows=k + 1)
    same_width(real=x, generated=y)
    return x, y
