"""A policy over simulated years: what it cost, against what hindsight and simple rules cost. Pure.

The policy under test is ``decide`` itself, with the shipped budget, guards and economics; here is
only the world around it. It sees what the service would see: a finding after as many requests as
the detectors need, and shares of requests with their intervals, from at most ``WINDOW`` requests.
Before every look it is told what was spent, how earlier updates went and how long earlier changes
lasted, as the controller tells it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from intonaco.config import Budget, Decision
from intonaco.config.decision import Recovery
from intonaco.decision import economics, weighing
from intonaco.decision.budget import HOUR, JobUse, Spending, settle, standing
from intonaco.decision.economics import Life
from intonaco.decision.guards import Quiet, is_over
from intonaco.decision.oracle import least_cost
from intonaco.decision.policy import DecisionContext, decide
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
    draw,
)
from intonaco.types import Action, Cause, ClusterMove, Diagnosis, Estimate, Finding, Plan

BEGIN = 1_700_000_000.0
PERIOD_DAYS = 30.0
LEAST_SHARE = 0.01  # a smaller one does not show as a moved cluster
WINDOW = 1000  # latest requests that an estimate is of
EVALUATION_SECONDS = 60.0  # part of a recipe's hours here; the least that the policy reckons with
PERSON_DAYS = 7.0  # until a person who was told has looked and lets it try again
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


# ------------------------------------------------------------------------------------ policies


def ours(service: Service, view: View) -> Action | None:
    """The shipped policy, by the rule of rent or buy."""
    return _decided(service, view, 1.0)


def learnt(service: Service, view: View) -> Action | None:
    """The shipped policy, with what it learns of how long changes last."""
    return _decided(service, view, "learnt")


def _decided(service: Service, view: View, patience: float | Literal["learnt"]) -> Action | None:
    if view.deficit is None or service.now < service.again_at:
        return None
    year = service.year
    settings = Decision(
        budget=service.budget(),
        value_per_request=year.value,
        horizon_days=year.horizon_steps * STEP / 86_400,
        cooldown_s=year.cooldown_steps * STEP,
        review_minutes=60.0,
        review_hourly_rate=year.review,
        failure_cost=year.failure_cost,
        min_labelled=100,
        fine_tune=("tune",),
        full_retrain=("full",),
        recovery=Recovery(**{str(r.action): r.recovery for r in year.recipes}),
        look_again_s=STEP,
        patience=patience,
    )
    plan = decide(_diagnosis(view), _context(service, view), settings, service.now)
    service.again_at = plan.look_again_at or 0.0
    if plan.action.trains:
        service.plans.append(plan)
        option = plan.reckoning.option(plan.action) if plan.reckoning else None
        worth = weighing.worth(option) if option else None
        if worth is not None:
            service.returns.append(worth)
        service.reserved = plan.reserve
        return plan.action
    if plan.action is Action.TELL:
        service.again_at = max(service.again_at, service.now + STEP)
        if plan.reckoning is not None and plan.reckoning.rule == "training does not help":
            service.again_at = service.now + PERSON_DAYS * 86_400
            service.unhelpful = 0
    return None


def _diagnosis(view: View) -> Diagnosis:
    assert view.deficit is not None
    since_at = BEGIN + view.since * STEP
    cluster = ClusterMove(
        cluster=0,
        share_before=0.0,
        share_now=view.deficit.mean / GAP,
        share_now_interval=(view.deficit.low / GAP, view.deficit.high / GAP),
        quality_inside=0.8 - GAP,
        quality_outside=0.8,
        sample_prompts=(),
        sample_images=(),
        centroid=(1.0,),
    )
    finding = Finding(
        finding_id=f"f{view.open_since}",
        service_id="year",
        signal="prompts",
        detector="simulated",
        at=since_at,
        request=0,
        armed_at=0,
        since=0,
        since_at=since_at,
        evidence=10.0,
        threshold=9.0,
        value_before=0.0,
        value_now=cluster.share_now,
        unit="share",
        direction="moved",
        clusters=(cluster,),
    )
    return Diagnosis(
        diagnosis_id=f"d{view.open_since}",
        service_id="year",
        at=BEGIN + view.at * STEP,
        cause=Cause.CONCEPT_DRIFT,
        reason="",
        findings=(finding,),
        moved_share=cluster.share_now,
        quality_gap=GAP,
    )


def _context(service: Service, view: View) -> DecisionContext:
    year = service.year
    seconds, most = {}, {}
    for name, action in (("tune", Action.FINE_TUNE), ("full", Action.FULL_RETRAIN)):
        estimate = economics.duration(
            service.runs.get(action, ()), year.recipe(action).hours * year.guess * HOUR
        )
        seconds[name] = max(estimate.mean - EVALUATION_SECONDS, 1.0)
        most[name] = max(estimate.high - EVALUATION_SECONDS, 1.0)
    money = standing(service.spending, year.budget, PERIOD_DAYS * 86_400, service.now)
    return DecisionContext(
        labelled_items=500 if view.labelled else 0,
        recipe_seconds=seconds,
        recipe_most=most,
        evaluation_seconds=EVALUATION_SECONDS,
        evaluation_most=EVALUATION_SECONDS,
        rollout_seconds=year.rollout_steps * STEP,
        spent=money.settled,
        reserved=money.reserved,
        pressure=money.pressure,
        budget_frees_at=money.frees_at,
        usual_return=float(np.median(service.returns)) if service.returns else 1.0,
        request_rate=year.rate,
        arrivals=200,
        last_update_ended_at=None if service.ended_at is None else BEGIN + service.ended_at * STEP,
        active_update=None,
        previous_release_available=False,
        succeeded=service.succeeded,
        failed=service.failed,
        unhelpful=service.unhelpful,
        fine_tunes_since_full=service.tunes,
        lives=tuple(service.lives),
    )


def never(service: Service, view: View) -> Action | None:
    return None


def always(service: Service, view: View) -> Action | None:
    """At every finding for which there is data."""
    return Action.FINE_TUNE if view.deficit is not None and _may(service, view) else None


def weekly(service: Service, view: View) -> Action | None:
    due = view.at % 14 == 0
    return Action.FINE_TUNE if due and _rested(service, view) else None


def threshold(least: float) -> Policy:
    """At a finding whose deficit is at least so much."""

    def policy(service: Service, view: View) -> Action | None:
        enough = view.deficit is not None and view.deficit.mean >= least
        return Action.FINE_TUNE if enough and _may(service, view) else None

    return policy


def _may(service: Service, view: View) -> bool:
    return view.labelled and _rested(service, view)


def _rested(service: Service, view: View) -> bool:
    ended = service.ended_at
    return ended is None or view.at >= ended + service.year.cooldown_steps


FIXED: Mapping[str, Policy] = {
    "never": never,
    "always": always,
    "weekly": weekly,
    "threshold 0.05": threshold(0.05),
    "threshold 0.10": threshold(0.10),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Over all years: mean total cost of each policy, of hindsight, and how often ours went over
    its budget."""

    years: int
    quiet_years: int
    costs: Mapping[str, float]
    oracle: float
    overspent: int
    outcomes: Mapping[str, Sequence[Outcome]] = field(repr=False, default_factory=dict)
    best: Sequence[float] = field(repr=False, default=())

    @property
    def over_oracle(self) -> float:
        return self.costs["ours"] / self.oracle


def run(years: int, seed: int) -> Result:
    """Ours, the fixed rules and hindsight over as many years."""
    policies = {"ours": ours, "ours, patience learnt": learnt, **FIXED}
    outcomes: dict[str, list[Outcome]] = {name: [] for name in policies}
    best: list[float] = []
    quiet = 0
    for child in np.random.SeedSequence(seed).spawn(years):
        year = draw(np.random.default_rng(child))
        quiet += int(not year.levels.any())
        best.append(least_cost(year))
        for name, policy in policies.items():
            outcomes[name].append(simulate(year, policy))
    return Result(
        years=years,
        quiet_years=quiet,
        costs={name: float(np.mean([o.total for o in found])) for name, found in outcomes.items()},
        oracle=float(np.mean(best)),
        overspent=sum(o.most_spent > o.budget + 1e-6 for o in outcomes["ours"]),
        outcomes=outcomes,
        best=best,
    )
