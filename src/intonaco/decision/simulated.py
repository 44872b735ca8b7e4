"""A service through a simulated year: what a policy sees of it, and what its updates bring. Pure.

A policy sees what the service would see: a finding after as many requests as the detectors need,
and shares of requests with their intervals, from at most ``WINDOW`` requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from intonaco.config import Budget
from intonaco.decision import economics
from intonaco.decision.budget import HOUR, JobUse, Spending, settle, standing
from intonaco.decision.economics import Life
from intonaco.decision.guards import Quiet, is_over
from intonaco.decision.worlds import (
    ATTEMPTS,
    EVIDENCE,
    GAP,
    SETTLE,
    STEP,
    YEAR,
    Flags,
    Vector,
    Year,
)
from intonaco.types import Action, Estimate, Plan

BEGIN = 1_700_000_000.0
PERIOD_DAYS = 30.0
LEAST_SHARE = 0.01  # a smaller one does not show as a moved cluster
WINDOW = 1000  # latest requests that an estimate is of
Z = economics.Z


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a policy sees at a step. ``deficit``: None while nothing is found. ``left``: of the
    budget."""

    at: int
    deficit: Estimate | None
    since: int
    labelled: bool
    left: float
    open_since: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Of one policy in one year, in money. ``most_spent``: the most settled in any 30 days."""

    staleness: float
    machine: float
    people: float  # review, and what failed updates cost beside their price
    updates: int
    failures: int
    most_spent: float
    budget: float

    @property
    def total(self) -> float:
        return self.staleness + self.machine + self.people


Policy = Callable[["Service", View], Action | None]


@dataclass(slots=True)
class Service:
    """A service going through a year. Everything a policy may know is in here or in the view; of
    ``year`` it may read what a configuration says."""

    year: Year
    at: int = 0
    model: tuple[int, float] | None = None  # start and recovery of the last update that succeeded
    base_at: int = 0  # detectors began anew then
    spending: list[Spending] = field(default_factory=list)
    lives: list[Life] = field(default_factory=list)
    runs: dict[Action, list[float]] = field(default_factory=dict)
    succeeded: int = 0
    failed: int = 0
    unhelpful: int = 0
    attempts: int = 0
    ended_at: int | None = None
    open_since: int | None = None  # the change that is found began then
    found_at: int = 0
    again_at: float = 0.0
    limit: Mapping[str, float] = field(default_factory=dict)
    reserved: float = 0.0
    machine: float = 0.0
    people: float = 0.0
    tunes: int = 0
    plans: list[Plan] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)

    @property
    def now(self) -> float:
        return BEGIN + self.at * STEP

    def budget(self) -> Budget:
        return Budget(
            amount=self.year.budget, per_days=PERIOD_DAYS, hourly_price=self.year.hourly_price
        )


def simulate(year: Year, policy: Policy) -> Outcome:
    """One year under a policy. The k-th update has the luck that was drawn for it."""
    service = Service(year=year)
    missing = year.levels.sum(axis=0)
    bill = 0.0
    evidence = np.zeros(len(year.levels))
    found = np.zeros(len(year.levels), dtype=bool)
    running: tuple[int, Action, bool, float] | None = None
    most = 0.0
    for at in range(YEAR):
        service.at = at
        if running is not None and at >= running[0]:
            ends_well = _complete(service, running)
            running = None
            if ends_well and service.model is not None:
                missing = year.missing(*service.model).sum(axis=0)
                # What began before the update is in the new reference; what came later is not.
                was = year.levels[:, service.model[0]] > 0
                evidence[was] = 0.0
                found[was] = False
        _notice(service, evidence, found)
        view = _view(service, evidence, found)
        if running is None and service.attempts < ATTEMPTS:
            action = policy(service, view)
            if action is not None and action.trains:
                running = _begin(service, action)
        most = max(
            most, standing(service.spending, year.budget, PERIOD_DAYS * 86_400, service.now).settled
        )
        bill += float(missing[at]) * year.worth
    service.at = YEAR
    end = YEAR
    if running is not None:  # it goes on after the year, and so does its bill
        end = min(running[0], year.steps)
        bill += float(missing[YEAR:end].sum()) * year.worth
        service.at = running[0]
        if _complete(service, running) and service.model is not None:
            missing = year.missing(*service.model).sum(axis=0)
    bill += float(missing[end:].sum()) * year.worth
    last = standing(service.spending, year.budget, PERIOD_DAYS * 86_400, service.now)
    return Outcome(
        staleness=bill,
        machine=service.machine,
        people=service.people,
        updates=service.attempts,
        failures=service.failed,
        most_spent=max(most, last.settled),
        budget=year.budget,
    )


def _notice(service: Service, evidence: Vector, found: Flags) -> None:
    """Detectors gather evidence on what moved since the champion took over."""
    year, at = service.year, service.at
    requests = year.rate * STEP
    moved = (year.levels[:, at] - _known(service, at)) / GAP
    evidence += requests * np.maximum(moved, 0.0) ** 2
    enough = evidence >= EVIDENCE * year.slow + SETTLE * np.maximum(moved, 0.0) ** 2
    for index in np.flatnonzero(enough & ~found & (moved > 0)):
        found[index] = True
        begun = np.flatnonzero(year.levels[index, : at + 1] > 0)
        since = max(int(begun[0]), service.base_at)
        if service.open_since is None:
            service.open_since, service.found_at = since, at
        service.again_at = 0.0
    if at in year.false_at and service.open_since is None:
        service.open_since, service.found_at = max(at - 1, 0), at
        service.again_at = 0.0


def _known(service: Service, at: int) -> Vector:
    """[drifts]: how much of each is in the reference, which is what the champion learnt from. What
    the champion learnt badly stays bad and is news no more."""
    year = service.year
    if service.model is None:
        return np.zeros(len(year.levels))
    known: Vector = np.minimum(year.levels[:, at], year.learnt(service.model[0]))
    return known


def _view(service: Service, evidence: Vector, found: Flags) -> View:
    """What is measured of what is found, from the latest requests; and whether it is over."""
    year, at = service.year, service.at
    left = standing(service.spending, year.budget, PERIOD_DAYS * 86_400, service.now).left
    since = service.open_since
    if since is None:
        return View(at=at, deficit=None, since=at, labelled=False, left=left, open_since=at)
    requests = max(min(year.rate * STEP * (at - since + 1), WINDOW), 1.0)
    steps = max(1, min(at - since + 1, round(requests / (year.rate * STEP))))
    window = slice(at - steps + 1, at + 1)
    seen = year.levels[found]
    if service.model is not None:
        seen = seen - np.minimum(seen, year.learnt(service.model[0])[found, np.newaxis])
    truth = float(seen[:, window].sum(axis=0).mean()) if seen.size else 0.0
    share = min(truth / GAP, 1.0)
    spread = float(np.sqrt(max(share * (1 - share), 0.02) / requests))
    error = float(year.seeds[found][0]) if found.any() else float(np.sin(since))
    measured = min(max(share + error * spread, 0.0), 1.0)
    deficit = Estimate(
        low=max(measured - Z * spread, 0.0) * GAP,
        mean=measured * GAP,
        high=min(measured + Z * spread, 1.0) * GAP,
    )
    still = deficit.low / GAP > LEAST_SHARE
    quiet = Quiet(
        requests=int(year.rate * STEP * (at - service.found_at)), deficit_high=GAP if still else 0.0
    )
    if is_over(quiet, requests=500, gap=0.1):
        service.lives.append(Life(seconds=(at - since) * STEP, ended=True))
        service.open_since = None
        service.unhelpful = 0
        evidence[found] = 0.0
        found[:] = False
        return View(at=at, deficit=None, since=at, labelled=False, left=left, open_since=at)
    labelled = at - since >= year.label_lag
    return View(at=at, deficit=deficit, since=since, labelled=labelled, left=left, open_since=since)


def _begin(service: Service, action: Action) -> tuple[int, Action, bool, float] | None:
    """An update, if the budget has room for what it is estimated to take: (end, action, whether it
    succeeds, its cost)."""
    year = service.year
    recipe = year.recipe(action)
    hours = recipe.hours
    left = standing(service.spending, year.budget, PERIOD_DAYS * 86_400, service.now).left
    aside = service.reserved or min(recipe.hours * year.hourly_price * 1.4, left)
    if year.price(recipe) > left or aside > left + 1e-9:
        return None
    limit = aside / year.hourly_price
    stopped = hours > limit + 1e-9
    attempt = service.attempts
    service.attempts += 1
    service.spending.append(Spending(at=service.now, amount=aside, settled=False))
    service.reserved = 0.0
    used, _ = settle(
        [JobUse(name="job", seconds=None if stopped else hours * HOUR)],
        {"job": limit * HOUR},
        year.hourly_price,
    )
    takes = year.trains(min(hours, limit))
    lucky = bool(year.lucky[attempt]) and not stopped
    end = service.at + takes + (year.rollout_steps if lucky else 0)  # the gate comes before it
    return end, action, lucky, used


def _complete(service: Service, running: tuple[int, Action, bool, float]) -> bool:
    end, action, lucky, used = running
    year = service.year
    recipe = year.recipe(action)
    begun = service.spending.pop()
    service.spending.append(Spending(at=BEGIN + end * STEP, amount=used, settled=True))
    service.machine += used
    service.people += year.review
    service.runs.setdefault(action, []).append(recipe.hours * HOUR)
    service.ended_at = end
    if not lucky:
        service.failed += 1
        service.unhelpful += 1
        service.people += year.failure_cost
        return False
    start = round((begun.at - BEGIN) / STEP)
    service.model = (start, recipe.recovery)
    service.succeeded += 1
    service.tunes = service.tunes + 1 if action is Action.FINE_TUNE else 0
    service.unhelpful = 0
    if service.open_since is not None and service.open_since <= start:
        service.lives.append(Life(seconds=(end - service.open_since) * STEP, ended=False))
        service.open_since = None
    service.base_at = start
    service.again_at = 0.0
    return True
