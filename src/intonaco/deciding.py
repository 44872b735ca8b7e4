"""From findings to a plan: wait until the picture is whole, diagnose, decide, begin.

The judgement itself is pure and lies in ``decision``; what it needs to know is gathered in
``experience`` and here. Findings of one change of the world are one incident: those that arrive
later join it, and a plan is made only for what they add. A plan that waits names a time at which it
is judged again (``waiting``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from intonaco import (
    accounts,
    beginning,
    data_checks,
    experience,
    loop,
    rollout_commands,
    triggering,
    waiting,
)
from intonaco.decision.diagnosis import PERFORMANCE_KINDS, diagnose, each_cause, signal_kind
from intonaco.decision.evidence import AFTER_CHANGE_SECONDS, Deploy, DiagnosisContext
from intonaco.decision.incidents import (
    HEADLINE,
    belongs,
    is_news,
    may_be_the_release,
    repeats,
    says_the_same,
)
from intonaco.decision.policy import DecisionContext, decide
from intonaco.errors import Conflict
from intonaco.executor import Parts
from intonaco.ledger import Effect, EffectStatus
from intonaco.ledger.transaction import Transaction
from intonaco.types import Action, Cause, Diagnosis, Finding, Phase, Plan, Update
from intonaco.watching import Watch

SETTLE_SECONDS = 120.0  # a finding is diagnosed after this long even if requests stop coming


def look(parts: Parts, watch: Watch, fence: int, now: float) -> None:
    """Diagnose new findings once probes and the labelled data have been looked at, and those that
    wait when their time has come."""
    ledger = parts.ledger
    waiting.look(parts, watch, fence, now)
    earlier = next(iter(ledger.newest(Diagnosis, 1, status=HEADLINE)), None)
    new, round_ = ledger.all(Finding, status="new"), 0
    if not new:
        due = waiting.due(parts, watch, earlier, fence, now)
        if due is None:
            return
        new, round_ = list(due.findings), due.round
    asked = _questions(parts, new, ledger.champion(), round_)
    known = ledger.effects(new[0].finding_id)
    with ledger.begin(fence=fence) as tx:
        for effect in asked:
            tx.want(effect, now)
    if any(effect.key not in known or known[effect.key].status == "wanted" for effect in asked):
        return
    if not watch.monitor.settled(new[0]) and now - new[0].at < SETTLE_SECONDS:
        return
    answers = {effect.kind: known[effect.key] for effect in asked}
    if round_:
        joins = earlier is not None and _holds(earlier, new)
        found = [_as_now(parts, watch, finding, now) for finding in new]
    else:
        joins = earlier is not None and any(belongs(finding, earlier) for finding in new)
        old = _old(earlier, new) if earlier is not None and joins else []
        found = [_refreshed(watch, finding) for finding in (*old, *new)]
    context = _evidence(parts, watch, found, answers)
    diagnosis = diagnose(found, context, now)
    if earlier is not None and (joins or repeats(diagnosis, earlier)):
        diagnosis = _continued(diagnosis, earlier)
    else:
        diagnosis, earlier = replace(diagnosis, incident=diagnosis.diagnosis_id), None
    before = _plans(parts, earlier) if earlier is not None else []
    labelled = _labelled(parts, found, answers)
    plans = []
    for part in each_cause(diagnosis):
        if part.cause in context.announced:
            continue  # its trigger made a plan, or said why not
        changed = may_be_the_release(part, context.release_changed)
        money = _context(parts, watch, part, labelled, changed, now)
        plan = decide(part, money, parts.config.decision, now)
        plans.append((part, plan, is_news(plan, [p for p in before if p.cause is part.cause])))
    _write(parts, diagnosis, plans, new, fence, now, updates=earlier, round_=round_)


def _holds(diagnosis: Diagnosis, findings: Sequence[Finding]) -> bool:
    known = {f.finding_id for f in diagnosis.findings}
    return any(f.finding_id in known for f in findings)


def _as_now(parts: Parts, watch: Watch, finding: Finding, now: float) -> Finding:
    """The finding as the latest requests show it. The change is as old as it was."""
    latest = _refreshed(watch, waiting.recent(finding, parts, watch, now))
    return replace(latest, since=finding.since, since_at=finding.since_at)


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
    # What was held back, or what an update did not bring about, may be tried once more.
    tried = {
        u.plan.plan_id
        for u in parts.ledger.all(Update)
        if not u.phase.final or u.phase in (Phase.PROMOTED, Phase.CANCELLED)
    }
    return [
        plan
        for plan in parts.ledger.all(Plan)
        if plan.diagnosis_id in diagnoses
        and (not plan.action.makes_update or plan.plan_id in tried)
    ]


def _evidence(
    parts: Parts, watch: Watch, found: Sequence[Finding], answers: Mapping[str, EffectStatus]
) -> DiagnosisContext:
    """All that is known besides the findings."""
    content, performance = watch.history.of_findings(
        found, performance=lambda f: signal_kind(f) in PERFORMANCE_KINDS
    )
    context = DiagnosisContext(
        probes_ok=_probes_ok(found, answers),
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
        watched=watch.monitor.watched(),
        dataset_problems=data_checks.problems(parts, found),
    )
    since = min(finding.since_at for finding in found)
    return replace(
        context,
        release_changed=context.changed("release", since) is not None,
        announced=_announced(parts, since),
    )


def _announced(parts: Parts, since: float) -> dict[Cause, str]:
    """New data, recipes and locks that triggers told of shortly before what was found, or after.
    They have plans of their own."""
    return {
        d.cause: d.reason.rstrip(".")
        for d in parts.ledger.all(Diagnosis, status=triggering.ANNOUNCED)
        if d.at >= since - AFTER_CHANGE_SECONDS
    }


def _questions(
    parts: Parts, found: Sequence[Finding], champion: str | None, round_: int
) -> list[Effect]:
    """What has to be looked at before a diagnosis, as effects; anew in each round."""
    first = found[0].finding_id
    again = f":{round_}" if round_ else ""
    asked = []
    drawn = any(f.of == "probe" for f in found)  # that is what was found
    if parts.config.monitoring.probes and champion is not None and not drawn:
        asked.append(
            Effect(
                key=f"{parts.config.service}:{first}:probe{again}",
                kind="probe",
                subject=first,
                payload={"release": champion, "name": f"{first}{again}".replace(":", "-")},
            )
        )
    clusters = next((f.clusters for f in found if any(c.moved for c in f.clusters)), ())
    if clusters and parts.config.data.pool is not None:
        asked.append(
            Effect(
                key=f"{parts.config.service}:{first}:labelled{again}",
                kind="labelled",
                subject=first,
                payload={"finding": next(f.finding_id for f in found if f.clusters == clusters)},
            )
        )
    return asked


def _probes_ok(found: Sequence[Finding], answers: Mapping[str, EffectStatus]) -> bool | None:
    """Whether the champion still draws what it drew when it was new; None if not known."""
    if any(f.of == "probe" for f in found):
        return False
    probe = answers.get("probe")
    if probe is None or probe.status != "done":
        return None
    ok: bool | None = probe.result["ok"]
    return ok


def _labelled(parts: Parts, found: Sequence[Finding], answers: Mapping[str, EffectStatus]) -> int:
    """Labelled items at hand for what moved, as counted now or, where nothing moved, for the
    incident's earlier findings."""
    counted = [answers, *(parts.ledger.effects(f.finding_id) for f in reversed(found))]
    for effects in counted:
        for status in reversed(list(effects.values())):
            if status.effect.kind == "labelled" and status.status == "done":
                return int(status.result.get("items", 0))
    return 0


