"""How many requests does it take to catch a bad release, and how often is a good one accused?

`SCENARIO` is a bad release and the challenger's share of the traffic: errors from 1 to 2, 3, 5 %
(`errors_1_2_w5` at 5 %), times 10 or 20 % longer (`p90_10`, `p90_20`: lognormal, sigma 0.2), scores
lower by 0.05 (`score_05`: shadow pairs, standard deviation of a difference 0.15, of a score among
prompts 0.15 more). Alpha 0.01, a look after every request.

- `requests`: challenger requests (pairs) until half of the runs have caught it.
- `median_over_bound`: these over `ln(1/alpha) / KL`, which no test of the same null can beat on
  average. Errors and times: the null is "no worse than the champion, whose rate or distribution is
  unknown and may drift", KL the mutual information of arm and outcome; model: Bernoulli, lognormal.
  Scores: the null is "no lower on average, differences in [-1, 1]", KL the largest growth of a bet
  on it; model: normal. Limits: 1.6 (errors), 5 (p90 +20 %), 2 (scores). Times are ranked among 256
  of the champion's from before the rollout.
- `requests_over_best_peer`: over those of the best documented rule of Argo Rollouts, Flagger or
  Kayenta, each in its best setting for the very scenario, tuned to the same 1 % of false alarms in
  a lifetime of 5,040 challenger requests (`benchmarks/sequential/peers.py`). Where none catches
  half of the bad releases within a lifetime, over the lifetime. The tuned limits of the first two
  know the champion's true rate; ours compares, and needs to know nothing.
- `peer_false_alarms_drift`: what becomes of that best rule's 1 % if rates move for both arms in a
  lifetime: errors between 0.5 and 1.5 %, times by 10 %, scores by 0.05 either way. Ours is valid
  under drift (`METRIC.type1` includes it). `drift.requests`, `drift.requests_over_best_peer`: the
  same race in such a service, the peers tuned to 1 % there.
- `METRIC.type1`: share of 2,000 streams without a difference in which the test ever claimed one,
  the worst of five scenarios (`benchmarks/sequential/type1.py`): nominal 0.01, limit 0.0167.

SEQUENTIAL_EFFORT=0.1 takes a tenth of the runs.
"""

from __future__ import annotations

import itertools
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from sequential import peers, type1
from sequential.drawing import page, pictures
from sequential.runs import Array, Crossings, Latency, Pairs, Ratio

from intonaco.stats import planning
from intonaco.stats.latency import KEPT

__all__ = ["page", "pictures", "run"]

