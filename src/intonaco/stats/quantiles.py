"""Quantiles of two arms, for intervals that a person reads; decisions are ``latency.py``'s.

**Null.** For each arm: given the past, every value is at most the quantile with probability ``q``.
So they hold for a service that does not drift; unlike the bets of ``latency.py``, which compare
like with like at every moment, they are not to be trusted where it does.

**One arm.** The number of values at or below the true quantile, less its mean, is sub-Bernoulli, so
it stays between two beta-binomial mixture bounds at all looks together (Howard and Ramdas,
"Sequential estimation of quantiles", Bernoulli 2022, arXiv 1906.09712, section 3; the bound is
``boundaries.beta_binomial_bound``). The order statistics at these ranks are the interval. Of a rank
beyond the sample there is no statement: the bound is infinite, never the smallest or largest value
seen.

**Two arms.** Each at level ``1 - alpha / 2``; both hold at once with ``1 - alpha``, so the
difference lies in ``[low_c - high_s, high_c - low_s]`` and the ratio likewise.

Values are in sketches (``sketch.py``): an order statistic is known up to its bucket, and bounds are
rounded outwards to the bucket's edges.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from intonaco.stats.boundaries import (
    beta_binomial_bound,
    beta_binomial_log_mixture,
    empirical_band,
)
from intonaco.stats.sketch import SMALLEST, QuantileSketch
from intonaco.types import Json

Values = NDArray[np.float64]

T_OPT = 400.0  # values at which the intervals are tightest
_OPTIMUM = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """An interval; a side without a bound is infinite, ``None`` in JSON."""

    low: float
    high: float

    def json(self) -> Json:
        return [None if math.isinf(b) else b for b in (self.low, self.high)]


def quantile_bounds(
    sketch: QuantileSketch, q: float, alpha: float, *, t_opt: float = T_OPT
) -> Bounds:
    """Confidence sequence of level ``1 - alpha`` for a constant ``q`` quantile."""
    if not 0 < q < 1:
        raise ValueError(f"a quantile lies strictly between 0 and 1: {q}")
    n = sketch.count
    if not n:
        return Bounds(low=-math.inf, high=math.inf)
    v, v_opt = q * (1 - q) * n, q * (1 - q) * t_opt
    fewer = beta_binomial_bound(v, alpha, v_opt=v_opt, g=1 - q, h=q, alpha_opt=_OPTIMUM)
    more = beta_binomial_bound(v, alpha, v_opt=v_opt, g=q, h=1 - q, alpha_opt=_OPTIMUM)
    lowest, highest = ranks(n, q, fewer, more)
    return Bounds(
        low=-math.inf if lowest is None else edges(sketch, lowest)[0],
        high=math.inf if highest is None else edges(sketch, highest)[1],
    )


def ranks(n: int, q: float, fewer: float, more: float) -> tuple[int | None, int | None]:
    """The ranks (1 is the smallest) between which the quantile of ``n`` values lies, if no more
    than ``fewer`` below and ``more`` above the expected number are at or below it; None where there
    is no such value."""
    lowest = None if math.isinf(fewer) else math.floor(n * q - fewer + 1)
    highest = None if math.isinf(more) else math.ceil(n * q + more)
    return (
        None if lowest is None or lowest < 1 else lowest,
        None if highest is None or highest > n else highest,
    )


def edges(sketch: QuantileSketch, rank: int) -> tuple[float, float]:
    """Between which values the order statistic of this rank (1 is the smallest) lies."""
    counts = sketch.counts
    below = sketch.count - sum(counts.values())  # zeros
    if rank <= below:
        return (0.0, SMALLEST)
    growth = (1 + sketch.error) / (1 - sketch.error)
    top = max(counts)
    for index, count in counts.items():
        below += count
        if rank <= below:
            collapsed = index == top - sketch.buckets + 1
            low = 0.0 if collapsed else growth ** (index - 1)
            slack = 1e-12  # of the logarithm that chose the bucket
            return (
                max(low * (1 - slack), min(sketch.smallest, sketch.largest)),
                min(growth**index * (1 + slack), sketch.largest),
            )
    return (sketch.largest, sketch.largest)


def compare(
    champion: QuantileSketch,
    challenger: QuantileSketch,
    q: float,
    alpha: float,
    *,
    t_opt: float = T_OPT,
) -> tuple[Bounds, Bounds]:
    """Challenger minus champion, and challenger over champion, each at level ``1 - alpha`` (both
    follow from the same two intervals, so both at once too)."""
    ours = quantile_bounds(challenger, q, alpha / 2, t_opt=t_opt)
    theirs = quantile_bounds(champion, q, alpha / 2, t_opt=t_opt)
    difference = Bounds(low=ours.low - theirs.high, high=ours.high - theirs.low)
    low = 0.0 if math.isinf(ours.low) else ours.low
    base = 0.0 if math.isinf(theirs.low) else theirs.low
    ratio = Bounds(
        low=0.0 if math.isinf(theirs.high) or not theirs.high else low / theirs.high,
        high=math.inf if math.isinf(ours.high) or not base else ours.high / base,
    )
    return difference, ratio


def slower_somewhere(
    champion: QuantileSketch,
    challenger: QuantileSketch,
    alpha: float,
    *,
    tolerance: float = 0.0,
    since: int = 50,
) -> bool:
    """Is the challenger's distribution proven slower than ``1 + tolerance`` times the champion's at
    some quantile? The bands of both empirical distributions (``boundaries.empirical_band``), each
    at ``alpha / 2``, are apart. A check of ``LatencyTest`` that needs far more requests: for
    independent times of one distribution an arm."""
    if not champion.count or not challenger.count:
        return False
    apart = empirical_band(champion.count, alpha / 2, since=since) + empirical_band(
        challenger.count, alpha / 2, since=since
    )
    if math.isinf(apart):
        return False
    growth = (1 + challenger.error) / (1 - challenger.error)
    for index in challenger.counts:
        at = growth ** (index - 1) * (1 - 1e-12)  # below all of this bucket
        slow = _above(challenger, index) / challenger.count
        # At most so many of the champion's are above at / (1 + tolerance): whole buckets count.
        edge = at / (1 + tolerance)
        fast = sum(n for i, n in champion.counts.items() if growth**i * (1 + 1e-12) > edge)
        if slow - fast / champion.count > apart:
            return True
    return False


def _above(sketch: QuantileSketch, index: int) -> int:
    return sum(n for i, n in sketch.counts.items() if i >= index)


def equality_log_evidence(
    one: Sequence[float], other: Sequence[float], q: float, *, t_opt: float = 100.0
) -> float:
    """Log e-value against "both arms have the same ``q`` quantile", from the values themselves.

    Under the null both one-arm mixtures at the common quantile are supermartingales, so their
    product is at most the e-value; unknown, the common quantile is replaced by the worst (Howard
    and Ramdas 2022, section 5, whose library confseq gives the reference values). A check; nothing
    here decides by it.
    """
    arms = [np.sort(np.asarray(values, float)) for values in (one, other)]

    def evidence(values: Values, share: float) -> float:
        n = len(values)
        return beta_binomial_log_mixture(
            (share - q) * n,
            q * (1 - q) * n,
            v_opt=q * (1 - q) * t_opt,
            g=q,
            h=1 - q,
            alpha_opt=_OPTIMUM,
        )

    def cheapest(values: Values) -> float:
        """The share at which an arm's evidence, convex in it, is least."""
        low, high = 0.0, 1.0
        for _ in range(100):
            one_third, two_thirds = (2 * low + high) / 3, (low + 2 * high) / 3
            if evidence(values, one_third) < evidence(values, two_thirds):
                high = two_thirds
            else:
                low = one_third
        return (low + high) / 2

    bottoms = [cheapest(values) for values in arms]

    def least(values: Values, bottom: float, x: float) -> float:
        """Over the shares that a quantile at ``x`` allows: those below, to those at or below."""
        n = len(values)
        low = float(np.searchsorted(values, x, "left")) / n
        high = float(np.searchsorted(values, x, "right")) / n
        return evidence(values, min(max(bottom, low), high))

    every = np.unique(np.concatenate(arms))
    middles = (every[1:] + every[:-1]) / 2
    points = [*every, *middles, every[0] - 1, every[-1] + 1]
    return min(
        sum(least(v, bottom, float(x)) for v, bottom in zip(arms, bottoms, strict=True))
        for x in points
    )
