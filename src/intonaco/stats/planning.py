"""How many requests until a test decides? Of evidence that there is, or beforehand. Pure.

Every test of this package mixes products of factors: its evidence is the sum over components of
``exp(share + sum of log factors)``. If the log factors of component ``j`` grow by ``g_j`` a request
on average, the evidence after ``n`` more follows, to first order, ``sum_j exp(c_j + n g_j)``
(the law of large numbers in each component; Wald's identity for the best one), and the number
asked for is the ``n`` at which this reaches the threshold. That is near the median of the real
number, which is skewed: tests/unit/test_stats_planning.py compares them. It is an expectation, not
a guarantee, and it holds while rates, weight and service stay as assumed.

No theorem is needed for validity: what is planned never enters a decision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from intonaco.stats.betting import FRACTIONS, log_growth
from intonaco.stats.difference import randomised_bet
from intonaco.stats.error_ratio import SHARES, mixed, ratio_growth

Array = NDArray[np.float64]

MOST = 1e12  # requests: beyond it, never
_POINTS = 401  # of a continuous distribution


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """A distribution of outcomes: values, and the chance of each."""

    values: Array
    chances: Array

    @property
    def mean(self) -> float:
        return float(self.values @ self.chances)


def failures(rate: float) -> Outcomes:
    """1 with this chance, else 0."""
    return Outcomes(values=np.array([0.0, 1.0]), chances=np.array([1 - rate, rate]))


def scores(mean: float, sd: float, *, low: float = 0.0, high: float = 1.0) -> Outcomes:
    """A normal distribution cut off at ``low`` and ``high``."""
    values = np.clip(mean + sd * _normal_points(), low, high)
    return Outcomes(values=values, chances=np.full(_POINTS, 1 / _POINTS))


def rank_powers(*, slower: float, log_sd: float, power: float) -> Outcomes:
    """Ranks among the champion's times, to a power, of a time ``slower`` times as long, where times
    are lognormal with this standard deviation of their logarithm."""
    ranks = _normal_cdf(_normal_points() + math.log(slower) / log_sd)
    return Outcomes(values=ranks**power, chances=np.full(_POINTS, 1 / _POINTS))


def exceedances(*, slower: float, log_sd: float, level: float) -> Outcomes:
    """Is a time that is ``slower`` times as long above the champion's quantile at ``level``?"""
    ranks = _normal_cdf(_normal_points() + math.log(slower) / log_sd)
    return failures(float(np.mean(ranks > level)))


# ------------------------------------------------------------------------------ growth per request


def difference_growth(
    champion: Outcomes, challenger: Outcomes, *, weight: float, d: float, above: bool
) -> Array:
    """Of ``RandomizedDifference``: expected log factor per unit of each fraction, shape
    [fractions]. ``above``: of the evidence that the difference is above ``d``, else below."""
    centre = weight * challenger.mean + (1 - weight) * champion.mean
    centre = min(max(centre, 1e-4), 1 - 1e-4)
    found = np.zeros(len(FRACTIONS))
    for outcomes, arm, share in ((champion, False, 1 - weight), (challenger, True, weight)):
        bets = [randomised_bet(float(y), arm, weight, centre) for y in outcomes.values]
        h, scale, low, high = (np.array(part) for part in zip(*bets, strict=True))
        factors = log_growth(h, scale, low, high, np.array([d]), np.asarray(FRACTIONS))
        found = found + share * (outcomes.chances @ factors[0 if above else 1][:, 0])
    return found


def paired_growth(differences: Outcomes, *, d: float, above: bool) -> Array:
    """Of ``PairedDifference``: expected log factor per pair of each fraction."""
    one = np.ones(differences.values.shape)
    factors = log_growth(differences.values, one, -one, one, np.array([d]), np.asarray(FRACTIONS))
    found: Array = differences.chances @ factors[0 if above else 1][:, 0]
    return found


# --------------------------------------------------------------------------------------- requests


def remaining(components: Array, growth: Array, threshold: float) -> float | None:
    """Requests until evidence reaches ``threshold`` (a logarithm): 0 if it has, None if it is not
    expected to.

    ``components``: log evidence of each component now, shares included; ``growth``: what each
    gains per request, both of shape [J].
    """
    return remaining_over(components, [(growth, math.inf)], threshold)