EFFORT = float(os.environ.get("SEQUENTIAL_EFFORT", "1"))
ALPHA = 0.01
RUNS, PEER_RUNS = 400, 300
TYPE1_RUNS, TYPE1_UNITS = 2_000, 1_000
LOG_SD = 0.2
SCORE, PROMPT_SD, NOISE_SD = 0.6, 0.15, 0.15 / math.sqrt(2)
BASE = 0.01
MOST = 200_000  # requests of a run
MOVED = {"errors": 0.5, "times": 0.1, "scores": 0.05}  # by drift, either way


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A bad release. ``weight``: None for shadow pairs."""

    name: str
    kind: str
    size: float
    weight: float | None


SCENARIOS = (
    *(
        Scenario(
            name=f"errors_1_{100 * rate:.0f}_w{100 * w:.0f}", kind="errors", size=rate, weight=w
        )
        for w in (0.05, 0.5)
        for rate in (0.02, 0.03, 0.05)
    ),
    *(
        Scenario(name=f"p90_{100 * more:.0f}_w{100 * w:.0f}", kind="times", size=more, weight=w)
        for w in (0.05, 0.5)
        for more in (0.1, 0.2)
    ),
    Scenario(name="score_05", kind="scores", size=0.05, weight=None),
)


def run() -> dict[str, float]:
    found: dict[str, float] = {}
    for scenario in SCENARIOS:
        figures = beside(scenario, drift=False)
        figures |= {f"drift.{name}": value for name, value in beside(scenario, drift=True).items()}
        found |= {f"{scenario.name}.{name}": value for name, value in figures.items()}
    for metric in type1.METRICS:
        shares = type1.measure(metric, runs=_some(TYPE1_RUNS), units=_some(TYPE1_UNITS))
        found[f"{metric}.type1"] = max(shares.values())
        _say(f"{metric}: {shares}")
    return found


def beside(scenario: Scenario, *, drift: bool) -> dict[str, float]:
    """Ours beside the peers' best settings, all in a service that is steady or drifts."""
    units = median_units(scenario, _some(RUNS), drift=drift)
    requests = units * (scenario.weight or 1.0)
    figures = {"requests": requests}
    if not drift:
        figures["median_over_bound"] = units / bound(scenario)
    _say(f"{scenario.name}{', drift' if drift else ''}: {figures}")
    good, bad, moved = worlds(scenario, drift=drift)
    judged = peers.judge(
        good, bad, moved, runs=_some(PEER_RUNS), alpha=ALPHA, seed=SCENARIOS.index(scenario)
    )
    for peer in ("argo", "flagger", "kayenta"):
        mine = min((f for f in judged if f.setting.peer == peer), key=lambda f: f.requests)
        if math.isfinite(mine.requests):
            figures[f"{peer}.requests"] = mine.requests
        _say(
            f"  {peer}: {mine.setting.name}, {mine.requests:.0f} requests, false alarms "
            f"{mine.tuned:.3f}, under drift {mine.drifting:.3f}"
        )
    best = min(judged, key=lambda f: f.requests)
    figures["requests_over_best_peer"] = requests / min(best.requests, peers.LIFETIME)
    if not drift:
        figures["peer_false_alarms_drift"] = best.drifting
    return figures


def wave(minute: Array | float, phase: Array) -> Array:
    """How far rates, times and scores have moved, in [-1, 1], twice around in three hours."""
    found: Array = np.sin(np.asarray(minute) * (4 * math.pi / peers.MINUTES) + phase)
    return found


# --------------------------------------------------------------------------------------------- ours


def median_units(scenario: Scenario, runs: int, *, drift: bool = False) -> float:
    """Units (of both arms; pairs) until half of the runs have caught the bad release."""
    rng = np.random.default_rng([7, SCENARIOS.index(scenario)])
    crossings = Crossings(runs, math.log(1 / ALPHA))
    for peak in _peaks(scenario, runs, rng, drift):
        if crossings.look(peak) or crossings.units >= MOST:
            break
        if crossings.units % 100 == 0 and math.isfinite(crossings.median):
            break
    return crossings.median


def _peaks(scenario: Scenario, runs: int, rng: np.random.Generator, drift: bool) -> Iterator[Array]:
    """The highest evidence so far, after each unit."""
    phase = rng.random(runs) * 2 * math.pi
    a_minute = peers.PER_MINUTE / (scenario.weight or 1.0)

    def level(unit: int) -> Array | float:
        return wave(unit / a_minute, phase) if drift else 0.0

    if scenario.weight is None:  # what moves the scores of both cancels in a pair
        pairs = Pairs(runs)
        while True:
            pairs.take(np.clip(scenario.size + 0.15 * rng.normal(size=runs), -1, 1))
            yield pairs.peak[0]
    elif scenario.kind == "errors":
        ratio = Ratio(runs)
        for unit in itertools.count():
            challenger = rng.random(runs) < scenario.weight
            rate = np.where(challenger, scenario.size, BASE) * (1 + MOVED["errors"] * level(unit))
            ratio.take(rng.random(runs) < rate, challenger, scenario.weight)
            yield ratio.peak
    else:
        times = Latency(runs, levels=())
        for unit in itertools.count(-KEPT):
            seconds = np.exp(LOG_SD * rng.normal(size=runs)) * (1 + MOVED["times"] * level(unit))
            if unit < 0:  # before the rollout
                times.learn(seconds, np.ones(runs, bool))
                continue
            challenger = rng.random(runs) < scenario.weight
            seconds = np.where(challenger, (1 + scenario.size) * seconds, seconds)
            times.take(seconds, challenger, scenario.weight)
            times.learn(seconds, ~challenger)
            yield times.peak_slower


