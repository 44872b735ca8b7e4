"""Metrics of nearest neighbours: fidelity, coverage, copying.

Whether a row lies inside a ball is decided exactly where it lies on the border: distances that are
equal but for rounding are computed again from differences, which give the same bits for the same
two rows. So copies and repeated rows count as the convention says and not as rounding falls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from intonaco.evaluation.metrics.arrays import (
    TIE,
    Float,
    distance_blocks,
    matrix,
    near_zero,
    paired_distances,
    same_width,
    squared_norms,
    warn_of_constants,
)

Border = Literal["inside", "outside"]
Index = NDArray[np.intp]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """Of each generated row: ``nearest`` training row [m], the ``distance`` [m] to it, and whether
    it is a ``copy`` [m]: no farther from that row than the row's own nearest neighbour is."""

    nearest: Index
    distance: Float
    copy: NDArray[np.bool_]

    @property
    def share(self) -> float:
        return float(self.copy.mean())


def precision_recall(
    real: ArrayLike, generated: ArrayLike, *, k: int = 3, border: Border = "inside"
) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al. 2019): a manifold is the union of balls
    that reach to each row's k-th nearest other row.

    ``border``: where a row at exactly the radius lies. "inside" is the paper's code and
    torch-fidelity (repeated rows are precise); "outside" is prdc, for which a row that the other
    side repeats more than k times covers nothing, not even its own copies.

    ``real`` [n, d], ``generated`` [m, d], both with more than ``k`` rows. Recall is what falls when
    a generator loses variety. Raises ValueError. Warns (MetricWarning) when all rows of a side are
    equal.
    """
    _check_border(border)
    x, y = _pair(real, generated, k)
    radius_x, radius_y = kth_neighbour(x, k), kth_neighbour(y, k)
    inside_x = np.zeros(len(y), dtype=bool)
    inside_y = np.zeros(len(x), dtype=bool)
    norms_x, norms_y = squared_norms(x), squared_norms(y)
    for rows, d in distance_blocks(x, y):
        slack = TIE * (norms_x[rows, None] + norms_y[None, :])
        inside_x |= _within(d, radius_x[rows, None], slack, x[rows], y, border).any(0)
        inside_y[rows] = _within(d, radius_y[None, :], slack, x[rows], y, border).any(1)
    return PrecisionRecall(precision=float(inside_x.mean()), recall=float(inside_y.mean()))


def density_coverage(
    real: ArrayLike, generated: ArrayLike, *, k: int = 5, border: Border = "outside"
) -> DensityCoverage:
    """Density and coverage (Naeem et al. 2020), which outliers among the generated rows move less.

    ``border`` is "outside" as in the authors' package prdc: a real row with k or more exact copies
    has a neighbourhood of no size, which nothing covers. Shapes, errors and warnings as
    ``precision_recall``.
    """
    _check_border(border)
    x, y = _pair(real, generated, k)
    radius = kth_neighbour(x, k)
    hits = 0
    covered = np.zeros(len(x), dtype=bool)
    norms_x, norms_y = squared_norms(x), squared_norms(y)
    for rows, d in distance_blocks(x, y):
        slack = TIE * (norms_x[rows, None] + norms_y[None, :])
        inside = _within(d, radius[rows, None], slack, x[rows], y, border)
        hits += int(inside.sum())
        covered[rows] = inside.any(1)
    return DensityCoverage(density=hits / (k * len(y)), coverage=float(covered.mean()))


def authenticity(training: ArrayLike, generated: ArrayLike) -> float:
    """Share of generated rows that are no near copy (Alaa et al. 2022; the AuthPct of dgm-eval over
    100): farther from their nearest training row than that row is from its own nearest neighbour.
    1 minus it is the copy rate; ``copies`` says which. Fresh draws from the training distribution
    are not all authentic: compare it with that of held-out rows, not with 1.

    ``training`` [n, d], ``generated`` [m, d], two rows or more each. Raises ValueError. Warns
    (MetricWarning) when all rows of a side are equal."""
    return float((~copies(training, generated).copy).mean())


def copies(training: ArrayLike, generated: ArrayLike) -> Copies:
    """The nearest training row of each generated one. Shapes, errors and warnings as
    ``authenticity``."""
    x, y = _pair(training, generated, 1, "training")
    own = kth_neighbour(x, 1)
    best = np.full(len(y), np.inf)
    owner = np.zeros(len(y), dtype=np.intp)
    for rows, d in distance_blocks(x, y):
        index = d.argmin(0)
        value = d[index, np.arange(len(y))]
        closer = value < best
        best[closer] = value[closer]
        owner[closer] = index[closer] + rows.start
    distance = paired_distances(y, x, np.arange(len(y)), owner)
    return Copies(nearest=owner, distance=np.sqrt(distance), copy=distance <= own[owner])


def kth_neighbour(x: Float, k: int) -> Float:
    """Squared distance [n] of each row to its k-th nearest other row."""
    out = np.empty(len(x))
    for rows, d in distance_blocks(x, x):
        here = np.arange(len(d))
        d[here, here + rows.start] = np.inf
        index = np.argpartition(d, k - 1, axis=1)[:, k - 1]
        out[rows] = paired_distances(x, x, here + rows.start, index)
    return out


def _within(
    d: Float, radius: Float, slack: Float, x: Float, y: Float, border: Border
) -> NDArray[np.bool_]:
    """Whether squared distances [r, m] of rows of ``x`` and ``y`` are within ``radius`` [r, 1] or
    [1, m]. ``slack`` [r, m]: what rounding can move them."""
    gap = d - radius
    inside: NDArray[np.bool_] = gap < 0.0
    rows, columns = np.nonzero(np.abs(gap, out=gap) <= slack)
    if len(rows):
        at = np.broadcast_to(radius, d.shape)[rows, columns]
        again = paired_distances(x, y, rows, columns)
        inside[rows, columns] = again <= at if border == "inside" else again < at
    return inside


def _check_border(border: str) -> None:
    if border not in ("inside", "outside"):
        raise ValueError(f"border must be 'inside' or 'outside', got {border!r}")


def _pair(real: ArrayLike, generated: ArrayLike, k: int, name: str = "real") -> tuple[Float, Float]:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    x = matrix(real, name, rows=k + 1)
    y = matrix(generated, "generated", rows=k + 1)
    same_width(**{name: x, "generated": y})
    warn_of_constants(**{name: x, "generated": y})
    return near_zero(x, y, of=x)
