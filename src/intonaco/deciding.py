"""From findings to a plan: wait until the picture is whole, diagnose, decide, begin.

The judgement itself is pure and lies in ``decision``; here is only what it needs to know. Findings
of one change of the world are one incident: those that arrive later join it, and a plan is made
only for what they add.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from intonaco import commands, loop
from intonaco.decision.diagnosis import PERFORMANCE_KINDS, diagnose, each_cause, signal_kind
from intonaco.decision.evidence import Deploy, DiagnosisContext
from intonaco.decision.incidents import (
    belongs,
    is_news,
    may_be_the_release,
    repeats,
    says_the_same,
)
from intonaco.decision.policy import EVALUATION_SECONDS, DecisionContext, decide
from intonaco.executor import Parts
from intonaco.ledger import Effect, EffectStatus
from intonaco.ledger.transaction import Transaction
from intonaco.types import Action, Diagnosis, Finding, Plan, Update
from intonaco.watching import Watch

SETTLE_SECONDS = 120.0  # a finding is diagnosed after this long even if requests stop coming
HEADLINE = "incident"  # status of a diagnosis; the other causes of an incident have none


def look(parts: Parts, watch: Watch, fence: int, now: float) -> None:
    """Diagnose new findings once probes and the labelled data have been looked at."""
    _take_up_again(parts, fence)
    new = parts.ledger.all(Finding, status="new")
    if not new:
        return
    champion = parts.ledger.champion()
    asked = _questions(parts, new, champion)
    known = parts.ledger.effects(new[0].finding_id)
    with parts.ledger.begin(fence=fence) as tx:
        for effect in asked:
            tx.want(effect, now)
    if any(effect.key not in known or known[effect.key].status == "wanted" for effect in asked):
        return
    if not watch.monitor.settled(new[0]) and now - new[0].at < SETTLE_SECONDS:
        return
    earlier = next(reversed(parts.ledger.all(Diagnosis, status=HEADLINE)), None)
    joins = earlier is not None and any(belongs(finding, earlier) for finding in new)
    found = [*_old(earlier, new), *new] if earlier is not None and joins else new
    found = [_refreshed(watch, finding) for finding in found]
    context = _evidence(parts, watch, found, known)
    diagnosis = diagnose(found, context, now)
    if earlier is not None and (joins or repeats(diagnosis, earlier)):
        diagnosis = _continued(diagnosis, earlier)
    else:
        diagnosis, earlier = replace(diagnosis, incident=diagnosis.diagnosis_id), None
    before = _plans(parts, earlier) if earlier is not None else []
    settings = parts.config.decision
    money = _context(parts, watch, _labelled(parts, found, known), now)
    plans = []
    for part in each_cause(diagnosis):
        changed = may_be_the_release(part, context.release_changed)
        plan = decide(part, replace(money, release_changed=changed), settings, now)
        if is_news(plan, [p for p in before if p.cause is part.cause]):
            plans.append((part, plan))
    _write(parts, diagnosis, plans, new, fence, now, updates=earlier)


def _take_up_again(parts: Parts, fence: int) -> None:
    """Findings that waited for an update to end are judged again after it, unless another release
    took over: the monitors have a new reference then, and fire again if there is cause to."""
    waiting = parts.ledger.all(Finding, status="waiting")
    if not waiting or parts.ledger.active_updates():
        return
    champion = parts.ledger.champion()
    with parts.ledger.begin(fence=fence) as tx:
        for finding in waiting:
            status = "new" if finding.release in (None, champion) else "diagnosed"
            tx.put(finding, id=finding.finding_id, at=finding.at, status=status)


def _old(earlier: Diagnosis, new: Sequence[Finding]) -> list[Finding]:
    """The incident's findings that are not taken up again anyway."""
    again = {finding.finding_id for finding in new}
    return [f for f in earlier.findings if f.finding_id not in again]


def _refreshed(watch: Watch, finding: Finding) -> Finding:
    """The finding as more requests explain it. Where the monitor has forgotten them, as told."""
    latest = watch.explained(watch.monitor.refresh(finding))
    return latest if latest.clusters or not finding.clusters else finding