def remaining_over(
    components: Array, stages: Sequence[tuple[Array, float]], threshold: float
) -> float | None:
    """The same over stages of (growth per request, requests): weights that rise while evidence is
    carried along. None if it is not expected to be reached within them."""
    now, before = np.asarray(components, float), 0.0
    for growth, length in stages:
        if float(mixed(now)) >= threshold:
            return before
        most = min(length, MOST)
        if float(mixed(now + most * growth)) < threshold:
            # In between it cannot have been reached either: a sum of exponentials is convex in n.
            now, before = now + most * growth, before + most
            continue
        low, high = 0.0, most
        while high - low > max(0.5, 1e-3 * high):
            middle = (low + high) / 2
            if float(mixed(now + middle * growth)) >= threshold:
                high = middle
            else:
                low = middle
        return before + high
    return None


def shares(count: int) -> Array:
    """Log shares of an equal mixture: the components of a test that has seen nothing."""
    return np.full(count, -math.log(count))


def to_catch_errors(
    *, champion: float, challenger: float, weight: float, alpha: float, tolerance: float = 0.0
) -> float | None:
    """Requests (of both arms) until ``ErrorRatio`` reaches ``1/alpha`` at these error rates."""
    growth = ratio_growth(
        champion=champion, challenger=challenger, weight=weight, tolerance=tolerance
    )
    return remaining(np.log(SHARES), growth, math.log(1 / alpha))


def to_prove_errors(
    *, champion: float, challenger: float, weight: float, margin: float, alpha: float
) -> float | None:
    """Requests until ``RandomizedDifference`` shows that the challenger's error rate is less than
    ``margin`` above the champion's."""
    return to_prove_scores(
        champion=failures(champion),
        challenger=failures(challenger),
        weight=weight,
        margin=margin,
        alpha=alpha,
    )


def to_prove_scores(
    *, champion: Outcomes, challenger: Outcomes, weight: float, margin: float, alpha: float
) -> float | None:
    """The same for outcomes in [0, 1] of any kind."""
    growth = difference_growth(champion, challenger, weight=weight, d=margin, above=False)
    return remaining(shares(growth.size), growth, math.log(1 / alpha))


def to_prove_pairs(*, differences: Outcomes, margin: float, alpha: float) -> float | None:
    """Pairs until ``PairedDifference`` shows a mean difference below ``margin``."""
    growth = paired_growth(differences, d=margin, above=False)
    return remaining(shares(growth.size), growth, math.log(1 / alpha))


def to_prove_latency(
    *, log_sd: float, weight: float, margin: float, level: float, alpha: float, slower: float = 1.0
) -> float | None:
    """Requests until ``LatencyTest`` shows the quantile at ``level`` within ``1 + margin`` times
    the champion's, if the challenger is ``slower`` times as slow and times are lognormal."""
    growth = difference_growth(
        exceedances(slower=1.0, log_sd=log_sd, level=level),
        exceedances(slower=slower / (1 + margin), log_sd=log_sd, level=level),
        weight=weight,
        d=0.0,
        above=False,
    )
    return remaining(shares(growth.size), growth, math.log(1 / alpha))


def to_catch_latency(
    *,
    log_sd: float,
    slower: float,
    weight: float,
    alpha: float,
    powers: Sequence[float],
    tolerance: float = 0.0,
) -> float | None:
    """Requests until ``LatencyTest`` shows that a challenger is slower, likewise."""
    growth = np.concatenate(
        [
            difference_growth(
                rank_powers(slower=1.0, log_sd=log_sd, power=power),
                rank_powers(slower=slower / (1 + tolerance), log_sd=log_sd, power=power),
                weight=weight,
                d=0.0,
                above=True,
            )
            for power in powers
        ]
    )
    return remaining(shares(growth.size), growth, math.log(1 / alpha))


def _normal_points() -> Array:
    """The middles of equally likely parts of a standard normal distribution, by bisection."""
    wanted = (np.arange(_POINTS) + 0.5) / _POINTS
    low, high = np.full(_POINTS, -9.0), np.full(_POINTS, 9.0)
    for _ in range(60):
        middle = (low + high) / 2
        under = _normal_cdf(middle) < wanted
        low, high = np.where(under, middle, low), np.where(under, high, middle)
    found: Array = (low + high) / 2
    return found


_ERF: Callable[[Array], Array] = np.vectorize(math.erf, otypes=[float])


def _normal_cdf(z: Array) -> Array:
    found: Array = 0.5 * (1.0 + _ERF(z / math.sqrt(2.0)))
    return found