def _context(
    parts: Parts, watch: Watch, diagnosis: Diagnosis, labelled: int, changed: bool, now: float
) -> DecisionContext:
    """``changed``: a release that changed shortly before may be behind it."""
    return replace(
        experience.context(parts, diagnosis, now),
        labelled_items=labelled,
        request_rate=watch.rate(),
        arrivals=watch.arrivals,
        release_changed=changed,
    )


def _write(
    parts: Parts,
    diagnosis: Diagnosis,
    plans: Sequence[tuple[Diagnosis, Plan, bool]],
    new: Sequence[Finding],
    fence: int,
    now: float,
    *,
    updates: Diagnosis | None,
    round_: int,
) -> None:
    """Write down what was found and begin what was planned, at most one update. Going back to the
    release before goes first: the fastest cure, and what is trained next starts from there.

    ``plans``: by cause, each with whether it is news. One that says what was said before is written
    with its new figures, and nobody is told."""
    ledger = parts.ledger
    latest = {f.finding_id: f for f in diagnosis.findings}
    findings = [latest.get(f.finding_id, f) for f in new]
    times = [plan.look_again_at for _, plan, _ in plans if plan.look_again_at is not None]
    with ledger.begin(fence=fence) as tx:
        tx.put(diagnosis, id=diagnosis.diagnosis_id, at=now, status=HEADLINE)
        if round_ == 0 or any(news for _, _, news in plans):
            _tell(tx, diagnosis, updates, now)
        begun = bool(ledger.active_updates())
        for part, plan, news in sorted(plans, key=lambda p: p[1].action is not Action.ROLL_BACK):
            if part.diagnosis_id != diagnosis.diagnosis_id:
                tx.put(part, id=part.diagnosis_id, at=now)
            if accounts.held_by_budget(plan):
                accounts.tell_used_up(parts.config, ledger, tx, plan, now)
            if not news:
                if ledger.find(Plan, plan.plan_id) is not None:
                    tx.put(plan, id=plan.plan_id, at=now)
                continue
            did, held = _begin(parts, tx, plan, now, begun=begun)
            begun |= did
            if held:
                times.append(plan.look_again_at or now + parts.config.decision.look_again_s)
        for finding in findings:
            status = "waiting" if times else "diagnosed"
            tx.put(finding, id=finding.finding_id, at=finding.at, status=status)
        if times or round_:
            waiting.put_off(parts, tx, findings if times else (), min(times, default=0.0), round_)


