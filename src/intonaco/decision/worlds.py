"""Simulated years of a service, for the back-test: what drifts when, and what an update does. Pure.

Time goes in steps of half a day: a year in which is decided, and a horizon after it in which only
the bill runs on, so that an update late in the year may still pay. Parameters are drawn from wide
ranges; some years have no drift at all.

=========  =====================================================================
topic      new demand that is served worse, from one day to the next, for months
decay      demand and model grow apart over weeks, and stay apart
fad        new demand that is gone after days
false      a detector fired and nothing had changed
=========  =====================================================================

A full training costs more and mends as much: for a topic it is not open to the policy, so hindsight
must gain nothing by it either. An update that began at u and succeeded mends the share
``recovery`` of what had moved, as far as labelled data of it was there (``label_lag`` steps later);
what moves afterwards is new. Whether the k-th attempt succeeds is drawn with the year, so that
every policy has the same luck with its k-th attempt. How long a recipe takes is guessed wrongly
until it was measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intonaco.types import Action

Vector = NDArray[np.floating[Any]]
Flags = NDArray[np.bool_]

DAY = 86_400.0
STEP = 0.5 * DAY
YEAR = 730  # steps in which is decided
ATTEMPTS = 128  # whose luck is drawn
GAP = 0.5  # quality missing where demand moved; a deficit of 0.1 is a share of 0.2
EVIDENCE = 3.0  # requests x share^2 until a finding: 300 for a new topic of 10 %, 75 for 20 %
SETTLE = 100  # requests between a finding and its diagnosis


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One way to train. ``hours``: evaluation included."""

    action: Action
    hours: float
    recovery: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Year:
    """Money in one currency, times in steps unless said otherwise.

    ``levels`` [drifts, YEAR + tail]: deficit of each drift if nothing is done. ``seeds``: errors of
    measurement of each, standard normal. ``slow``: requests until found, relative to the usual.
    ``lucky`` [ATTEMPTS]: whether an attempt succeeds. ``guess``: hours that the configuration
    estimates, relative to the true ones.
    ``false_at``: steps at which a detector fires for nothing.
    """

    rate: float  # requests a second
    value: float
    hourly_price: float
    budget: float  # for any 30 days
    review: float
    failure_cost: float
    failure_chance: float
    rollout_steps: int
    cooldown_steps: int
    label_lag: int
    horizon_steps: int
    recipes: tuple[Recipe, ...]
    levels: Vector
    slow: Vector
    seeds: Vector
    lucky: Flags
    guess: float
    false_at: tuple[int, ...]

    @property
    def steps(self) -> int:
        return int(self.levels.shape[1])

    @property
    def worth(self) -> float:
        """Money lost in a step at a deficit of 1."""
        return self.rate * self.value * STEP

    def recipe(self, action: Action) -> Recipe:
        return next(r for r in self.recipes if r.action is action)

    def price(self, recipe: Recipe) -> float:
        """Of the machine."""
        return recipe.hours * self.hourly_price

    def trains(self, hours: float) -> int:
        """Steps of a job."""
        return max(1, int(np.ceil(hours * 3600 / STEP)))

    def duration(self, recipe: Recipe) -> int:
        """Steps until an update that succeeds serves."""
        return self.trains(recipe.hours) + self.rollout_steps

    def learnt(self, start: int) -> Vector:
        """[drifts]: how much of each drift an update that begins then can learn."""
        before = self.levels[:, max(start - self.label_lag, 0)]
        learnt: Vector = before if start >= self.label_lag else np.zeros_like(before)
        return learnt

    def missing(self, start: int | None, recovery: float) -> Vector:
        """[drifts, steps]: deficits under a model whose last update began at ``start``."""
        if start is None:
            return self.levels
        left: Vector = self.levels - recovery * np.minimum(
            self.levels, self.learnt(start)[:, np.newaxis]
        )
        return left


def draw(rng: np.random.Generator) -> Year:
    """A year. The ranges: traffic of 0.02 to 10 requests/s, images worth 0.02 to 0.5 cents, an
    update of 1 to 200 in machine time, budgets from one update a
    month, as it is estimated and as it is, to ten."""

    def log_uniform(low: float, high: float) -> float:
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

    horizon = int(rng.choice([30, 60, 90])) * 2
    steps = YEAR + horizon
    tune = log_uniform(0.5, 60.0)
    price = float(rng.uniform(1.0, 4.0))
    recipes = (
        Recipe(action=Action.FINE_TUNE, hours=tune, recovery=0.9),
        Recipe(action=Action.FULL_RETRAIN, hours=tune * rng.uniform(2.0, 6.0), recovery=0.9),
    )
    failure = float(rng.uniform(0.02, 0.3))
    quiet = rng.random() < 0.15
    guess = log_uniform(0.6, 1.6)
    levels = [] if quiet else _drifts(rng, steps)
    count = len(levels)
    often = float(rng.uniform(0.0, 6.0))
    return Year(
        rate=log_uniform(0.02, 10.0),
        value=log_uniform(2e-4, 5e-3),
        hourly_price=price,
        budget=max(guess, 1.0) * tune * price * log_uniform(1.0, 10.0),
        review=float(rng.choice([0.0, 10.0, 50.0])),
        failure_cost=tune * price * rng.uniform(0.0, 0.5),
        failure_chance=failure,
        rollout_steps=int(rng.integers(1, 9)),
        cooldown_steps=int(rng.integers(0, 7)),
        label_lag=int(rng.integers(0, 6)),
        horizon_steps=horizon,
        recipes=recipes,
        levels=np.array(levels).reshape(count, steps),
        slow=np.exp(rng.normal(0.0, 0.4, count)),
        seeds=rng.normal(0.0, 1.0, count),
        lucky=rng.random(ATTEMPTS) >= failure,
        guess=guess,
        false_at=tuple(sorted(int(t) for t in rng.integers(0, YEAR, rng.poisson(often)))),
    )


def _drifts(rng: np.random.Generator, steps: int) -> list[Vector]:
    """Deficits over time of what drifts in a year: up to four topics, two decays and six fads are
    expected."""
    found: list[Vector] = []
    at = np.arange(steps)
    topics, decays, fads = rng.uniform(0.0, 4.0), rng.uniform(0.0, 2.0), rng.uniform(0.0, 6.0)
    for _ in range(rng.poisson(topics)):
        begin, life = rng.integers(0, YEAR), rng.exponential(300.0)
        share = np.exp(rng.uniform(np.log(0.05), np.log(0.6)))
        found.append(np.where((at >= begin) & (at < begin + life), share * GAP, 0.0))
    for _ in range(rng.poisson(decays)):
        begin, takes = rng.integers(0, YEAR), rng.uniform(40.0, 300.0)
        share = np.exp(rng.uniform(np.log(0.05), np.log(0.6)))
        found.append(np.clip((at - begin) / takes, 0.0, 1.0) * share * GAP)
    for _ in range(rng.poisson(fads)):
        begin, life = rng.integers(0, YEAR), 1 + rng.exponential(6.0)
        share = np.exp(rng.uniform(np.log(0.1), np.log(0.6)))
        found.append(np.where((at >= begin) & (at < begin + life), share * GAP, 0.0))
    return found
