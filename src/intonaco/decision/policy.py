"""A diagnosis to a plan: what to do, what it costs, what it brings, and whether it may be done.

Pure. Update only on expected return, the cost of staleness against that of training (Žliobaitė et
al., Neurocomputing 150, 2015; CARA, arXiv 2310.04216):

    net = rate * value * deficit * max(horizon - lead, 0) - cost

``deficit`` is a lower bound: the lower ends of the moved shares' intervals times the gap in score,
at most 1. A deficit of 0.1 means that a tenth of an image's worth is lost per request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from intonaco.codec import digest
from intonaco.config import Decision
from intonaco.decision.diagnosis import signal_kind
from intonaco.types import Action, Cause, ClusterMove, Diagnosis, Json, Plan

EVALUATION_SECONDS = 600.0  # per candidate, until one was measured
HOUR, DAY = 3600.0, 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionContext:
    """``labelled_items``: items at hand that belong to what moved. ``recipe_seconds``: measured or
    estimated training time per recipe. ``spent``, ``reserved``: of this period's budget.
    ``request_rate``: requests a second. ``last_update_ended_at``: of the last update that trained.
    ``previous_release_available``: there is one to roll back to. ``release_changed``: the release
    or its environment changed shortly before the findings. ``trainable``: the model is ours."""

    labelled_items: int
    recipe_seconds: Mapping[str, float]
    spent: float
    reserved: float
    request_rate: float
    last_update_ended_at: float | None
    active_update: str | None
    previous_release_available: bool
    release_changed: bool = False
    evaluation_seconds: float = EVALUATION_SECONDS
    trainable: bool = True
    assemble: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    action: Action
    reason: str
    recipes: tuple[str, ...] = ()
    cost: float = 0.0
    benefit: float = 0.0


def decide(diagnosis: Diagnosis, context: DecisionContext, settings: Decision, now: float) -> Plan:
    """The plan for a diagnosis. The same inputs give the same plan with the same id."""
    choice = _table(diagnosis, context, settings, now)
    if settings.mode == "watch" and choice.action is not Action.TELL:
        reason = f"Mode is watch: nothing is done. Otherwise: {choice.action}. {choice.reason}"
        choice = _Choice(
            action=Action.WATCH, reason=reason, cost=choice.cost, benefit=choice.benefit
        )
    elif settings.mode == "ask" and (
        choice.action.makes_update or choice.action is Action.ROLL_BACK
    ):
        choice = _Choice(
            action=choice.action,
            reason=f"{choice.reason} Mode is ask: a person has to approve this plan.",
            recipes=choice.recipes,
            cost=choice.cost,
            benefit=choice.benefit,
        )
    left = settings.budget.amount - context.spent - context.reserved
    facts = [diagnosis.diagnosis_id, choice.action, list(choice.recipes)]
    return Plan(
        plan_id=digest(facts)[:16],
        service_id=diagnosis.service_id,
        at=now,
        action=choice.action,
        cause=diagnosis.cause,
        reason=choice.reason,
        recipes=choice.recipes,
        estimated_cost=round(choice.cost, 4),
        expected_benefit=round(choice.benefit, 4),
        budget_left=round(left, 4),
        currency=settings.budget.currency,
        diagnosis_id=diagnosis.diagnosis_id,
        clusters=_clusters(diagnosis),
        assemble=context.assemble if choice.action is Action.ASSEMBLE else {},
    )


def _table(d: Diagnosis, c: DecisionContext, s: Decision, now: float) -> _Choice:
    if c.active_update is not None:
        return _Choice(
            action=Action.WATCH,
            reason=f"Update {c.active_update} is under way; the finding is judged again after it.",
        )
    rows: dict[Cause, Callable[[Diagnosis, DecisionContext, Decision, float], _Choice]] = {
        Cause.PERFORMANCE_DEGRADATION: _performance,
        Cause.DATA_DRIFT: _data_drift,
        Cause.CONCEPT_DRIFT: _concept_drift,
        Cause.QUALITY_DECLINE: _quality_decline,
        Cause.FIRST_RELEASE: _first_release,
        Cause.NEW_TECHNIQUE: _assemble,
        Cause.CODE_CHANGE: _assemble,
    }
    row = rows.get(d.cause)
    if row is None:
        return _Choice(
            action=Action.TELL,
            reason=f"The cause is {_words(d.cause)}: a person has to look. {d.reason}",
        )
    return row(d, c, s, now)


def _performance(d: Diagnosis, c: DecisionContext, s: Decision, now: float) -> _Choice:
    if c.release_changed and c.previous_release_available:
        return _Choice(
            action=Action.ROLL_BACK,
            reason="Errors or latency rose right after the release changed: back to the previous "
            "one. Training would not help.",
        )
    return _Choice(
        action=Action.TELL,
        reason="Errors or latency rose and no recent release explains it: look at load, hardware "
        "and neighbours. Training would not help.",
    )


def _data_drift(d: Diagnosis, c: DecisionContext, s: Decision, now: float) -> _Choice:
    return _Choice(
        action=Action.WATCH,
        reason=f"{d.moved_share:.0%} of requests moved, but the model serves them well: training "
        "would bring nothing. Watch and collect; a person may make this the new reference.",
    )


def _concept_drift(d: Diagnosis, c: DecisionContext, s: Decision, now: float) -> _Choice:
    if not c.trainable:
        return _not_ours(d)
    gap = min(max(d.quality_gap, 0.0), 1.0)
    lower = sum(m.share_now_interval[0] for m in _clusters(d) if m.moved)
    if c.labelled_items < s.min_labelled:
        return _Choice(
            action=Action.COLLECT_DATA,
            reason=f"{d.moved_share:.0%} of requests are served worse by {d.quality_gap:.2f}, but "
            f"only {c.labelled_items} labelled items belong to them and {s.min_labelled} are "
            "needed: collect data first.",
        )
    return _train(Action.FINE_TUNE, s.fine_tune, lower * gap, "what moved", c, s, now)


def _quality_decline(d: Diagnosis, c: DecisionContext, s: Decision, now: float) -> _Choice:
    if c.release_changed and c.previous_release_available:
        return _Choice(
            action=Action.ROLL_BACK,
            reason="Quality fell right after the release or its environment changed: back to the "
            "previous one.",
        )
    fallen = [
        f.value_before - f.value_now
        for f in d.findings
        if signal_kind(f) == "quality" and f.value_now < f.value_before
    ]
    if not fallen:
        return _Choice(
            action=Action.TELL,
            reason="Probes changed under an unchanged release, so the machine or its environment "
            "did: a person has to look. Retraining would learn the fault.",
        )
    if not c.trainable:
        return _not_ours(d)
    return _train(
        Action.FULL_RETRAIN, s.full_retrain, min(max(fallen), 1.0), "everything", c, s, now
    )


def _not_ours(d: Diagnosis) -> _Choice:
    return _Choice(
        action=Action.TELL,
        reason=f"The model is served elsewhere and cannot be trained here: tell its owner, or try "
        f"another server (`intonaco update start --upstream NAME`). {d.reason}",
    )


def _first_release(d: Diagnosis, c: DecisionContext, s: Decision, now: float) -> _Choice:
    recipes, cost, refusal = _affordable(s.full_retrain, c, s)
    if not recipes:
        return _Choice(action=Action.TELL, reason=refusal, cost=cost)
    return _Choice(
        action=Action.FULL_RETRAIN,
        reason=f"There is no release yet: train the first one for {_money(cost, s)}.{refusal}",
        recipes=recipes,
        cost=cost,
    )


def _assemble(d: Diagnosis, c: DecisionContext, s: Decision, now: float) -> _Choice:
    if not c.assemble:
        return _Choice(
            action=Action.TELL,
            reason=f"The cause is {_words(d.cause)}, but nobody said what to assemble.",
        )
    cost = c.evaluation_seconds / HOUR * s.budget.hourly_price
    left = s.budget.amount - c.spent - c.reserved
    if cost > left:
        return _Choice(
            action=Action.TELL,
            reason=f"Evaluating it costs {_money(cost, s)}, and {_money(left, s)} are left.",
            cost=cost,
        )
    return _Choice(
        action=Action.ASSEMBLE,
        reason=f"Assemble a release from existing weights and put it through the gate for "
        f"{_money(cost, s)}; no training.",
        cost=cost,
    )


def _train(
    action: Action,
    names: Sequence[str],
    deficit: float,
    what: str,
    c: DecisionContext,
    s: Decision,
    now: float,
) -> _Choice:
    """Train if the cooldown is over, the budget allows it and it pays."""
    recipes, cost, refusal = _affordable(names, c, s)
    lead = sum(c.recipe_seconds[r] + c.evaluation_seconds for r in recipes)
    serves = max(s.horizon_days * DAY - lead, 0.0)
    benefit = c.request_rate * s.value_per_request * deficit * serves
    sums = (
        f"{c.request_rate:.3g} requests/s x {s.value_per_request:g} {s.budget.currency} x deficit "
        f"{deficit:.3f} (lower bound) over {s.horizon_days:g} days = {_money(benefit, s)}, "
        f"against a cost of {_money(cost, s)}"
    )
    ended = c.last_update_ended_at
    if ended is not None and now - ended < s.cooldown_s:
        return _Choice(
            action=Action.WATCH,
            reason=f"The last update ended {now - ended:.0f} s ago and the cooldown is "
            f"{s.cooldown_s:g} s. {_words(action).capitalize()} would bring {sums}.",
            cost=cost,
            benefit=benefit,
        )
    if not recipes:
        return _Choice(
            action=Action.TELL, reason=f"{refusal} It would bring {_money(benefit, s)}.", cost=cost
        )
    if benefit <= cost:
        return _Choice(
            action=Action.WATCH,
            reason=f"{_words(action).capitalize()} does not pay: {sums}.",
            cost=cost,
            benefit=benefit,
        )
    left = s.budget.amount - c.spent - c.reserved
    return _Choice(
        action=action,
        reason=f"{_words(action).capitalize()} on {what} ({', '.join(recipes)}) pays: {sums}; "
        f"{_money(left, s)} of the budget are left.{refusal}",
        recipes=recipes,
        cost=cost,
        benefit=benefit,
    )


def _affordable(
    names: Sequence[str], c: DecisionContext, s: Decision
) -> tuple[tuple[str, ...], float, str]:
    """The first recipes that fit in what is left of the budget, their cost (that of all if none
    fits), and what to say of those left out. A recipe whose time nobody knows has no cost estimate
    and is left out."""
    left = s.budget.amount - c.spent - c.reserved
    fit: list[str] = []
    out: list[str] = []
    total = wanted = 0.0
    for name in names:
        seconds = c.recipe_seconds.get(name)
        if seconds is None:
            out.append(f"{name} (its time is not known)")
            continue
        cost = (seconds + c.evaluation_seconds) / HOUR * s.budget.hourly_price
        wanted += cost
        if total + cost <= left:
            fit.append(name)
            total += cost
        else:
            out.append(f"{name} ({_money(cost, s)})")
    refusal = f" Left out, with {_money(left, s)} in the budget: {', '.join(out)}." if out else ""
    return (tuple(fit), total, refusal) if fit else ((), wanted, refusal.strip())


def _clusters(diagnosis: Diagnosis) -> tuple[ClusterMove, ...]:
    """All clusters of the finding that says best what moved, so that items can be assigned."""
    ranked = sorted(diagnosis.findings, key=lambda f: signal_kind(f) != "prompts")
    return next((f.clusters for f in ranked if any(c.moved for c in f.clusters)), ())


def _money(amount: float, s: Decision) -> str:
    return f"{amount:.2f} {s.budget.currency}"


def _words(value: Action | Cause) -> str:
    return str(value).replace("_", " ")