def _continued(diagnosis: Diagnosis, earlier: Diagnosis) -> Diagnosis:
    """The diagnosis as the next of its incident; under the same id if it says the same."""
    incident = earlier.incident or earlier.diagnosis_id
    if says_the_same(diagnosis, earlier):
        return replace(diagnosis, diagnosis_id=earlier.diagnosis_id, incident=incident)
    return replace(diagnosis, incident=incident)


def _plans(parts: Parts, earlier: Diagnosis) -> list[Plan]:
    """The plans that the incident has had, oldest first."""
    incident = earlier.incident or earlier.diagnosis_id
    diagnoses = {
        d.diagnosis_id
        for d in parts.ledger.all(Diagnosis)
        if incident in (d.incident, d.diagnosis_id)
    }
    return [plan for plan in parts.ledger.all(Plan) if plan.diagnosis_id in diagnoses]


def _evidence(
    parts: Parts, watch: Watch, found: Sequence[Finding], known: Mapping[str, EffectStatus]
) -> DiagnosisContext:
    """All that is known besides the findings."""
    content, performance = watch.history.of_findings(
        found, performance=lambda f: signal_kind(f) in PERFORMANCE_KINDS
    )
    context = DiagnosisContext(
        probes_ok=_probes_ok(found, known),
        rollout_active=parts.ledger.active_rollout() is not None,
        min_quality_gap=parts.config.decision.min_quality_gap,
        reference_quality=watch.monitor.reference_quality(),
        # the first release changed nothing: there was none before it
        deploys=tuple(
            Deploy(at=tenure.since, what="release", text=tenure.reason)
            for tenure in parts.ledger.tenures()[1:]
        ),
        content=content,
        performance=performance,
        served_elsewhere=parts.config.serving.type == "http",
    )
    since = min(finding.since_at for finding in found)
    return replace(context, release_changed=context.changed("release", since) is not None)


def _questions(parts: Parts, found: Sequence[Finding], champion: str | None) -> list[Effect]:
    """What has to be looked at before a diagnosis, as effects."""
    first = found[0].finding_id
    asked = []
    drawn = any(f.of == "probe" for f in found)  # that is what was found
    if parts.config.monitoring.probes and champion is not None and not drawn:
        asked.append(
            Effect(
                key=f"{parts.config.service}:{first}:probe",
                kind="probe",
                subject=first,
                payload={"release": champion, "name": first},
            )
        )
    clusters = next((f.clusters for f in found if any(c.moved for c in f.clusters)), ())
    if clusters and parts.config.data.pool is not None:
        asked.append(
            Effect(
                key=f"{parts.config.service}:{first}:labelled",
                kind="labelled",
                subject=first,
                payload={"finding": next(f.finding_id for f in found if f.clusters == clusters)},
            )
        )
    return asked


def _probes_ok(found: Sequence[Finding], known: Mapping[str, EffectStatus]) -> bool | None:
    """Whether the champion still draws what it drew when it was new; None if not known."""
    if any(f.of == "probe" for f in found):
        return False
    probe = next((s for s in known.values() if s.effect.kind == "probe"), None)
    if probe is None or probe.status != "done":
        return None
    ok: bool | None = probe.result["ok"]
    return ok


def _labelled(parts: Parts, found: Sequence[Finding], known: Mapping[str, EffectStatus]) -> int:
    """Labelled items at hand for what moved, as counted for the new findings or, where they moved
    nothing, for the incident's earlier ones."""
    counted = [known, *(parts.ledger.effects(f.finding_id) for f in reversed(found))]
    for effects in counted:
        for status in effects.values():
            if status.effect.kind == "labelled" and status.status == "done":
                return int(status.result.get("items", 0))
    return 0


def _evaluation_seconds(updates: Sequence[Update], parts: Parts) -> float | None:
    """How long the last evaluation took, per candidate."""
    for update in reversed(updates):
        for status in parts.ledger.effects(update.update_id).values():
            if status.effect.kind == "evaluate" and status.status == "done":
                return float(status.result["seconds"]) / max(1, len(update.candidates))
    return None


