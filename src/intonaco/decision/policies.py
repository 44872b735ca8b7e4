"""Policies for simulated years: the shipped one, which is ``decide`` itself, and fixed rules. Pure.

Before every look the shipped policy is told what was spent, how earlier updates went and how long
earlier changes lasted, as the controller tells it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from intonaco.config import Decision
from intonaco.config.decision import Recovery
from intonaco.decision import economics, weighing
from intonaco.decision.budget import HOUR, standing
from intonaco.decision.policy import DecisionContext, decide
from intonaco.decision.simulated import BEGIN, PERIOD_DAYS, Policy, Service, View
from intonaco.decision.worlds import GAP, STEP
from intonaco.types import Action, Cause, ClusterMove, Diagnosis, Finding

EVALUATION_SECONDS = 60.0  # part of a recipe's hours here; the least that the policy reckons with
PERSON_DAYS = 7.0  # until a person who was told has looked and lets it try again


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
