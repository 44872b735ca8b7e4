"""How many requests until a test decides? Of evidence that there is, or beforehand. Pure.

Every test of this package mixes products of factors: its log evidence is the logarithm of
``sum_j exp(c_j + sum_i l_ij)``, ``l_ij`` the log factor of component ``j`` at request ``i``. Given
what a request brings (a ``Step``: outcomes with chances, and the log factors of each), the futures
of the evidence are drawn in blocks, whose counts of outcomes are multinomial, and the number of
requests is the median of the first that reach the threshold. (The path of the means alone would be
late by a third and more: the evidence is looked at always, and its luckiest component counts.)
tests/unit/test_stats_planning.py compares it with requests needed.

It is an expectation, not a guarantee, and it holds while rates, weight and service stay as assumed.
Validity does not rest on it: what is planned enters no decision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from intonaco.stats.betting import FRACTIONS, log_growth
from intonaco.stats.difference import randomised_bet
from intonaco.stats.error_ratio import RATIOS, SHARES, log_factors, mixed

Array = NDArray[np.float64]

FUTURES = 200
BLOCKS = 40  # until the means reach the threshold
LATEST = 10  # times as late as the means: later is not expected
MOST = 1e12  # requests: beyond it, never
_POINTS = 61  # of a continuous distribution


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one request brings: outcomes with these chances, shape [K], each of which adds to the
    log evidence of every component, shape [K, J]."""

    chances: Array
    gains: Array

    @property
    def growth(self) -> Array:
        """The mean of it, shape [J]."""
        found: Array = self.chances @ self.gains
        return found


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
    at = _normal_quantile(np.array([level])) - math.log(slower) / log_sd
    return failures(1.0 - float(_normal_cdf(at)[0]))


# -------------------------------------------------------------------------------- what it brings


def ratio_step(
    *, champion: float, challenger: float, weight: float, tolerance: float = 0.0
) -> Step:
    """To ``ErrorRatio``, at these error rates."""
    bad, good = weight * challenger, (1 - weight) * champion
    ratios = np.asarray(RATIOS)
    gains = [log_factors(arm, weight, ratios, tolerance) for arm in (True, False)]
    return Step(
        chances=np.array([bad, good, 1 - bad - good]),
        gains=np.array([*gains, np.zeros(ratios.size)]),
    )


def difference_step(
    champion: Outcomes, challenger: Outcomes, *, weight: float, d: float, above: bool
) -> Step:
    """To ``RandomizedDifference``. ``above``: to the evidence that the difference is above ``d``,
    else below."""
    centre = weight * challenger.mean + (1 - weight) * champion.mean
    centre = min(max(centre, 1e-4), 1 - 1e-4)
    chances, gains = [], []
    for outcomes, arm, share in ((champion, False, 1 - weight), (challenger, True, weight)):
        bets = [randomised_bet(float(y), arm, weight, centre) for y in outcomes.values]
        h, scale, low, high = (np.array(part) for part in zip(*bets, strict=True))
        factors = log_growth(h, scale, low, high, np.array([d]), np.asarray(FRACTIONS))
        chances.append(share * outcomes.chances)
        gains.append(factors[0 if above else 1][:, 0])
    return Step(chances=np.concatenate(chances), gains=np.concatenate(gains))


def paired_step(differences: Outcomes, *, d: float, above: bool) -> Step:
    """To ``PairedDifference``."""
    one = np.ones(differences.values.shape)
    factors = log_growth(differences.values, one, -one, one, np.array([d]), np.asarray(FRACTIONS))
    return Step(chances=differences.chances, gains=factors[0 if above else 1][:, 0])


# --------------------------------------------------------------------------------------- requests


def remaining(components: Array, step: Step, threshold: float, *, seed: int = 0) -> float | None:
    """Requests until evidence reaches ``threshold`` (a logarithm), the median of drawn futures: 0
    if it has, None if it is not expected to.

    ``components``: log evidence of each component now, shares included, shape [J].
    """
    return remaining_over(components, [(step, math.inf)], threshold, seed=seed)


