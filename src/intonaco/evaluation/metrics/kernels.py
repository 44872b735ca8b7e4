"""Kernel distances: squared maximum mean discrepancies of two samples (Gretton et al. 2012).

Kernel matrices are made in tiles and never whole, so that 50,000 rows fit into memory. Everything
is in float64: on float32 features CMMD's differences of numbers near 1 would lose half a percent.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from intonaco.evaluation.metrics.arrays import (
    Float,
    MetricWarning,
    directions,
    matrix,
    row_blocks,
    same_width,
    squared_distances,
    warn_of_constants,
)

ROUNDING = float(np.finfo(np.float64).eps)
Kernel = Callable[[Float, Float], Float]
Named = Literal["gaussian", "polynomial"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value with its standard error. ``float(estimate)`` is the value."""

    value: float
    standard_error: float
    n: int

    def __float__(self) -> float:
        return self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class SubsetEstimate:
    """Mean over ``subsets`` random subsets of ``size`` rows, and the standard deviation of their
    values. The subsets overlap: neither ``spread`` nor a fraction of it is a standard error."""

    value: float
    spread: float
    subsets: int
    size: int


@dataclass(frozen=True, slots=True)
class Sums:
    """Of a kernel matrix: sums of its rows and columns, and of the squares of its entries. Of one
    sample with itself without the diagonal."""

    rows: Float
    columns: Float
    squares: float


def polynomial(degree: int = 3, gamma: float | None = None, offset: float = 1.0) -> Kernel:
    """``(gamma <x, y> + offset)^degree``; gamma is 1/d unless given, which suits features of length
    about sqrt(d). On rows of unit length it would be almost linear."""

    def kernel(x: Float, y: Float) -> Float:
        g = 1.0 / x.shape[1] if gamma is None else gamma
        out: Float = (g * (x @ y.T) + offset) ** degree
        return out

    return kernel


def gaussian(bandwidth: float) -> Kernel:
    """``exp(-|x - y|^2 / (2 bandwidth^2))``."""
    scale = _scale(bandwidth)

    def kernel(x: Float, y: Float) -> Float:
        d = squared_distances(x, y)
        d *= scale
        return np.exp(d, out=d)

    return kernel


def _gaussian_less_one(bandwidth: float) -> Kernel:
    """The constant cancels in every discrepancy, and small ones keep their digits without it."""
    scale = _scale(bandwidth)

    def kernel(x: Float, y: Float) -> Float:
        d = squared_distances(x, y)
        d *= scale
        return np.expm1(d, out=d)

    return kernel


def _scale(bandwidth: float) -> float:
    if not (bandwidth > 0 and np.isfinite(bandwidth)):
        raise ValueError(f"bandwidth must be positive, got {bandwidth}")
    return -0.5 / bandwidth**2


