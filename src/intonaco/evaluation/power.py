"""How many prompts a margin needs, and which margin so many prompts can show. Pure, NumPy only.

All of it comes from an A/A run: the champion compared with itself under other seeds, by the same
``compare``. Whatever that finds is noise, and its standard errors are those of a candidate that is
no different. They shrink with the root of the number of prompts. A candidate of the same seeds is
paired more closely than that, which makes a plan err on the side of too many prompts; one that is
better on some prompts and worse on others differs more from prompt to prompt than noise does, which
no A/A run shows, and more seeds do not help against it. So prompts are surer than seeds. And the
errors of one run are themselves known to some per cent only: a plan takes their upper 90 % limits,
as Browne (1995) does for the standard deviation of a pilot. Several A/A runs (``pooled``) know them
better, and let a plan ask for less.

A gate passes only if all G guardrails hold, so each is planned at power 1 - (1 - power) / G.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

from intonaco.config import Margins
from intonaco.evaluation.assessment import LIMITS, SUCCESS, margin_of
from intonaco.evaluation.intervals import normal_quantile, student_quantile
from intonaco.types import MetricResult

MOST = 10_000_000
_ROUNDS = frozenset({"latency", "latency_p95", "throughput"})  # counted in rounds, not prompts
_EXACT = frozenset({"copies", "unsafe"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Of one metric in A/A runs: the standard error of its difference over ``n`` units, which are
    prompts (of the slice, if it has one) or rounds. ``value``: of a share, how high it is.
    ``runs``: over how many it was found."""

    metric: str
    slice: str | None
    error: float
    n: int
    value: float = 0.0
    runs: int = 1

    @property
    def cautious(self) -> float:
        """The upper 90 % confidence limit of the error; the quantile of chi-squared by Wilson &
        Hilferty (1931)."""
        df = max(1, self.n - 1) * self.runs
        share = (1.0 - 2.0 / (9.0 * df) + normal_quantile(0.1) * math.sqrt(2.0 / (9.0 * df))) ** 3
        return self.error / math.sqrt(max(share, 0.05))

    @property
    def by_rounds(self) -> bool:
        return self.metric in _ROUNDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Of one guardrail. ``needed``: units (of the slice, if it has one) at which a candidate that
    is no different is shown to be within ``margin`` at ``power``; None if no number does.
    ``shows``: the smallest margin that the ``n`` units of the A/A run show at that power.
    ``power_now``: with which the margin is shown by those."""

    metric: str
    slice: str | None
    margin: float
    n: int
    needed: int | None
    shows: float
    power: float
    power_now: float
    by_rounds: bool

    @property
    def enough(self) -> bool:
        return self.power_now >= self.power


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationPlan:
    """``prompts``: needed in all, if each slice keeps its share; ``rounds``: of timing; None where
    no number is enough. ``joint_power``: a lower bound of the power with which a candidate that is
    no different passes all guardrails as things are (Bonferroni's: however they hang together)."""

    needs: tuple[Need, ...]
    prompts: int | None
    rounds: int | None
    joint_power: float
    alpha: float
    power: float


def noise(
    results: Sequence[MetricResult],
    *,
    alpha: float,
    prompts: dict[str, int],
    rounds: int,
    seeds: tuple[int, int] = (1, 1),
) -> tuple[Noise, ...]:
    """The noise in the results of an A/A ``compare`` at ``alpha``. ``prompts``: of each slice that
    was compared. ``seeds``: of each prompt in the A/A run, and in the evaluations that are planned;
    what is measured of images is taken to shrink with the root of them. Leaves out what has no
    interval."""
    every = sum(prompts.values())
    out = []
    for r in results:
        if r.metric.endswith(SUCCESS) or r.metric in LIMITS or r.interval is None:
            continue
        if not all(math.isfinite(v) for v in r.interval):
            continue
        n = rounds if r.metric in _ROUNDS else every if r.slice is None else prompts[r.slice]
        half = (r.interval[1] - r.interval[0]) / 2
        error = half / _quantile(r.metric, n, alpha)
        if r.metric not in _ROUNDS:
            error *= math.sqrt(seeds[0] / seeds[1])
        value = max(r.champion or 0.0, r.candidate or 0.0) if r.metric in _EXACT else 0.0
        out.append(Noise(metric=r.metric, slice=r.slice, error=error, n=n, value=value))
    return tuple(out)


def pooled(runs: Sequence[Sequence[Noise]]) -> tuple[Noise, ...]:
    """Of several A/A runs of the same size: root mean squares of the errors of what all of them
    found."""
    by_key = [{(x.metric, x.slice): x for x in run} for run in runs]
    out = []
    for key, first in by_key[0].items():
        same = [run[key] for run in by_key if key in run]
        if len(same) == len(by_key):
            error = math.sqrt(sum(x.error**2 for x in same) / len(same))
            value = sum(x.value for x in same) / len(same)
            out.append(replace(first, error=error, value=value, runs=len(same)))
    return tuple(out)


def plan(
    noises: Sequence[Noise], margins: Margins, *, alpha: float, power: float
) -> EvaluationPlan:
    """What the guardrails with a margin need. ``alpha``: of each one-sided test; give that of the
    last attempt to be able to make so many. Raises ValueError if no noise has a margin."""
    guarded = [(x, m) for x in noises if (m := margin_of(x.metric, x.slice, margins)) is not None]
    if not guarded:
        raise ValueError("no metric of the A/A run has a margin: there is nothing to plan")
    each = 1.0 - (1.0 - power) / len(guarded)
    needs = tuple(_need(x, margin, alpha, each) for x, margin in guarded)
    by_prompts = [(x, need) for (x, _), need in zip(guarded, needs, strict=True) if not x.by_rounds]
    every = max((x.n for x, _ in by_prompts), default=0)
    wanted = [
        None if need.needed is None else math.ceil(need.needed * every / x.n)
        for x, need in by_prompts
    ]
    timed = [need.needed for need in needs if need.by_rounds]
    return EvaluationPlan(
        needs=needs,
        prompts=_most(wanted),
        rounds=_most(timed),
        joint_power=max(0.0, 1.0 - sum(1.0 - need.power_now for need in needs)),
        alpha=alpha,
        power=power,
    )


def suggested_margin(noise: Noise, *, alpha: float, power: float, guardrails: int) -> float:
    """The smallest margin that the A/A run's own number of prompts can show, rounded up to two
    digits: a floor for a margin, not what an update may cost. Fix it before a candidate is seen."""
    smallest = _shows(noise, noise.n, alpha, 1.0 - (1.0 - power) / guardrails)
    if not 0.0 < smallest < math.inf:
        return smallest
    digit = 10.0 ** (math.floor(math.log10(smallest)) - 1)
    return float(f"{math.ceil(smallest / digit - 1e-9) * digit:.3g}")


def _need(x: Noise, margin: float, alpha: float, power: float) -> Need:
    low, high = 1, 2
    while high < MOST and _shows(x, high, alpha, power) > margin:
        low, high = high, high * 2
    needed: int | None = None
    if _shows(x, high, alpha, power) <= margin:
        while low < high:
            middle = (low + high) // 2
            shown = _shows(x, middle, alpha, power) <= margin
            low, high = (low, middle) if shown else (middle + 1, high)
        needed = high
    return Need(
        metric=x.metric,
        slice=x.slice,
        margin=margin,
        n=x.n,
        needed=needed,
        shows=_shows(x, x.n, alpha, power),
        power=power,
        power_now=_power(x, margin, alpha),
        by_rounds=x.by_rounds,
    )


def _shows(x: Noise, n: int, alpha: float, power: float) -> float:
    """The smallest margin that n units show at this power."""
    if n < 2:
        return math.inf
    missed = 1.0 - power
    if x.metric == "detail":  # either way
        missed /= 2.0
    error = x.cautious * math.sqrt(x.n / n)
    reach = (_quantile(x.metric, n, alpha) + normal_quantile(1.0 - missed)) * error
    return x.value * (x.metric == "unsafe") + max(reach, _least(x.metric, n, alpha))


def _power(x: Noise, margin: float, alpha: float) -> float:
    """With which the A/A run's own number of units shows a margin."""
    room = margin - x.value * (x.metric == "unsafe")
    if room < _least(x.metric, x.n, alpha):
        return 0.0
    if x.error == 0.0:
        return 1.0
    missed = 1.0 - NormalDist().cdf(room / x.cautious - _quantile(x.metric, x.n, alpha))
    return max(0.0, 1.0 - missed * (2.0 if x.metric == "detail" else 1.0))


def _least(metric: str, n: int, alpha: float) -> float:
    """What n units without an event leave open: the exact intervals are never shorter; and signed
    ranks and order statistics have none of the level below some number of rounds."""
    if metric == "copies":
        return float(1.0 - (alpha / 2.0) ** (1.0 / n))
    if metric in ("unsafe", "hits"):
        return float(1.0 - alpha ** (1.0 / n))
    if metric in ("latency", "throughput"):
        return 0.0 if 0.5**n <= alpha else math.inf
    if metric == "latency_p95":  # two times a round
        return 0.0 if 0.95 ** (2 * n) <= alpha else math.inf
    return 0.0


def _quantile(metric: str, n: int, alpha: float) -> float:
    if metric in _EXACT or metric in _ROUNDS:
        return normal_quantile(1.0 - alpha)
    return student_quantile(1.0 - alpha, max(1, n - 1))


def _most(numbers: Sequence[int | None]) -> int | None:
    known = [n for n in numbers if n is not None]
    return max(known, default=0) if len(known) == len(numbers) else None