def remaining_over(
    components: Array,
    stages: Sequence[tuple[Step, float]],
    threshold: float,
    *,
    seed: int = 0,
) -> float | None:
    """The same over stages of (what a request brings, requests): weights that rise while evidence
    is carried along. None if it is not expected to be reached within them."""
    start = np.asarray(components, float)
    if float(mixed(start)) >= threshold:
        return 0.0
    means = _means(start, stages, threshold)
    horizon = means if means is not None else sum(length for _, length in stages)
    if not horizon <= MOST:
        return None
    block = max(1, round(horizon / BLOCKS))
    rng = np.random.default_rng(seed)
    now, over, before = np.tile(start, (FUTURES, 1)), np.zeros(FUTURES, bool), 0.0
    latest = LATEST * block * BLOCKS
    for step, length in stages:
        chances = step.chances / step.chances.sum()
        done = 0.0
        while done < length and before < latest:
            size = int(min(block, length - done))
            if size < 1:
                break
            now += rng.multinomial(size, chances, FUTURES) @ step.gains
            done, before = done + size, before + size
            over |= mixed(now) >= threshold
            if 2 * int(over.sum()) >= FUTURES:
                return max(before - size / 2, 1.0)
    return None


def _means(start: Array, stages: Sequence[tuple[Step, float]], threshold: float) -> float | None:
    """When the path of the means reaches the threshold; None if it does not."""
    now, before = start, 0.0
    for step, length in stages:
        growth, most = step.growth, min(length, MOST)
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
    step = ratio_step(champion=champion, challenger=challenger, weight=weight, tolerance=tolerance)
    return remaining(np.log(SHARES), step, math.log(1 / alpha))


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
    step = difference_step(champion, challenger, weight=weight, d=margin, above=False)
    return remaining(shares(step.gains.shape[1]), step, math.log(1 / alpha))


def to_prove_amounts(
    *,
    champion: Outcomes,
    challenger: Outcomes,
    cap: float,
    weight: float,
    margin: float,
    alpha: float,
) -> float | None:
    """Requests until ``AmountTest`` shows the challenger's mean amount below ``1 + margin`` times
    the champion's, both capped. ``champion``, ``challenger``: distributions of amounts."""
    shown = [
        Outcomes(values=np.minimum(o.values / (1 + slack), cap) / cap, chances=o.chances)
        for o, slack in ((champion, 0.0), (challenger, margin))
    ]
    step = difference_step(*shown, weight=weight, d=0.0, above=False)
    return remaining(shares(step.gains.shape[1]), step, math.log(1 / alpha))


def to_prove_pairs(*, differences: Outcomes, margin: float, alpha: float) -> float | None:
    """Pairs until ``PairedDifference`` shows a mean difference below ``margin``."""
    step = paired_step(differences, d=margin, above=False)
    return remaining(shares(step.gains.shape[1]), step, math.log(1 / alpha))


def to_prove_latency(
    *, log_sd: float, weight: float, margin: float, level: float, alpha: float, slower: float = 1.0
) -> float | None:
    """Requests until ``LatencyTest`` shows the quantile at ``level`` within ``1 + margin`` times
    the champion's, if the challenger is ``slower`` times as slow and times are lognormal."""
    step = difference_step(
        exceedances(slower=1.0, log_sd=log_sd, level=level),
        exceedances(slower=slower / (1 + margin), log_sd=log_sd, level=level),
        weight=weight,
        d=0.0,
        above=False,
    )
    return remaining(shares(step.gains.shape[1]), step, math.log(1 / alpha))


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
    # One draw of ranks for all powers: the same requests bring to every component.
    steps = [
        difference_step(
            rank_powers(slower=1.0, log_sd=log_sd, power=power),
            rank_powers(slower=slower / (1 + tolerance), log_sd=log_sd, power=power),
            weight=weight,
            d=0.0,
            above=True,
        )
        for power in powers
    ]
    step = Step(chances=steps[0].chances, gains=np.concatenate([s.gains for s in steps], axis=1))
    return remaining(shares(step.gains.shape[1]), step, math.log(1 / alpha))


def _normal_points() -> Array:
    """The middles of equally likely parts of a standard normal distribution."""
    return _normal_quantile((np.arange(_POINTS) + 0.5) / _POINTS)


def _normal_quantile(share: Array) -> Array:
    """By bisection."""
    low, high = np.full(share.shape, -9.0), np.full(share.shape, 9.0)
    for _ in range(60):
        middle = (low + high) / 2
        under = _normal_cdf(middle) < share
        low, high = np.where(under, middle, low), np.where(under, high, middle)
    found: Array = (low + high) / 2
    return found


_ERF: Callable[[Array], Array] = np.vectorize(math.erf, otypes=[float])


def _normal_cdf(z: Array) -> Array:
    found: Array = 0.5 * (1.0 + _ERF(z / math.sqrt(2.0)))
    return found