def median_bandwidth(reference: Float, *, most: int = 1000) -> float:
    """Median distance between rows of the reference (Gretton et al. 2012), of at most ``most`` rows
    spread evenly. A function of the reference alone, so that every candidate meets one kernel."""
    rows = reference[:: max(1, len(reference) // most)][:most]
    d = squared_distances(rows, rows)[np.triu_indices(len(rows), 1)]
    value = float(np.sqrt(np.median(d)))
    if value == 0.0:
        raise ValueError("more than half of the reference's rows are equal: it tells nothing")
    return value


def named_kernel(kernel: Kernel | Named | None, reference: Float) -> Kernel:
    """The kernel itself, or the one of that name; a Gaussian has the reference's median distance.
    Raises ValueError."""
    if kernel is None or kernel == "polynomial":
        return polynomial()
    if kernel == "gaussian":
        return gaussian(median_bandwidth(reference))
    if callable(kernel):
        return kernel
    raise ValueError(f"kernel must be 'gaussian', 'polynomial' or a function, got {kernel!r}")


def kernel_distance(
    x: ArrayLike, y: ArrayLike, *, kernel: Kernel | Named | None = None
) -> Estimate:
    """Unbiased squared MMD with the cubic polynomial kernel (the kernel inception distance of
    Bińkowski et al. 2018, but the full U-statistic instead of a mean over subsets; for that see
    ``kernel_distance_subsets``).

    ``x`` [n, d], ``y`` [m, d]. ``kernel``: "polynomial", "gaussian" with the median distance of
    ``y``, or a function of two matrices, symmetric and bounded in memory by its result. Negative
    values are valid. The standard error holds for distributions that differ and for equal ones (the
    terms of first and of second order of the U-statistic: Serfling 1980, ch. 5; Sutherland 2019);
    for equal ones the value is not normal, so it is no test. Raises ValueError. Warns
    (MetricWarning) when all rows of a side are equal, or where rounding drowns the value (a
    polynomial of features that lie very far from zero, or next to it).
    """
    a, b = _pair(x, y)
    k = named_kernel(kernel, b)
    n, m = len(a), len(b)
    with np.errstate(over="ignore", invalid="ignore"):  # told in words below
        aa, bb, ab = own_sums(k, a), own_sums(k, b), cross_sums(k, a, b)
    finite(aa.squares + bb.squares + ab.squares)
    rows_a, rows_b = aa.rows / (n - 1), bb.rows / (m - 1)
    value = rows_a.mean() + rows_b.mean() - 2.0 * ab.rows.mean() / m
    along_a, along_b = rows_a - ab.rows / m, rows_b - ab.columns / n
    # the projections are themselves estimated: what that adds to their variance is twice what the
    # second-order terms add to that of the value
    first = 4.0 * (along_a.var(ddof=1) / n + along_b.var(ddof=1) / m)
    second = (
        2.0 * _rest(aa.squares / (n * (n - 1)), rows_a, rows_a) / (n * (n - 1))
        + 2.0 * _rest(bb.squares / (m * (m - 1)), rows_b, rows_b) / (m * (m - 1))
        + 4.0 * _rest(ab.squares / (n * m), ab.rows / m, ab.columns / n) / (n * m)
    )
    variance = max(first - second, second)
    size = abs(rows_a.mean()) + abs(rows_b.mean())
    if (a != a[0]).any() or (b != b[0]).any():  # else it was told already
        _warn_of_rounding(size, value, float(np.sqrt(variance)))
    return Estimate(value=finite(value), standard_error=finite(np.sqrt(variance)), n=min(n, m))


def _warn_of_rounding(size: float, value: float, error: float) -> None:
    """A polynomial kernel of features that all lie far from zero, or all next to it, is huge beside
    its differences. ``size``: of the terms that nearly cancel."""
    if 8.0 * ROUNDING * size > max(0.1 * abs(value), 1e-9 * error):
        warnings.warn(
            "the kernel's values are so large beside their differences that rounding drowns these: "
            "scale the features to about 1 around 0, or take the Gaussian kernel",
            MetricWarning,
            stacklevel=3,
        )


def _rest(mean_square: float, rows: Float, columns: Float) -> float:
    """Mean square of a kernel matrix less what its rows and columns explain."""
    mean = float(rows.mean())
    return max(0.0, mean_square - float((rows**2).mean() + (columns**2).mean()) + mean * mean)


def kernel_distance_subsets(
    x: ArrayLike,
    y: ArrayLike,
    *,
    subsets: int = 100,
    size: int = 1000,
    seed: int = 2020,
    kernel: Kernel | Named | None = None,
) -> SubsetEstimate:
    """Mean of the unbiased squared MMD over random subsets, as torch-fidelity and clean-fid give
    it: to compare with published numbers. ``kernel_distance`` has less noise and an error.

    ``x`` [n, d], ``y`` [m, d], both with ``size`` rows or more. Subsets are drawn without
    replacement by ``RandomState(seed)``, of ``x`` first: torch-fidelity's are the same with the
    same seed, clean-fid's with its arguments the other way round. Raises ValueError. Warns as
    ``kernel_distance``.
    """
    a, b = _pair(x, y)
    if subsets < 1 or not 2 <= size <= min(len(a), len(b)):
        raise ValueError(
            f"{subsets} subsets of {size} rows cannot be drawn from {len(a)} and {len(b)} rows"
        )
    k = named_kernel(kernel, b)
    rng = np.random.RandomState(seed)
    values, terms = np.empty(subsets), 0.0
    for i in range(subsets):
        left = a[rng.choice(len(a), size, replace=False)]
        right = b[rng.choice(len(b), size, replace=False)]
        own = own_sums(k, left).rows.sum() + own_sums(k, right).rows.sum()
        cross = cross_sums(k, left, right).rows.sum()
        values[i] = own / (size * (size - 1)) - 2.0 * cross / size**2
        terms = max(terms, abs(own) / (size * (size - 1)))
    if (a != a[0]).any() or (b != b[0]).any():
        _warn_of_rounding(terms, values.mean(), values.std())
    return SubsetEstimate(
        value=finite(values.mean()), spread=float(values.std()), subsets=subsets, size=size
    )


def cmmd(
    x: ArrayLike,
    y: ArrayLike,
    *,
    bandwidth: float = 10.0,
    scale: float = 1000.0,
    unbiased: bool = False,
) -> float:
    """CMMD (Jayasumana et al. 2024): squared MMD with a Gaussian kernel on rows scaled to unit
    length, times 1000. ``unbiased=False`` is the published code's V-statistic, which is positive
    for equal distributions; ``True`` is the U-statistic.

    ``x`` [n, d], ``y`` [m, d]. With so wide a bandwidth it sees hardly more than the difference of
    means: a generator with the right mean and half the variance scores 0. Raises ValueError, also
    for a row of zeros. Warns (MetricWarning) when all rows of a side are equal.
    """
    a, b = directions(x, "x"), directions(y, "y")
    same_width(x=a, y=b)
    warn_of_constants(x=a, y=b)
    k = _gaussian_less_one(bandwidth)
    n, m = len(a), len(b)
    own_a, own_b = own_sums(k, a).rows.sum(), own_sums(k, b).rows.sum()
    cross = cross_sums(k, a, b).rows.sum() / (n * m)
    pairs_a, pairs_b = (n * (n - 1), m * (m - 1)) if unbiased else (n * n, m * m)
    return float(scale * (own_a / pairs_a + own_b / pairs_b - 2.0 * cross))


def own_sums(kernel: Kernel, x: Float) -> Sums:
    """Of ``kernel(x, x)`` without its diagonal, from the half above it."""
    rows, squares = np.zeros(len(x)), 0.0
    for part in row_blocks(len(x), len(x)):
        k = kernel(x[part], x[part.start :])
        size = part.stop - part.start
        k[np.arange(size), np.arange(size)] = 0.0
        rows[part] += k.sum(1)
        rows[part.stop :] += k[:, size:].sum(0)
        flat, corner = k.ravel(), k[:, :size].ravel()
        squares += 2.0 * float(flat @ flat) - float(corner @ corner)
    return Sums(rows, rows, squares)


def cross_sums(kernel: Kernel, x: Float, y: Float) -> Sums:
    """Of ``kernel(x, y)``."""
    rows, columns, squares = np.empty(len(x)), np.zeros(len(y)), 0.0
    for part in row_blocks(len(x), len(y)):
        k = kernel(x[part], y)
        rows[part] = k.sum(1)
        columns += k.sum(0)
        flat = k.ravel()
        squares += float(flat @ flat)
    return Sums(rows, columns, squares)


def _pair(x: ArrayLike, y: ArrayLike) -> tuple[Float, Float]:
    a, b = matrix(x, "x"), matrix(y, "y")
    same_width(x=a, y=b)
    warn_of_constants(x=a, y=b)
    return a, b


def finite(value: float) -> float:
    if not np.isfinite(value):
        raise ValueError("the kernel's values leave float64: scale the features")
    return float(value)