def bound(scenario: Scenario) -> float:
    """Units that any test of the same null needs on average: ``ln(1/alpha)`` over what a unit tells
    against the null that is nearest."""
    if scenario.weight is None:
        d = planning.scores(scenario.size, 0.15, low=-1.0, high=1.0)
        stakes = np.linspace(0.0, 1.0, 2_001)[:-1]
        return math.log(1 / ALPHA) / float(
            max(d.chances @ np.log1p(stake * d.values) for stake in stakes)
        )
    w = scenario.weight
    if scenario.kind == "errors":
        champion, challenger = (
            np.array([BASE, 1 - BASE]),
            np.array([scenario.size, 1 - scenario.size]),
        )
    else:
        z = np.linspace(-8, 10, 20_001)
        shift = math.log(1 + scenario.size) / LOG_SD
        champion, challenger = np.exp(-(z**2) / 2), np.exp(-((z - shift) ** 2) / 2)
        champion, challenger = champion / champion.sum(), challenger / challenger.sum()
    both = w * challenger + (1 - w) * champion
    told = w * _kl(challenger, both) + (1 - w) * _kl(champion, both)
    return math.log(1 / ALPHA) / told


def _kl(p: Array, q: Array) -> float:
    seen = p > 0
    return float(np.sum(p[seen] * np.log(p[seen] / q[seen])))


# -------------------------------------------------------------------------------------------- peers


def worlds(scenario: Scenario, *, drift: bool) -> tuple[peers.Make, peers.Make, peers.Make]:
    """What the peers see of no difference and of the bad release, in a service that is steady or
    drifts, and of no difference in one that drifts."""
    minute: dict[str, Callable[[np.random.Generator, tuple[int, ...], float, Array], Array]] = {
        "errors": _error_share,
        "times": _ninetieth,
        "scores": _score_lost,
    }
    draw, moved = minute[scenario.kind], MOVED[scenario.kind]
    worse = {
        "errors": scenario.size / BASE,
        "times": 1 + scenario.size,
        "scores": scenario.size,
    }[scenario.kind]
    same = 0.0 if scenario.kind == "scores" else 1.0

    def make(challenger: float, drifts: bool) -> peers.Make:
        def lifetimes(runs: int, rng: np.random.Generator) -> Array:
            phase = rng.random((runs, 1)) * 2 * math.pi
            level = moved * drifts * wave(np.arange(peers.MINUTES, dtype=float), phase)
            return np.stack([draw(rng, level.shape, arm, level) for arm in (challenger, same)])

        return lifetimes

    return make(same, drift), make(worse, drift), make(same, True)


def _error_share(
    rng: np.random.Generator, shape: tuple[int, ...], factor: float, level: Array
) -> Array:
    found: Array = rng.binomial(peers.PER_MINUTE, BASE * factor * (1 + level), shape) / float(
        peers.PER_MINUTE
    )
    return found


def _ninetieth(
    rng: np.random.Generator, shape: tuple[int, ...], factor: float, level: Array
) -> Array:
    """Of a minute's times: the order statistic, drawn as one (a beta variable's quantile)."""
    rank = math.ceil(0.9 * peers.PER_MINUTE)
    share = rng.beta(rank, peers.PER_MINUTE + 1 - rank, shape)
    times: Array = factor * (1 + level) * np.exp(LOG_SD * _quantile(share))
    return times


def _score_lost(
    rng: np.random.Generator, shape: tuple[int, ...], lower: float, level: Array
) -> Array:
    """One less the mean score of a minute; prompts differ from request to request."""
    sd = math.hypot(PROMPT_SD, NOISE_SD) / math.sqrt(peers.PER_MINUTE)
    found: Array = 1 - SCORE + lower + level + sd * rng.normal(size=shape)
    return found


def _quantile(share: Array) -> Array:
    z = np.linspace(-6, 6, 4_001)
    cdf = np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in z])
    return np.interp(share, cdf, z)


def _some(all_of_them: int) -> int:
    return max(20, round(all_of_them * min(1.0, EFFORT)))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
