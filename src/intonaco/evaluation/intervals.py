"""Fixed-sample intervals for the offline gate. NumPy only.

All are two-sided at level 1 - 2 alpha, so that each end is a one-sided bound at level 1 - alpha:
what a non-inferiority test needs. They are for one look at a fixed n. For traffic that is watched
continuously use ``intonaco.stats``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
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


def mean_interval(
    values: ArrayLike, strata: Sequence[Hashable], alpha: float
) -> tuple[float, Interval | None]:
    """Mean of independent values [n], drawn from fixed strata in proportion to their sizes here.

    At each end the wider of two: Student's with the variance within strata and Satterthwaite's
    degrees of freedom, and Hall's (1992) transformed t, which takes account of skewness. Alone, the
    first is too short towards the long tail of a skewed distribution (a candidate that ruins a few
    prompts), the second with heavy tails. None if there are fewer than two values.
    """
    x = np.asarray(values, dtype=np.float64)
    mean, n = float(x.mean()), len(x)
    if n < 2:
        return mean, None
    variance = third = below = 0.0
    for rows in strata_of(strata):
        part = x[rows] - x[rows].mean()
        k = len(part)
        of_part = float((part**2).sum()) / (k - 1) * k / n**2
        variance += of_part
        below += of_part**2 / (k - 1)
        third += float((part**3).sum()) / n**3
    if variance == 0.0:
        return mean, (mean, mean)
    error = math.sqrt(variance)
    t = student_quantile(1 - alpha, max(1, math.floor(variance**2 / below)))
    skew = third / error**3  # of the mean
    low = mean - error * max(t, _hall(t, skew))
    high = mean + error * max(t, -_hall(-t, skew))
    return mean, (low, high)


def _hall(t: float, skew: float) -> float:
    """Inverse of Hall's cubic transformation of a t statistic of a mean with this skewness."""
    if abs(skew) < 1e-9:
        return t
    return 3.0 / skew * (math.copysign(abs(w := 1 + skew * t - skew**2 / 6) ** (1 / 3), w) - 1.0)


def strata_of(strata: Sequence[Hashable], least: int = 2) -> list[Index]:
    """Positions of each stratum's members. Strata of fewer than ``least`` are taken together, and
    with the smallest of the others if that is still too few."""
    found: dict[Hashable, list[int]] = {}
    for i, name in enumerate(strata):
        found.setdefault(name, []).append(i)
    whole = sorted((m for m in found.values() if len(m) >= least), key=len)
    rest = [i for m in found.values() if len(m) < least for i in m]
    if rest and len(rest) < least and whole:
        rest += whole.pop(0)
    return [np.array(m, dtype=np.intp) for m in (*whole, rest) if m]


def share_interval(count: int, n: int, alpha: float) -> Interval:
    """Exact interval of a share (Clopper & Pearson 1934) from ``count`` of ``n``. None of n leaves
    at most 1 - alpha^(1/n), about 3/n at alpha = 0.05: the rule of three. Never too short; for rare
    events longer than its level asks for. Raises ValueError unless 0 <= count <= n and n > 0."""
    if not 0 <= count <= n or n < 1:
        raise ValueError(f"{count} of {n} is no share")

    def solve(below: Callable[[float], bool]) -> float:
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if below(middle) else (low, middle)
        return (low + high) / 2

    low = 0.0 if count == 0 else solve(lambda p: 1.0 - binomial_cdf(count - 1, n, p) < alpha)
    high = 1.0 if count == n else solve(lambda p: binomial_cdf(count, n, p) > alpha)
    return low, high


def binomial_cdf(k: int, n: int, p: float) -> float:
    """P(X <= k) of a binomial variable."""
    if k < 0:
        return 0.0
    if k >= n or p <= 0.0:
        return 1.0
    if p >= 1.0:
        return 0.0
    logs = _log_factorials(1 << max(10, n.bit_length()))
    i = np.arange(k + 1)
    ways = logs[n] - logs[i] - logs[n - i]
    return float(min(1.0, np.exp(ways + i * math.log(p) + (n - i) * math.log1p(-p)).sum()))


@lru_cache
def _log_factorials(size: int) -> NDArray[np.float64]:
    out: NDArray[np.float64] = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, size + 1)))])
    return out


