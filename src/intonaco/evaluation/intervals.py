"""Fixed-sample intervals for the offline gate. NumPy only.

All are two-sided at level 1 - 2 alpha, so that each end is a one-sided bound at level 1 - alpha:
what a non-inferiority test needs. They are for one look at a fixed n. For traffic that is watched
continuously use ``intonaco.stats``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

Interval = tuple[float, float]
Index = NDArray[np.intp]


def normal_quantile(p: float) -> float:
    """Quantile of the standard normal distribution."""
    return NormalDist().inv_cdf(p)


def student_quantile(p: float, df: int) -> float:
    """Quantile of Student's t distribution, to about 1e-10. Raises ValueError unless 0 < p < 1 and
    df >= 1."""
    if not 0 < p < 1 or df < 1:
        raise ValueError(f"no quantile {p} of t with {df} degrees of freedom")
    if p < 0.5:
        return -student_quantile(1 - p, df)
    low, high = 0.0, 1.0
    while _student_cdf(high, df) < p:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_cdf(middle, df) < p else (low, middle)
    return (low + high) / 2


def _student_cdf(t: float, df: int) -> float:
    """For t >= 0: the finite series of Abramowitz & Stegun 26.7.3 and 26.7.4."""
    theta = math.atan2(t, math.sqrt(df))
    sine, cosine = math.sin(theta), math.cos(theta)
    if df % 2:
        term = total = cosine if df > 1 else 0.0
        for k in range(3, df - 1, 2):
            term *= cosine**2 * (k - 1) / k
            total += term
        inside = 2 / math.pi * (theta + sine * total)
    else:
        term = total = 1.0
        for k in range(2, df - 1, 2):
            term *= cosine**2 * (k - 1) / k
            total += term
        inside = sine * total
    return 0.5 + inside / 2


def t_interval(values: ArrayLike, alpha: float) -> tuple[float, Interval | None]:
    """Mean of independent values [n] with Student's interval; None with fewer than two."""
    x = np.asarray(values, dtype=np.float64)
    mean = float(x.mean())
    if len(x) < 2:
        return mean, None
    half = student_quantile(1 - alpha, len(x) - 1) * float(x.std(ddof=1)) / math.sqrt(len(x))
    return mean, (mean - half, mean + half)


def hodges_lehmann(values: ArrayLike, alpha: float) -> tuple[float, Interval | None]:
    """Centre of independent, roughly symmetric values [n] as the median of their pairwise means,
    with the exact interval of Wilcoxon's signed-rank test (Hollander & Wolfe, ch. 3).

    One wild value (a machine that was busy for a moment) hardly moves it. None if n is so small
    that no interval has the level: fewer than 5 values at alpha = 0.05.
    """
    x = np.asarray(values, dtype=np.float64)
    n = len(x)
    if n == 0:
        return math.nan, None
    first, second = np.triu_indices(n)
    means = np.sort((x[first] + x[second]) / 2)
    ways = np.zeros(n * (n + 1) // 2 + 1)  # number of rank subsets with each sum
    ways[0] = 1.0
    for rank in range(1, n + 1):
        ways[rank:] += ways[: len(ways) - rank].copy()
    below = np.cumsum(ways) / 2.0**n
    outside = int(np.searchsorted(below, alpha, side="right"))  # P(T < outside) <= alpha
    centre = float(np.median(means))
    if outside == 0:
        return centre, None
    return centre, (float(means[outside - 1]), float(means[-outside]))


def half_sample_error(
    statistic: Callable[[Index], float],
    units: Sequence[Hashable],
    strata: Sequence[Hashable],
    *,
    draws: int,
    rng: np.random.Generator,
) -> float:
    """Standard error of a statistic of rows by drawing half of the units of each stratum without
    replacement (a delete-half jackknife: Shao & Wu 1989).

    ``units`` and ``strata`` name the unit and the stratum of each row; ``statistic`` gets the rows
    drawn. Unlike a bootstrap it never draws a row twice, which statistics of nearest neighbours
    cannot bear. A stratum with one unit is always drawn. NaN if there are too few units.
    """
    rows: dict[Hashable, dict[Hashable, list[int]]] = {}
    for row, (unit, stratum) in enumerate(zip(units, strata, strict=True)):
        rows.setdefault(stratum, {}).setdefault(unit, []).append(row)
    members = [[np.array(r) for r in of.values()] for of in rows.values()]
    if sum(len(m) // 2 for m in members) < 2:
        return math.nan
    values = []
    for _ in range(draws):
        drawn = []
        for stratum_units in members:
            n = len(stratum_units)
            # of an odd number, half rounded up or down by chance
            size = max(1, (n + int(rng.integers(2))) // 2)
            drawn += [stratum_units[i] for i in rng.choice(n, size=size, replace=False)]
        values.append(statistic(np.concatenate(drawn)))
    return float(np.std(values, ddof=1))