def _context(
    parts: Parts,
    watch: Watch,
    labelled: int,
    now: float,
) -> DecisionContext:
    budget = parts.config.decision.budget
    settled, reserved = parts.ledger.spent(now - budget.per_days * 86_400)
    seconds = {n: r.estimated_seconds for n, r in parts.config.training.recipes.items()}
    updates = parts.ledger.all(Update)
    for update in updates:
        seconds.update({c.name: c.train_seconds for c in update.candidates if c.train_seconds})
    ended = [u.phase_since for u in updates if u.phase.final and u.plan.action.trains]
    active = parts.ledger.active_updates()
    return DecisionContext(
        labelled_items=labelled,
        recipe_seconds=seconds,
        spent=settled,
        reserved=reserved,
        request_rate=watch.rate(),
        last_update_ended_at=max(ended, default=None),
        active_update=active[0].update_id if active else None,
        previous_release_available=parts.ledger.previous() is not None,
        evaluation_seconds=_evaluation_seconds(updates, parts) or EVALUATION_SECONDS,
        trainable=parts.config.serving.type != "http",
    )


def _write(
    parts: Parts,
    diagnosis: Diagnosis,
    plans: Sequence[tuple[Diagnosis, Plan]],
    new: Sequence[Finding],
    fence: int,
    now: float,
    *,
    updates: Diagnosis | None,
) -> None:
    """Write down what was found and begin what was planned, at most one update. Going back to the
    release before goes first: the fastest cure, and what is trained next starts from there."""
    ledger = parts.ledger
    active = bool(ledger.active_updates())
    latest = {f.finding_id: f for f in diagnosis.findings}
    waits = active and any(plan.action is Action.WATCH for _, plan in plans)
    with ledger.begin(fence=fence) as tx:
        for finding in new:
            tx.put(
                latest.get(finding.finding_id, finding),
                id=finding.finding_id,
                at=finding.at,
                status="waiting" if waits else "diagnosed",
            )
        tx.put(diagnosis, id=diagnosis.diagnosis_id, at=now, status=HEADLINE)
        tx.event(
            now,
            "diagnosis" if updates is None else "diagnosis.updated",
            diagnosis.diagnosis_id,
            f"{diagnosis.cause}: {diagnosis.reason}",
            data={
                "cause": diagnosis.cause,
                "factor": diagnosis.factor,
                "also": list(diagnosis.also),
                "excluded": dict(diagnosis.excluded),
                "incident": diagnosis.incident,
                "findings": [f.finding_id for f in diagnosis.findings],
            },
        )
        begun = active
        for part, plan in sorted(plans, key=lambda p: p[1].action is not Action.ROLL_BACK):
            if part.diagnosis_id != diagnosis.diagnosis_id:
                tx.put(part, id=part.diagnosis_id, at=now)
            begun |= _begin(parts, tx, plan, now, begun=begun)


def _begin(parts: Parts, tx: Transaction, plan: Plan, now: float, *, begun: bool) -> bool:
    """Write a plan and begin it; whether an update was begun. ``begun``: there is one already."""
    ledger = parts.ledger
    tx.put(plan, id=plan.plan_id, at=now)
    tx.event(
        now,
        "plan",
        plan.plan_id,
        f"{plan.action}: {plan.reason}",
        data={
            "action": plan.action,
            "estimated_cost": plan.estimated_cost,
            "expected_benefit": plan.expected_benefit,
            "budget_left": plan.budget_left,
            "recipes": list(plan.recipes),
        },
    )
    starts = plan.action.makes_update or plan.action is Action.ROLL_BACK
    if ledger.setting("frozen") and plan.action is not Action.TELL:
        tx.event(now, "plan.held", plan.plan_id, "not begun: the service is frozen")
    elif starts and begun:
        tx.event(now, "plan.held", plan.plan_id, "not begun: one update at a time")
    elif plan.action.makes_update:
        update = loop.start(plan, ledger.champion(), now)
        commands.begin_update(parts, tx, update, now)
        return True
    elif plan.action is Action.ROLL_BACK:
        target = commands.rollback_target(ledger, None)
        update = commands.back_to(parts, target, plan.reason, "policy", now)
        commands.begin_update(parts, tx, update, now)
        return True
    return False