def widened(interval: Interval, mean: float, n: int, alpha: float) -> Interval:
    """An interval of the mean of differences within -1 to 1 of n units, at least as wide as n units
    without an event leave open (the rule of three): none seen is not none to come."""
    least = 1.0 - alpha ** (1.0 / n)
    low, high = interval
    return max(-1.0, min(low, mean - least)), min(1.0, max(high, mean + least))


def paired_share_interval(before: ArrayLike, after: ArrayLike, alpha: float) -> Interval:
    """Of the difference of two shares of the same units, ``after`` minus ``before`` (booleans [n]).

    From exact intervals of the shares of units that have only one of the two, each at half of
    alpha: never too short, however rare the event, and longer than its level asks for.
    """
    a, b = np.asarray(before, dtype=bool), np.asarray(after, dtype=bool)
    only_after = share_interval(int((b & ~a).sum()), len(a), alpha / 2)
    only_before = share_interval(int((a & ~b).sum()), len(a), alpha / 2)
    return only_after[0] - only_before[1], only_after[1] - only_before[0]


def moved_interval(gained: int, lost: int, n: int, alpha: float) -> Interval:
    """Of the difference of two shares of the same n units, of which ``gained`` have only the second
    and ``lost`` only the first: exact intervals of both, put together as Zou & Donner (2008) do.
    Shorter than ``paired_share_interval``, and about right instead of never too short."""
    up, down = gained / n, lost / n
    up_low, up_high = share_interval(gained, n, alpha)
    down_low, down_high = share_interval(lost, n, alpha)
    low = up - down - math.hypot(up - up_low, down_high - down)
    high = up - down + math.hypot(up_high - up, down - down_low)
    return low, high


def quantile_difference(
    before: ArrayLike,
    after: ArrayLike,
    clusters: Sequence[Hashable],
    p: float,
    alpha: float,
) -> tuple[float, Interval | None]:
    """Difference of the p-quantiles of two samples, ``after`` minus ``before`` [n]; ``clusters``
    names what value i of both belongs to (a round).

    Each quantile by order statistics of as many values as the clusters leave independent (Woodruff
    1952; Korn & Graubard 1998), the two put together as Zou & Donner (2008) do. That the samples
    rise and fall together is not used, which errs on the side of length. None where there is no
    interval of the level: fewer than 59 values at p = 0.95, alpha = 0.05.
    """
    ends = [_quantile(np.asarray(x, dtype=np.float64), clusters, p, alpha) for x in (before, after)]
    (a, a_low, a_high), (b, b_low, b_high) = ends
    low = b - a - math.hypot(b - b_low, a_high - a)
    high = b - a + math.hypot(b_high - b, a - a_low)
    return b - a, (low, high) if math.isfinite(low) and math.isfinite(high) else None


def _quantile(
    x: NDArray[np.float64], clusters: Sequence[Hashable], p: float, alpha: float
) -> tuple[float, float, float]:
    n, ordered = len(x), np.sort(x)
    value = float(np.quantile(x, p, method="median_unbiased"))
    numbers: dict[Hashable, int] = {}
    index = [numbers.setdefault(c, len(numbers)) for c in clusters]
    inside = (x < value).astype(np.float64)
    share = float(inside.mean())
    sums = np.bincount(index, weights=inside - share)
    simple = share * (1 - share) / n
    spread = float((sums**2).sum()) / n**2
    effect = max(1.0, spread / simple) if simple > 0 else 1.0
    effective = max(1, math.floor(n / effect + 1e-9))
    below = [binomial_cdf(i - 1, effective, p) for i in range(effective + 2)]  # P(X < i)
    low, high = -math.inf, math.inf
    if below[1] <= alpha:
        i = max(i for i in range(1, effective + 1) if below[i] <= alpha)
        low = _at(ordered, (i + (alpha - below[i]) / (below[i + 1] - below[i])) * n / effective)
    if below[effective] >= 1 - alpha:
        i = next(i for i in range(1, effective + 1) if below[i] >= 1 - alpha)
        over = (below[i] - (1 - alpha)) / (below[i] - below[i - 1])
        high = _at(ordered, (i - over) * n / effective)
    return value, min(low, value), max(high, value)


def _at(ordered: NDArray[np.float64], position: float) -> float:
    """Between order statistics, counted from 1 (Beran & Hall 1993)."""
    return float(np.interp(position, np.arange(1, len(ordered) + 1), ordered))


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
