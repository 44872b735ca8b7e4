"""From findings to a plan: wait until the picture is whole, diagnose, decide, begin.

The judgement itself is pure and lies in ``decision``; here is only what it needs to know.
"""

from __future__ import annotations

from collections.abc import Sequence

from intonaco import commands, loop
from intonaco.decision.diagnosis import DiagnosisContext, diagnose
from intonaco.decision.policy import EVALUATION_SECONDS, DecisionContext, decide
from intonaco.executor import Parts
from intonaco.ledger import Effect, EffectStatus
from intonaco.types import Action, Diagnosis, Finding, Plan, Update
from intonaco.watching import Watch

RELEASE_CHANGE_SECONDS = 3600.0  # a finding this soon after a promotion may be its fault
SETTLE_SECONDS = 120.0  # a finding is diagnosed after this long even if requests stop coming


def look(parts: Parts, watch: Watch, fence: int, now: float) -> None:
    """Diagnose new findings once probes and the labelled data have been looked at."""
    found = parts.ledger.all(Finding, status="new")
    if not found:
        return
    champion = parts.ledger.champion()
    asked = _questions(parts, found, champion)
    known = parts.ledger.effects(found[0].finding_id)
    with parts.ledger.begin(fence=fence) as tx:
        for effect in asked:
            tx.want(effect, now)
    if any(effect.key not in known or known[effect.key].status == "wanted" for effect in asked):
        return
    if not watch.monitor.settled(found[0]) and now - found[0].at < SETTLE_SECONDS:
        return
    diagnosis = diagnose(
        [watch.explained(watch.monitor.refresh(finding)) for finding in found],
        DiagnosisContext(
            probes_ok=_probes_ok(found, known),
            rollout_active=parts.ledger.active_rollout() is not None,
            min_quality_gap=parts.config.decision.min_quality_gap,
            reference_quality=watch.monitor.reference_quality(),
            release_changed=_release_changed(parts, found),
        ),
        now,
    )
    context = _context(parts, watch, found, known, now)
    plan = decide(diagnosis, context, parts.config.decision, now)
    _write(parts, diagnosis, plan, found, fence, now)


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


def _probes_ok(found: Sequence[Finding], known: dict[str, EffectStatus]) -> bool | None:
    """Whether the champion still draws what it drew when it was new; None if not known."""
    if any(f.of == "probe" for f in found):
        return False
    probe = next((s for s in known.values() if s.effect.kind == "probe"), None)
    if probe is None or probe.status != "done":
        return None
    ok: bool | None = probe.result["ok"]
    return ok


def _release_changed(parts: Parts, found: Sequence[Finding]) -> bool:
    """Whether another champion took over shortly before what was found began."""
    tenures = parts.ledger.tenures()
    if len(tenures) < 2:
        return False
    return min(f.since_at for f in found) - tenures[-1].since < RELEASE_CHANGE_SECONDS


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
    found: Sequence[Finding],
    known: dict[str, EffectStatus],
    now: float,
) -> DecisionContext:
    budget = parts.config.decision.budget
    settled, reserved = parts.ledger.spent(now - budget.per_days * 86_400)
    labelled = next((s for s in known.values() if s.effect.kind == "labelled"), None)
    seconds = {n: r.estimated_seconds for n, r in parts.config.training.recipes.items()}
    updates = parts.ledger.all(Update)
    for update in updates:
        seconds.update({c.name: c.train_seconds for c in update.candidates if c.train_seconds})
    ended = [u.phase_since for u in updates if u.phase.final and u.plan.action.trains]
    active = parts.ledger.active_updates()
    return DecisionContext(
        labelled_items=int(labelled.result.get("items", 0)) if labelled else 0,
        recipe_seconds=seconds,
        spent=settled,
        reserved=reserved,
        request_rate=watch.rate(),
        last_update_ended_at=max(ended, default=None),
        active_update=active[0].update_id if active else None,
        previous_release_available=parts.ledger.previous() is not None,
        release_changed=_release_changed(parts, found),
        evaluation_seconds=_evaluation_seconds(updates, parts) or EVALUATION_SECONDS,
        trainable=parts.config.serving.type != "http",
    )


def _write(
    parts: Parts,
    diagnosis: Diagnosis,
    plan: Plan,
    found: Sequence[Finding],
    fence: int,
    now: float,
) -> None:
    ledger = parts.ledger
    frozen = bool(ledger.setting("frozen"))
    refreshed = {f.finding_id: f for f in diagnosis.findings}
    with ledger.begin(fence=fence) as tx:
        for finding in found:
            latest = refreshed.get(finding.finding_id, finding)
            tx.put(latest, id=finding.finding_id, at=finding.at, status="diagnosed")
        tx.put(diagnosis, id=diagnosis.diagnosis_id, at=now)
        tx.event(
            now,
            "diagnosis",
            diagnosis.diagnosis_id,
            f"{diagnosis.cause}: {diagnosis.reason}",
            data={"cause": diagnosis.cause, "findings": [f.finding_id for f in found]},
        )
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
        if frozen and plan.action is not Action.TELL:
            tx.event(now, "plan.held", plan.plan_id, "not begun: the service is frozen")
        elif plan.action.makes_update:
            update = loop.start(plan, ledger.champion(), now)
            commands.begin_update(parts, tx, update, now)
        elif plan.action is Action.ROLL_BACK and not ledger.active_updates():
            target = commands.rollback_target(ledger, None)
            update = commands.back_to(parts, target, plan.reason, "policy", now)
            commands.begin_update(parts, tx, update, now)
