"""How often does each test claim what is not so? Looks after every unit of every stream.

Each function of ``METRICS`` makes ``runs`` streams of ``units`` units of one scenario in which the
test's null holds, and returns the share of streams in which the test ever claimed the opposite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sequential.runs import (
    Array,
    Difference,
    Flags,
    Latency,
    Pairs,
    PairsClosed,
    Ratio,
    ScoresClosed,
)

from intonaco.stats import boundaries, sample_ratio
from intonaco.stats.betting import mix
from intonaco.stats.quantiles import ranks

SCENARIOS = ("iid", "drift", "weights", "sticky", "bursts")
ALPHA = 0.01
MARGIN = 0.05  # of shares and scores; times and amounts: 10 %
USERS = 150


@dataclass(slots=True)
class Units:
    """What comes to every run, unit by unit: a scenario's randomness."""

    scenario: str
    runs: int
    units: int
    rng: np.random.Generator
    hashes: Array
    seen: Flags
    prone: Flags

    @classmethod
    def of(cls, scenario: str, runs: int, units: int, seed: int) -> Units:
        rng = np.random.default_rng([seed, SCENARIOS.index(scenario)])
        prone = np.zeros(USERS, bool)
        prone[[3, 8, 17, 40, 90]] = True  # these five cause most errors
        return cls(
            scenario=scenario,
            runs=runs,
            units=units,
            rng=rng,
            hashes=rng.random((runs, USERS)),
            seen=np.zeros((runs, USERS), bool),
            prone=prone,
        )

    def weight(self, i: int) -> float:
        """The challenger's probability at unit ``i``."""
        if self.scenario in ("weights", "sticky"):
            return (0.01, 0.05, 0.2, 0.5)[4 * i // self.units]
        return 0.2

    def level(self, i: int) -> float:
        """What moves all rates and times together, in [0, 1]."""
        if self.scenario == "drift":
            return 0.5 + 0.5 * math.sin(i / 40) * math.cos(i / 190)
        if self.scenario == "bursts":
            return 1.0 if i % 250 >= 230 else 0.0
        return 0.1

    def users(self) -> NDArray[np.int_]:
        """Who sends the next request in each run: Zipf's law."""
        return np.minimum(self.rng.zipf(1.3, self.runs) - 1, USERS - 1)

    def assign(self, i: int, user: NDArray[np.int_] | None = None) -> Flags:
        """On the challenger? Drawn anew, or the user's own, who stays while the weight rises."""
        if user is None:
            found: Flags = self.rng.random(self.runs) < self.weight(i)
            return found
        return np.asarray(self.hashes[np.arange(self.runs), user] < self.weight(i))

    def first(self, user: NDArray[np.int_], where: Flags) -> Flags:
        """Where it is the user's first such event, which it is not again."""
        rows = np.arange(self.runs)
        new: Flags = where & ~self.seen[rows, user]
        self.seen[rows[new], user[new]] = True
        return new


def errors(at: Units, *, once: bool = True) -> float:
    """``ErrorRatio``, equal error rates. Not ``once``: every error of a user counts, which is
    wrong where users stay in their arm."""
    test = Ratio(at.runs)
    for i in range(at.units):
        if at.scenario == "sticky":
            user = at.users()
            failed = at.rng.random(at.runs) < np.where(at.prone[user], 0.7, 0.01)
            challenger = at.assign(i, user)
            counted = at.first(user, failed) if once else failed
        else:
            challenger = at.assign(i)
            counted = at.rng.random(at.runs) < 0.02 + 0.3 * at.level(i)
        test.take(counted, challenger, at.weight(i))
    return _share(test.peak)


def errors_margin(at: Units) -> float:
    """``RandomizedDifference`` below the margin, the challenger worse by exactly the margin."""
    return _difference(at, side=1, d=MARGIN, worse=MARGIN)


def scores(at: Units) -> float:
    """``RandomizedDifference`` above 0, equal scores."""
    return _difference(at, side=0, d=0.0, worse=0.0)


def _difference(at: Units, *, side: int, d: float, worse: float) -> float:
    test = Difference(at.runs, d, centre=0.1)
    for i in range(at.units):
        base, counted = np.full(at.runs, 0.05 + 0.4 * at.level(i)), None
        challenger = at.assign(i)
        if at.scenario == "sticky":  # a user's first request only
            user = at.users()
            challenger = at.assign(i, user)
            counted = at.first(user, np.ones(at.runs, bool))
            base = np.where(at.prone[user], 0.6, 0.05)
        rate = base + worse * challenger
        if side:
            outcome = (at.rng.random(at.runs) < rate).astype(float)
        else:
            outcome = np.clip(rate + 0.1 * at.rng.standard_t(3, at.runs), 0, 1)
        test.take(outcome, challenger, at.weight(i), counted)
    return _share(test.peak[side])


def pairs(at: Units) -> float:
    """``PairedDifference`` above 0: differences of mean 0, of a spread that moves."""
    test = Pairs(at.runs)
    for i in range(at.units):
        skewed = np.where(at.rng.random(at.runs) < 0.1, -0.9, 0.1)  # rarely far down
        spread = np.clip((0.02 + 0.2 * at.level(i)) * at.rng.normal(size=at.runs), -1, 1)
        test.take(skewed if at.scenario in ("sticky", "weights") else spread)
    return _share(test.peak[0])


def pairs_closed(at: Units) -> float:
    """``PairedBernstein`` at level ``1 - ALPHA``: streams in which 0 was ever left out."""
    test = PairsClosed(at.runs, ALPHA)
    missed = np.zeros(at.runs, bool)
    for i in range(at.units):
        spread = (0.02 + 0.2 * at.level(i)) * at.rng.normal(size=at.runs)
        skewed = np.where(at.rng.random(at.runs) < 0.1, -0.9, 0.1)
        test.take(np.clip(skewed if at.scenario in ("sticky", "weights") else spread, -1, 1))
        low, high = test.interval()
        missed |= (low > 0) | (high < 0)
    return float(missed.mean())


def scores_closed(at: Units) -> float:
    """``PropensityBernstein``: streams in which 0 was ever left out."""
    smallest = 0.01 if at.scenario in ("weights", "sticky") else 0.2
    test = ScoresClosed(at.runs, ALPHA, smallest)
    missed = np.zeros(at.runs, bool)
    for i in range(at.units):
        y = np.clip(0.3 + 0.4 * at.level(i) + 0.1 * at.rng.standard_t(3, at.runs), 0, 1)
        test.take(y, at.assign(i), at.weight(i))
        low, high = test.interval()
        missed |= (low > 0) | (high < 0)
    return float(missed.mean())


def latency(at: Units) -> float:
    """``LatencyTest``, slower: equal times, two request classes."""
    test = Latency(at.runs, classes=2, levels=())
    _times(at, test, slower=1.0)
    return _share(test.peak_slower)


def latency_margin(at: Units) -> float:
    """``LatencyTest``, within the margin: a challenger slower by exactly the margin; the worse of
    both levels."""
    test = Latency(at.runs, classes=2, powers=(1.0,))
    _times(at, test, slower=1.1)
    return max(_share(test.peak_within(level)) for level in (0.5, 0.9))


def _times(at: Units, test: Latency, *, slower: float) -> None:
    for i in range(at.units):
        kind = (at.rng.random(at.runs) < 0.3).astype(int)
        seconds = (1 + 3 * at.level(i)) * (1 + 3 * kind) * np.exp(0.2 * at.rng.normal(size=at.runs))
        every = np.ones(at.runs, bool)
        if at.scenario == "sticky":
            user = at.users()
            challenger = at.assign(i, user)
            seconds = seconds * np.where(at.prone[user], 5.0, 1.0)
            new = at.first(user, every)
        else:
            challenger, new = at.assign(i), every
        seconds = np.where(challenger, seconds * slower, seconds).astype(np.float32).astype(float)
        test.take(seconds, challenger, at.weight(i), kind, new)
        test.learn(seconds, ~challenger, kind)


def amounts(at: Units) -> float:
    """``AmountTest``, more: equal amounts with heavy tails, some beyond the cap."""
    return _amounts(at, side=0, factor=1.0)


def amounts_margin(at: Units) -> float:
    """``AmountTest``, within: amounts 10 % larger, none beyond the cap."""
    return _amounts(at, side=1, factor=1.1)


def _amounts(at: Units, *, side: int, factor: float) -> float:
    test = Difference(at.runs, 0.0, centre=0.25, centre_weight=20.0)
    for i in range(at.units):
        challenger = at.assign(i)
        cost = (1 + at.level(i)) * np.exp(0.5 * at.rng.normal(size=at.runs))
        if side:
            cost = np.minimum(cost, 4.0)
        slack = 1.1 if side else 1.0
        shown = np.where(challenger, cost * factor / slack, cost)
        test.take(np.minimum(shown / 5.0, 1.0), challenger, at.weight(i))
    return _share(test.peak[side])


def split(at: Units) -> float:
    """``SampleRatioTest``, assignments as logged."""
    odds = np.asarray(sample_ratio.ODDS)
    log, peak = np.zeros((at.runs, odds.size)), np.zeros(at.runs)
    for i in range(at.units):
        challenger, w = at.assign(i), at.weight(i)
        log += np.where(challenger[:, None], np.log(odds), 0.0) - np.log(odds * w + 1 - w)
        np.maximum(peak, mix(log), out=peak)
    return _share(peak)


def quantiles(at: Units) -> float:
    """``quantile_bounds`` of the 90th percentile: streams in which it ever left the truth out. For
    values that do not drift, so the scenario changes only how often there is one."""
    q = 0.9
    below = np.zeros(at.runs)
    missed = np.zeros(at.runs, bool)
    for n in range(1, at.units + 1):
        below += at.rng.random(at.runs) < q
        v, v_opt = q * (1 - q) * n, q * (1 - q) * 400
        fewer = boundaries.beta_binomial_bound(v, ALPHA, v_opt=v_opt, g=1 - q, h=q)
        more = boundaries.beta_binomial_bound(v, ALPHA, v_opt=v_opt, g=q, h=1 - q)
        lowest, highest = ranks(n, q, fewer, more)
        # The order statistic of a rank is above the truth where fewer values are at or below it.
        if lowest is not None:
            missed |= below < lowest
        if highest is not None:
            missed |= below >= highest
    return float(missed.mean())


def _share(peak: Array) -> float:
    return float(np.mean(peak >= math.log(1 / ALPHA)))


Metric = Callable[[Units], float]
METRICS: Mapping[str, Metric] = {
    "errors": errors,
    "errors_margin": errors_margin,
    "latency": latency,
    "latency_margin": latency_margin,
    "scores": scores,
    "pairs": pairs,
    "amounts": amounts,
    "amounts_margin": amounts_margin,
    "split": split,
    "pairs_closed": pairs_closed,
    "scores_closed": scores_closed,
    "quantiles": quantiles,
}
# Those whose claim is of values that do not drift are tried on such ones only.
STATIONARY = ("quantiles",)


def measure(metric: str, *, runs: int, units: int, seed: int = 23) -> dict[str, float]:
    """The share of streams with a false claim, by scenario."""
    scenarios = ("iid",) if metric in STATIONARY else SCENARIOS
    return {s: METRICS[metric](Units.of(s, runs, units, seed)) for s in scenarios}


def limit(runs: int) -> float:
    """Nominal and three standard errors."""
    return ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / runs)
