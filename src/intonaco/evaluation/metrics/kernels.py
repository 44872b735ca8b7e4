"""Kernel distances (squared maximum mean discrepancies) and the relative three-sample test."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from intonaco.evaluation.metrics.arrays import (
    Float,
    matrix,
    same_width,
    squared_distances,
    unit_rows,
)

Kernel = Callable[[Float, Float], Float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value with its standard error."""

    value: float
    standard_error: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RelativeMmd:
    """``difference`` = MMD^2(candidate, reference) - MMD^2(champion, reference): negative when the
    candidate is nearer. ``n``: pairs; ``groups``: independent units among them."""

    difference: float
    standard_error: float
    champion: float
    candidate: float
    n: int
    groups: int

    @property
    def z(self) -> float:
        if self.standard_error == 0.0:
            return 0.0 if self.difference == 0.0 else float(np.copysign(np.inf, self.difference))
        return self.difference / self.standard_error


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
    if not bandwidth > 0:
        raise ValueError(f"bandwidth must be positive, got {bandwidth}")

    def kernel(x: Float, y: Float) -> Float:
        d = squared_distances(x, y)
        out: Float = np.exp(d / (-2.0 * bandwidth**2))
        return out

    return kernel


def median_bandwidth(reference: Float, *, most: int = 1000) -> float:
    """Median distance between rows of the reference (Gretton et al. 2012), of at most ``most`` rows
    spread evenly. A function of the reference alone, so that every candidate meets one kernel."""
    rows = reference[:: max(1, len(reference) // most)][:most]
    d = squared_distances(rows, rows)[np.triu_indices(len(rows), 1)]
    value = float(np.sqrt(np.median(d)))
    if value == 0.0:
        raise ValueError("more than half of the reference's rows are equal: it tells nothing")
    return value


def kernel_distance(x: ArrayLike, y: ArrayLike, *, kernel: Kernel | None = None) -> Estimate:
    """Unbiased squared MMD with the cubic polynomial kernel (the kernel inception distance of
    Bińkowski et al. 2018, but the full U-statistic instead of a mean over subsets).

    ``x`` [n, d], ``y`` [m, d]. Negative values are valid. The standard error is of first order
    (Serfling 1980, ch. 5): it says how well a distance that is there is known, and is too small
    where both distributions are equal. Raises ValueError.
    """
    a, b = matrix(x, "x"), matrix(y, "y")
    same_width(x=a, y=b)
    k = polynomial() if kernel is None else kernel
    n, m = len(a), len(b)
    rows_a, rows_b = _off_diagonal_means(k(a, a)), _off_diagonal_means(k(b, b))
    cross = k(a, b)
    value = rows_a.mean() + rows_b.mean() - 2.0 * cross.mean()
    along_a, along_b = rows_a - cross.mean(1), rows_b - cross.mean(0)
    variance = 4.0 * (along_a.var(ddof=1) / n + along_b.var(ddof=1) / m)
    return Estimate(value=float(value), standard_error=float(np.sqrt(variance)), n=min(n, m))


def relative_mmd(
    reference: ArrayLike,
    champion: ArrayLike,
    candidate: ArrayLike,
    *,
    groups: Sequence[Hashable] | None = None,
    kernel: Kernel | Literal["gaussian", "polynomial"] = "gaussian",
) -> RelativeMmd:
    """Which of two paired samples is nearer to a reference (the three-sample test of Bounliphone et
    al. 2016, paired: row i of both arms has the same prompt, seed and initial noise).

    ``reference`` [m, d], ``champion`` and ``candidate`` [n, d]. ``groups`` names the independent
    unit of each row (the prompt): rows of one group count as one in the standard error. The
    Gaussian kernel's bandwidth is the reference's median distance. Raises ValueError.
    """
    z = matrix(reference, "reference")
    y, x = matrix(champion, "champion"), matrix(candidate, "candidate")
    same_width(reference=z, champion=y, candidate=x)
    if len(x) != len(y):
        raise ValueError(f"pairs needed: champion has {len(y)} rows, candidate {len(x)}")
    if isinstance(kernel, str):
        k = gaussian(median_bandwidth(z)) if kernel == "gaussian" else polynomial()
    else:
        k = kernel
    n, m = len(x), len(z)
    index = _group_index(groups, n)
    xx, yy = _off_diagonal_means(k(x, x)), _off_diagonal_means(k(y, y))
    xz, yz = k(x, z), k(y, z)
    zz = float(_off_diagonal_means(k(z, z)).mean())
    # first-order projections (Hoeffding) of the difference on a pair and on a reference row; the
    # reference's own term is the same for both arms and cancels
    along_pairs = 2.0 * ((xx - yy) - (xz - yz).mean(1))
    along_reference = 2.0 * (yz - xz).mean(0)
    count = int(index.max()) + 1
    sums = np.bincount(index, weights=along_pairs - along_pairs.mean(), minlength=count)
    if count < 2:
        raise ValueError("all rows are of one group: no standard error")
    variance = (sums**2).sum() / n**2 * count / (count - 1) + along_reference.var(ddof=1) / m
    of_candidate = xx.mean() + zz - 2.0 * xz.mean()
    of_champion = yy.mean() + zz - 2.0 * yz.mean()
    return RelativeMmd(
        difference=float(of_candidate - of_champion),
        standard_error=float(np.sqrt(variance)),
        champion=float(of_champion),
        candidate=float(of_candidate),
        n=n,
        groups=count,
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

    With so wide a bandwidth it sees hardly more than the difference of means. In float64: in
    float32 half a percent is lost to cancellation. Raises ValueError.
    """
    a, b = unit_rows(matrix(x, "x")), unit_rows(matrix(y, "y"))
    same_width(x=a, y=b)
    k = gaussian(bandwidth)
    aa, bb, ab = k(a, a), k(b, b), k(a, b).mean()
    if unbiased:
        return float(
            scale * (_off_diagonal_means(aa).mean() + _off_diagonal_means(bb).mean() - 2.0 * ab)
        )
    return float(scale * (aa.mean() + bb.mean() - 2.0 * ab))


def _off_diagonal_means(k: Float) -> Float:
    """Mean of each row without its diagonal entry."""
    out: Float = (k.sum(1) - np.diagonal(k)) / (len(k) - 1)
    return out


def _group_index(
    groups: Sequence[Hashable] | None, n: int
) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    if groups is None:
        return np.arange(n)
    if len(groups) != n:
        raise ValueError(f"{len(groups)} groups for {n} rows")
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(g, len(numbers)) for g in groups], dtype=np.intp)
