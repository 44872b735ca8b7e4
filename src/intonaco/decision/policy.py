"""A diagnosis to a plan: what to do, what it costs, what it brings, and whether it may be done.

Pure. The cause says which actions are allowed at all, ``weighing`` which of them brings most
(``economics`` has the sums), and then come the guards (``choice``). The plan's ``reckoning`` says
which rule decided. A plan that waits says when it is to be judged again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from intonaco.codec import digest
from intonaco.config import Decision
from intonaco.decision import weighing
from intonaco.decision.budget import DAY, Reservation
from intonaco.decision.choice import Choice, train, wait, weighed, words
from intonaco.decision.context import EVALUATION_SECONDS, DecisionContext, TriggerFacts
from intonaco.decision.diagnosis import signal_kind
from intonaco.decision.economics import certain
from intonaco.decision.weighing import money
from intonaco.types import (
    Action,
    Cause,
    ClusterMove,
    Diagnosis,
    Estimate,
    Factor,
    Option,
    Plan,
)

__all__ = ["EVALUATION_SECONDS", "DecisionContext", "TriggerFacts", "decide", "deficit_of"]

NONE_HERE = "there is nothing to go back to, or the release did not change just before"
# Findings of a decline that no training mends: weights do not change while they serve.
BROKEN = ("probes", "outputs", "safety")
NOT_ASSEMBLED = "no other release of the same weights was asked for"


def decide(diagnosis: Diagnosis, context: DecisionContext, settings: Decision, now: float) -> Plan:
    """The plan for a diagnosis. The same inputs give the same plan with the same id."""
    d, c, s = diagnosis, context, settings
    choice = _table(d, c, s, now)
    would: Action | None = None
    if s.mode == "watch" and choice.action not in (Action.TELL, Action.WATCH):
        would = choice.action
        reason = f"Mode is watch: nothing is done. Otherwise: {choice.action}. {choice.reason}"
        again = choice.again_at or now + s.look_again_s
        choice = replace(choice, action=Action.WATCH, reason=reason, recipes=(), again_at=again)
    elif s.mode == "watch" and choice.action is Action.WATCH:
        reason = f"Mode is watch: nothing is done. Otherwise: {choice.action}. {choice.reason}"
        would, choice = Action.WATCH, replace(choice, reason=reason)
    elif s.mode == "ask" and (choice.action.makes_update or choice.action is Action.ROLL_BACK):
        reason = f"{choice.reason} Mode is ask: a person has to approve this plan."
        choice = replace(choice, reason=reason)
    facts: list[object] = [d.diagnosis_id, choice.action, list(choice.recipes)]
    if would is not None:
        facts.append(str(would))
    if c.updates_before and choice.action.makes_update:
        facts.append(c.updates_before)  # the same plan once more is another update
    aside = Reservation()
    if choice.action.makes_update:
        aside = weighing.reservation(choice.recipes, c, s)
    trigger = c.trigger
    return Plan(
        plan_id=digest(facts)[:16],
        service_id=d.service_id,
        at=now,
        action=choice.action,
        cause=d.cause,
        reason=choice.reason,
        recipes=choice.recipes,
        estimated_cost=round(choice.cost, 4),
        expected_benefit=round(choice.benefit, 4),
        budget_left=round(weighing.money_left(c, s), 4),
        currency=s.budget.currency,
        diagnosis_id=d.diagnosis_id,
        clusters=_clusters(d),
        assemble=c.assemble if choice.action is Action.ASSEMBLE else {},
        would=would,
        look_again_at=choice.again_at,
        reserve=aside.money,
        reserve_hours=aside.hours,
        limits=dict(aside.limits or {}),
        dataset_version=trigger.dataset_version if trigger and choice.action.trains else None,
        trigger=trigger.text if trigger else None,
        reckoning=choice.reckoning or weighing.reckon(choice.rule, None, (), (), c, s),
    )


def deficit_of(d: Diagnosis) -> Estimate:
    """Share of an image's worth that a request loses, at most 1: shares of requests that moved,
    with their intervals, times how much worse they are served; or how far quality fell, if that is
    what was found."""
    if d.cause is Cause.QUALITY_DECLINE:
        fallen = _falls(d)
        return certain(min(max(fallen), 1.0) if fallen else 0.0)
    gap = min(max(d.quality_gap, 0.0), 1.0)
    moved = [m for m in _clusters(d) if m.moved]
    return Estimate(
        low=min(sum(m.share_now_interval[0] for m in moved), 1.0) * gap,
        mean=min(sum(m.share_now for m in moved), 1.0) * gap,
        high=min(sum(m.share_now_interval[1] for m in moved), 1.0) * gap,
    )


# ------------------------------------------------------------------------------------ by cause


# Rules that call a person and spend nothing: an update under way changes nothing about them.
FOR_A_PERSON = (
    "doubtful",
    "slow or failing, not by a release",
    "probes changed, the release did not",
)


def _table(d: Diagnosis, c: DecisionContext, s: Decision, now: float) -> Choice:
    rows: Mapping[Cause, Callable[[Diagnosis, DecisionContext, Decision, float], Choice]] = {
        Cause.PERFORMANCE_DEGRADATION: _performance,
        Cause.DATA_DRIFT: _data_drift,
        Cause.CONCEPT_DRIFT: _concept_drift,
        Cause.QUALITY_DECLINE: _quality_decline,
        Cause.FIRST_RELEASE: _first_release,
        Cause.NEW_DATA: _triggered,
        Cause.NEW_TECHNIQUE: _assemble,
        Cause.CODE_CHANGE: _assemble,
        Cause.REQUESTED: _triggered,
    }
    row = rows.get(d.cause)
    choice = _for_a_person(d, s, now) if row is None else row(d, c, s, now)
    if c.active_update is None:
        return choice
    later = now + s.look_again_s
    if choice.rule in FOR_A_PERSON:  # who does not wait for a training of days to end
        return replace(choice, again_at=choice.again_at or later)
    return Choice(
        action=Action.WATCH,
        reason=f"Update {c.active_update} is under way; the finding is judged again after it.",
        rule="one update at a time",
        again_at=later,
    )


def _for_a_person(d: Diagnosis, s: Decision, now: float) -> Choice:
    """Doubtful causes. A broken format does not mend itself; what is unknown may become clear."""
    again = now + s.look_again_s if d.cause is Cause.UNKNOWN and d.findings else None
    return Choice(
        action=Action.TELL,
        reason=f"The cause is {words(d.cause)}: a person has to look. {d.reason}",
        rule="doubtful",
        again_at=again,
    )


def _performance(d: Diagnosis, c: DecisionContext, s: Decision, now: float) -> Choice:
    if c.release_changed and c.previous_release_available:
        return Choice(
            action=Action.ROLL_BACK,
            reason="Errors or latency rose right after the release changed: back to the previous "
            "one. Training would not help.",
            rule="slow or failing since the release",
        )
    return Choice(
        action=Action.TELL,
        reason="Errors or latency rose and no recent release explains it: look at load, hardware "
        "and neighbours; scale or shed. Training would not help.",
        rule="slow or failing, not by a release",
    )


def _data_drift(d: Diagnosis, c: DecisionContext, s: Decision, now: float) -> Choice:
    return Choice(
        action=Action.WATCH,
        reason=f"{d.moved_share:.0%} of requests moved, but the model serves them well: training "
        "would bring nothing. Watch and collect; a person may make this the new reference.",
        rule="quality holds",
        again_at=now + s.look_again_s,
    )


def _concept_drift(d: Diagnosis, c: DecisionContext, s: Decision, now: float) -> Choice:
    if not c.trainable:
        return _not_ours(d)
    at = weighing.stakes(d, deficit_of(d), c, s, now)
    lost = [weighing.nothing(f"goes on losing {money(at.loss.low * DAY, s)} a day")]
    back, other = (
        weighing.closed(Action.ROLL_BACK, NONE_HERE),
        weighing.closed(Action.ASSEMBLE, NOT_ASSEMBLED),
    )
    if c.labelled_items < s.min_labelled:
        why = f"{c.labelled_items} labelled items of it, {s.min_labelled} needed"
        options = [
            *lost,
            Option(action=Action.COLLECT_DATA, allowed=True, why=why),
            weighing.closed(Action.FINE_TUNE, why),
            weighing.closed(Action.FULL_RETRAIN, why),
            back,
            other,
        ]
        return Choice(
            action=Action.COLLECT_DATA,
            reason=f"{d.moved_share:.0%} of requests are served worse by {d.quality_gap:.2f}, but "
            f"only {c.labelled_items} labelled items belong to them and {s.min_labelled} are "
            "needed: collect data first, for prompts like those of the moved clusters.",
            rule="too little data",
            again_at=now + s.look_again_s,
            reckoning=weighing.reckon("too little data", at, options, (), c, s),
        )
    full = _why_full(d, c, s)
    tune = weighing.affordable(s.fine_tune, c, s)
    anew = weighing.affordable(s.full_retrain, c, s)
    takes_full = full is not None and bool(anew.recipes or not tune.recipes)
    # One topic never has everything trained anew: that is open only to what fine-tuning is not for.
    if takes_full:
        options = [
            *lost,
            weighing.closed(Action.FINE_TUNE, str(full)),
            weighed(Action.FULL_RETRAIN, anew.recipes, str(full), at, c, s),
        ]
    else:
        why = (
            "what moved is learnt, with old data mixed in"
            if full is None
            else (f"{full}, but a full training cannot be paid for")
        )
        options = [
            *lost,
            weighed(Action.FINE_TUNE, tune.recipes, why, at, c, s),
            weighing.closed(Action.FULL_RETRAIN, "part of the requests moved, not most"),
        ]
    data = weighing.closed(Action.COLLECT_DATA, f"{c.labelled_items} labelled items are there")
    options += [data, back, other]
    if takes_full:
        return train(Action.FULL_RETRAIN, anew, f"everything ({full})", at, options, c, s, now, d)
    return train(Action.FINE_TUNE, tune, "what moved", at, options, c, s, now, d)


def _why_full(d: Diagnosis, c: DecisionContext, s: Decision) -> str | None:
    """Why a fine-tune is not enough; None if it is."""
    if not s.full_retrain:
        return None
    if d.moved_share >= s.large_shift:
        return f"{d.moved_share:.0%} of requests moved, {s.large_shift:.0%} is a large shift"
    if c.fine_tunes_since_full >= s.fine_tunes_before_full:
        return f"{c.fine_tunes_since_full} fine-tunes since the last full training"
    return None


def _quality_decline(d: Diagnosis, c: DecisionContext, s: Decision, now: float) -> Choice:
    at = weighing.stakes(d, deficit_of(d), c, s, now)
    idle = weighing.nothing(f"goes on losing {money(at.loss.low * DAY, s)} a day")
    if c.release_changed and c.previous_release_available:
        why = "quality fell right after the release or its environment changed"
        options = [
            idle,
            weighing.weigh(Action.ROLL_BACK, (), why, at, c, s),
            weighing.closed(Action.FULL_RETRAIN, "the release is to blame, not the data"),
        ]
        return Choice(
            action=Action.ROLL_BACK,
            reason="Quality fell right after the release or its environment changed: back to the "
            "previous one.",
            rule="worse since the release",
            reckoning=weighing.reckon("worse since the release", at, options, (), c, s),
        )
    if not c.trainable:
        return _not_ours(d)
    if d.factor is Factor.ENVIRONMENT:
        return Choice(
            action=Action.TELL,
            reason="The environment changed under an unchanged release: a person has to look, and "
            "to build it again (`intonaco environment build`). Retraining would learn the fault.",
            rule="the environment changed, the release did not",
        )
    if any(signal_kind(f) in BROKEN for f in d.findings) or not _falls(d):
        return Choice(
            action=Action.TELL,
            reason="No score says that training would mend it, and a model that forgets nothing "
            "does not draw otherwise from one day to the next: a person has to look at the "
            f"machine, the environment and the filter. {d.reason}",
            rule="nothing that training mends",
        )
    anew = weighing.affordable(s.full_retrain, c, s)
    options = [
        idle,
        weighed(Action.FULL_RETRAIN, anew.recipes, "worse on what did not move", at, c, s),
        weighing.closed(Action.FINE_TUNE, "no part of the requests explains the fall"),
        weighing.closed(Action.ROLL_BACK, NONE_HERE),
        weighing.closed(Action.ASSEMBLE, NOT_ASSEMBLED),
    ]
    return train(Action.FULL_RETRAIN, anew, "everything", at, options, c, s, now, d)


def _not_ours(d: Diagnosis) -> Choice:
    return Choice(
        action=Action.TELL,
        reason=f"The model is served elsewhere and cannot be trained here: tell its owner, or try "
        f"another server (`intonaco update start --upstream NAME`). {d.reason}",
        rule="not ours to train",
    )


def _first_release(d: Diagnosis, c: DecisionContext, s: Decision, now: float) -> Choice:
    fit = weighing.affordable(s.full_retrain, c, s)
    if not fit.recipes:
        return Choice(action=Action.TELL, reason=fit.refusal, rule="budget", cost=fit.cost)
    return Choice(
        action=Action.FULL_RETRAIN,
        reason=f"There is no release yet: train the first one for {money(fit.cost, s)}."
        f"{fit.refusal}",
        rule="there is no release",
        recipes=fit.recipes,
        cost=fit.cost,
    )


def _assemble(d: Diagnosis, c: DecisionContext, s: Decision, now: float) -> Choice:
    """Another sampler or library under the same weights; or a new recipe or base, to be trained."""
    if not c.assemble:
        if c.trigger is not None and c.trigger.recipes:
            return _triggered(d, c, s, now)
        return Choice(
            action=Action.TELL,
            reason=f"The cause is {words(d.cause)}, but nobody said what to assemble.",
            rule="nothing to assemble",
        )
    cost = c.evaluation_seconds / 3600 * s.budget.hourly_price
    left = weighing.money_left(c, s)
    short = c.hours_left is not None and c.evaluation_seconds / 3600 > c.hours_left
    if cost > left or short:
        return Choice(
            action=Action.TELL,
            reason=f"Evaluating it costs {money(cost, s)}, and {money(left, s)} are left.",
            rule="budget",
            cost=cost,
            again_at=c.budget_frees_at,
        )
    held = wait(Action.ASSEMBLE, "", c, s, now, cooldown=False)
    if held is not None:
        return replace(held, cost=cost)
    return Choice(
        action=Action.ASSEMBLE,
        reason=f"Assemble a release from existing weights and put it through the gate for "
        f"{money(cost, s)}; no training.",
        rule="same weights, other environment or sampler",
        cost=cost,
    )


def _triggered(d: Diagnosis, c: DecisionContext, s: Decision, now: float) -> Choice:
    """New data, a new recipe or the schedule: the owner said that it is worth a try, so nothing is
    known to be lost meanwhile and nothing is weighed against it; the guards hold all the same."""
    t = c.trigger
    if t is None:
        return _for_a_person(d, s, now)
    if not c.trainable:
        return _not_ours(d)
    if t.new_items is not None and t.new_items < s.triggers.min_new_items:
        return Choice(
            action=Action.WATCH,
            reason=f"{t.text} It brings {t.new_items} new items and "
            f"{s.triggers.min_new_items} are needed.",
            rule="too little new data",
        )
    names = t.recipes or (s.fine_tune if t.action is Action.FINE_TUNE else s.full_retrain)
    fit = weighing.affordable(names, c, s)
    if not fit.recipes:
        return Choice(
            action=Action.TELL,
            reason=f"{t.text} {fit.refusal}",
            rule="budget",
            cost=fit.cost,
            again_at=c.budget_frees_at,
        )
    held = wait(t.action, t.text, c, s, now)
    if held is not None:
        return replace(held, cost=fit.cost)
    return Choice(
        action=t.action,
        reason=f"{t.text} {words(t.action).capitalize()} ({', '.join(fit.recipes)}) for "
        f"{money(fit.cost, s)}; {money(weighing.money_left(c, s), s)} of the budget are left."
        f"{fit.refusal}",
        rule="asked for from outside",
        recipes=fit.recipes,
        cost=fit.cost,
    )


# ------------------------------------------------------------------------------------ small parts


def _falls(d: Diagnosis) -> list[float]:
    return [
        f.value_before - f.value_now
        for f in d.findings
        if signal_kind(f) == "quality" and f.value_now < f.value_before
    ]


def _clusters(diagnosis: Diagnosis) -> tuple[ClusterMove, ...]:
    """All clusters of the finding that says best what moved, so that items can be assigned."""
    ranked = sorted(diagnosis.findings, key=lambda f: signal_kind(f) != "prompts")
    return next((f.clusters for f in ranked if any(c.moved for c in f.clusters)), ())
