"""What staleness costs, and what each action costs and brings. Pure.

For an action with lead L (until it serves), recovery rho, chance of success s::

    loss  = rate x value x deficit                              (money a second)
    gain  = loss x rho x s x max(lasts - L, 0)
    net   = gain - compute - review - (1 - s) x failure cost

Act only on expected return: Žliobaitė et al., Neurocomputing 150 (2015); staleness against the cost
of retraining: CARA, arXiv 2310.04216. How much longer a change lasts is learnt from how long the
earlier ones did (``lasts``); without any it is the configured horizon, or as long as it has lasted
already. So a change is acted on at the latest when it has cost as much as its cure: the rule of
rent or buy (Karlin et al., Algorithmica 3, 1988), which pays at most twice what hindsight would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from intonaco.types import Estimate

Z = 1.645  # ends of a 90 % interval
FAILED, SUCCEEDED = 1.0, 4.0  # Beta prior: one in five updates fails in gate or rollout
UNMEASURED = (0.5, 2.0)  # of an estimate nobody has measured: it may take half, or twice
ONE_RUN = 0.25  # relative spread assumed where there was one run only


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """How long an earlier change lasted. ``ended``: it went away by itself; else an update ended
    it, or it is still there, and it might have lasted longer."""

    seconds: float
    ended: bool


def certain(value: float) -> Estimate:
    return Estimate(low=value, mean=value, high=value)


def scale(estimate: Estimate, factor: float) -> Estimate:
    """``factor`` must not be negative."""
    return Estimate(
        low=estimate.low * factor, mean=estimate.mean * factor, high=estimate.high * factor
    )


def duration(runs: Sequence[float], fallback: float) -> Estimate:
    """Seconds of the next run, from those of past ones: mean and 90 % prediction interval (normal).
    Without any, ``fallback`` and twofold either way."""
    if not runs:
        return Estimate(low=fallback * UNMEASURED[0], mean=fallback, high=fallback * UNMEASURED[1])
    n = len(runs)
    mean = sum(runs) / n
    spread = ONE_RUN * mean if n == 1 else sqrt(sum((x - mean) ** 2 for x in runs) / (n - 1))
    reach = Z * spread * sqrt(1 + 1 / n)
    return Estimate(low=max(mean - reach, 0.0), mean=mean, high=mean + reach)


def success(succeeded: int, failed: int) -> Estimate:
    """Chance that an update passes gate and rollout, from past ones: the mean of the Beta
    posterior, and 1.645 of its standard deviations either way."""
    a, b = SUCCEEDED + succeeded, FAILED + failed
    mean = a / (a + b)
    reach = Z * sqrt(mean * (1 - mean) / (a + b + 1))
    return Estimate(low=max(mean - reach, 0.0), mean=mean, high=min(mean + reach, 1.0))


def arrival_rate(rate: float, arrivals: int) -> Estimate:
    """Requests a second that were counted over ``arrivals`` of them (Poisson)."""
    if arrivals < 1:
        return certain(rate)
    reach = rate * Z / sqrt(arrivals)
    return Estimate(low=max(rate - reach, 0.0), mean=rate, high=rate + reach)


def lasts(age: float, horizon: float, lives: Sequence[Life]) -> float:
    """How much longer a change of this age is expected to last, in seconds.

    The rate at which changes older than ``age`` ended by themselves, with one imagined change that
    lasts the horizon, or as long again as this one has, if that is longer. Lives that were cut
    short by an update count with the time for which they were seen (censored)."""
    ended = sum(1 for life in lives if life.ended and life.seconds >= age)
    watched = sum(max(life.seconds - age, 0.0) for life in lives)
    return (max(horizon, age) + watched) / (1 + ended)


def loss(rate: float, value: float, deficit: Estimate) -> Estimate:
    """Money lost a second."""
    return scale(deficit, rate * value)


def gain(lost: Estimate, *, recovery: float, chance: float, serves: float) -> Estimate:
    """Expected saving of an action that serves for so many seconds."""
    return scale(lost, recovery * chance * max(serves, 0.0))


def net(saved: Estimate, cost: Estimate, fixed: float) -> Estimate:
    """Saving less cost, whose mean is what decides: the ends are those of the saving."""
    return Estimate(
        low=saved.low - cost.mean - fixed,
        mean=saved.mean - cost.mean - fixed,
        high=saved.high - cost.mean - fixed,
    )