def _tell(tx: Transaction, diagnosis: Diagnosis, updates: Diagnosis | None, now: float) -> None:
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


def _begin(
    parts: Parts, tx: Transaction, plan: Plan, now: float, *, begun: bool
) -> tuple[bool, bool]:
    """Write a plan and begin it; whether an update was begun, and whether the plan is held back.
    ``begun``: there is an update already."""
    ledger = parts.ledger
    tx.put(plan, id=plan.plan_id, at=now)
    beginning.plan_event(tx, plan, now)
    starts = plan.action.makes_update or plan.action is Action.ROLL_BACK
    if ledger.setting("frozen") and plan.action is not Action.TELL:
        return _hold(tx, plan, "the service is frozen", now)
    if starts and begun:
        return _hold(tx, plan, "one update at a time", now)
    if plan.action.makes_update:
        update = loop.start(plan, ledger.champion(), now)
    elif plan.action is Action.ROLL_BACK:
        target = rollout_commands.rollback_target(ledger, None)
        update = beginning.back_to(parts, target, plan.reason, "policy", now)
    else:
        return False, False
    try:
        beginning.begin_update(parts, tx, update, now)
    except Conflict as error:  # the budget went to somebody else this moment
        accounts.tell_used_up(parts.config, ledger, tx, plan, now)
        return _hold(tx, plan, str(error), now)
    return True, False


def _hold(tx: Transaction, plan: Plan, why: str, now: float) -> tuple[bool, bool]:
    tx.event(now, "plan.held", plan.plan_id, f"not begun: {why}")
    return False, True
