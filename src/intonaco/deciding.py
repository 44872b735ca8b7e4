"""From findings to a plan: wait until the picture is whole, diagnose, decide, begin.

A plan that waits names a time at which it is judged again, from what the requests since then show;
a finding is over when what moved came back (``guards.is_over``). The judgement itself is pure and
lies in ``decision``; what it needs to know is gathered in ``history`` and here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from intonaco import commands, history, loop
from intonaco.decision.diagnosis import DiagnosisContext, diagnose, signal_kind
from intonaco.decision.guards import Quiet, is_over
from intonaco.decision.policy import DecisionContext, decide
from intonaco.errors import Conflict
from intonaco.executor import Parts
from intonaco.ledger import Effect, EffectStatus
from intonaco.types import Action, Diagnosis, Finding, Phase, Plan, Update
from intonaco.watching import Watch

RELEASE_CHANGE_SECONDS = 3600.0  # a finding this soon after a promotion may be its fault
SETTLE_SECONDS = 120.0  # a finding is diagnosed after this long even if requests stop coming
# Setting: {"at", "round"} of the findings that wait, the update "after" which they do, and
# "cleared_at", when those that are over are looked at.
AGAIN = "judge_again"


def look(parts: Parts, watch: Watch, fence: int, now: float) -> None:
    """Diagnose new findings once probes and the labelled data have been looked at, and those that
    wait when their time has come."""
    ledger = parts.ledger
    _reopen(parts, fence, now)
    _back_again(parts, watch, fence, now)
    found = ledger.all(Finding, status="new")
    again = ledger.setting(AGAIN) or {}
    round_ = 0
    if not found:
        waiting = ledger.all(Finding, status="waiting")
        if not waiting or now < float(again.get("at", 0.0)):
            return
        found = _still_there(parts, watch, waiting, fence, now)
        round_ = int(again.get("round", 0)) + 1
        if not found:
            return
    champion = ledger.champion()
    asked = _questions(parts, found, champion, round_)
    known = ledger.effects(found[0].finding_id)
    with ledger.begin(fence=fence) as tx:
        for effect in asked:
            tx.want(effect, now)
    if any(effect.key not in known or known[effect.key].status == "wanted" for effect in asked):
        return
    if not watch.monitor.settled(found[0]) and now - found[0].at < SETTLE_SECONDS:
        return
    if round_ == 0:  # what waits is part of the picture
        found = [*found, *ledger.all(Finding, status="waiting")]
    answers = {effect.kind: known[effect.key] for effect in asked}
    diagnosis = diagnose(
        [watch.monitor.refresh(_recent(finding, parts, watch, now)) for finding in found]
        if round_
        else [watch.monitor.refresh(finding) for finding in found],
        DiagnosisContext(
            probes_ok=_probes_ok(answers),
            rollout_active=ledger.active_rollout() is not None,
            min_quality_gap=parts.config.decision.min_quality_gap,
            reference_quality=watch.monitor.reference_quality(),
            release_changed=_release_changed(parts, found),
        ),
        now,
    )
    if round_:  # the change is as old as it was, however recent the requests that were looked at
        begun = {f.finding_id: f for f in found}
        diagnosis = replace(
            diagnosis,
            findings=tuple(
                replace(f, since=begun[f.finding_id].since, since_at=begun[f.finding_id].since_at)
                for f in diagnosis.findings
            ),
        )
    context = _context(parts, watch, found, answers, diagnosis, now)
    plan = decide(diagnosis, context, parts.config.decision, now)
    _write(parts, diagnosis, plan, found, round_, fence, now)


def _recent(finding: Finding, parts: Parts, watch: Watch, now: float) -> Finding:
    """The finding as if it had begun with the latest requests: what they show is what is so now."""
    rate = watch.rate()
    if rate <= 0:
        return finding
    span = parts.config.decision.clear_after_requests / rate
    return replace(finding, since_at=max(finding.since_at, now - span))


def _still_there(
    parts: Parts, watch: Watch, waiting: Sequence[Finding], fence: int, now: float
) -> list[Finding]:
    """Those that are not over. What is over is written down, with how long it lasted."""
    decision = parts.config.decision
    champion = parts.ledger.champion()
    kept = []
    for finding in waiting:
        status, text = "", ""
        if finding.release is not None and finding.release != champion:
            status, text = "diagnosed", "it was of an earlier release"
        elif signal_kind(finding) == "prompts":
            quiet = _quiet(finding, parts, watch, now)
            if is_over(quiet, requests=decision.clear_after_requests, gap=decision.min_quality_gap):
                status, text = "cleared", "what moved came back, or is served as well as the rest"
        if not status:
            kept.append(finding)
            continue
        with parts.ledger.begin(fence=fence) as tx:
            tx.put(finding, id=finding.finding_id, at=finding.at, status=status)
            tx.event(
                now,
                f"finding.{'cleared' if status == 'cleared' else 'closed'}",
                finding.finding_id,
                text,
                data={"seconds": now - finding.since_at},
            )
    return kept


def _back_again(parts: Parts, watch: Watch, fence: int, now: float) -> None:
    """A finding that was over and is not: its detector fired once and stays silent until there is
    another release, so it is looked for here."""
    ledger, decision = parts.ledger, parts.config.decision
    again = ledger.setting(AGAIN) or {}
    champion = ledger.champion()
    over = [f for f in ledger.all(Finding, status="cleared") if f.release == champion]
    if not over or now < float(again.get("cleared_at", 0.0)):
        return
    back = [f for f in over if _is_back(f, parts, watch, now)]
    with ledger.begin(fence=fence) as tx:
        for finding in back:
            begun = replace(finding, since_at=_recent(finding, parts, watch, now).since_at)
            tx.put(begun, id=finding.finding_id, at=finding.at, status="waiting")
            tx.event(now, "finding.again", finding.finding_id, "what had come back moved again")
        due = {"at": now} if back else {}
        tx.set(AGAIN, again | due | {"cleared_at": now + decision.look_again_s})


def _is_back(finding: Finding, parts: Parts, watch: Watch, now: float) -> bool:
    high = _quiet(finding, parts, watch, now).deficit_high
    return high is not None and high >= parts.config.decision.min_quality_gap > 0


def _quiet(finding: Finding, parts: Parts, watch: Watch, now: float) -> Quiet:
    """What the latest requests show of a finding."""
    requests = int(watch.rate() * (now - finding.at))
    recent = watch.monitor.refresh(_recent(finding, parts, watch, now))
    if not recent.clusters:
        return Quiet(requests=requests, deficit_high=None)
    moved = [c for c in recent.clusters if c.moved]
    gaps = [
        None
        if c.quality_inside is None or c.quality_outside is None
        else c.quality_outside - c.quality_inside
        for c in moved
    ]
    if any(gap is None for gap in gaps):
        return Quiet(requests=requests, deficit_high=None)
    return Quiet(requests=requests, deficit_high=max((g for g in gaps if g is not None), default=0))


def _reopen(parts: Parts, fence: int, now: float) -> None:
    """After an update that was not promoted, what it was for is judged again: it is still there."""
    ledger = parts.ledger
    ended = [u for u in ledger.all(Update, status="final") if u.plan.diagnosis_id is not None]
    if not ended or ended[-1].phase in (Phase.PROMOTED, Phase.CANCELLED):
        return
    update = ended[-1]
    again = ledger.setting(AGAIN) or {}
    if again.get("after") == update.update_id:
        return
    diagnosis = ledger.find(Diagnosis, str(update.plan.diagnosis_id))
    decision = parts.config.decision
    at = update.phase_since + max(decision.cooldown_s, decision.look_again_s)
    with ledger.begin(fence=fence) as tx:
        for finding in diagnosis.findings if diagnosis else ():
            tx.put(finding, id=finding.finding_id, at=finding.at, status="waiting")
        tx.set(AGAIN, again | {"at": at, "after": update.update_id})


def _questions(
    parts: Parts, found: Sequence[Finding], champion: str | None, round_: int
) -> list[Effect]:
    """What has to be looked at before a diagnosis, as effects; anew in each round."""
    first = found[0].finding_id
    again = f":{round_}" if round_ else ""
    asked = []
    if parts.config.monitoring.probes and champion is not None:
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


def _probes_ok(answers: Mapping[str, EffectStatus]) -> bool | None:
    """Whether the champion still draws what it drew when it was new; None if not known."""
    probe = answers.get("probe")
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


def _context(
    parts: Parts,
    watch: Watch,
    found: Sequence[Finding],
    answers: Mapping[str, EffectStatus],
    diagnosis: Diagnosis,
    now: float,
) -> DecisionContext:
    labelled = answers.get("labelled")
    return replace(
        history.context(parts, diagnosis, now),
        labelled_items=int(labelled.result.get("items", 0)) if labelled else 0,
        request_rate=watch.rate(),
        arrivals=watch.arrivals,
        release_changed=_release_changed(parts, found),
    )


def _write(
    parts: Parts,
    diagnosis: Diagnosis,
    plan: Plan,
    found: Sequence[Finding],
    round_: int,
    fence: int,
    now: float,
) -> None:
    ledger = parts.ledger
    frozen = bool(ledger.setting("frozen"))
    refreshed = {f.finding_id: f for f in diagnosis.findings}
    held = frozen and plan.action is not Action.TELL
    at = plan.look_again_at
    if held and at is None:
        at = now + parts.config.decision.look_again_s
    # A plan that says what it said before is written with its new figures, and nobody is told.
    known = ledger.find(Plan, plan.plan_id) is not None
    again = ledger.setting(AGAIN) or {}
    with ledger.begin(fence=fence) as tx:
        for finding in found:
            latest = refreshed.get(finding.finding_id, finding)
            status = "diagnosed" if at is None else "waiting"
            tx.put(latest, id=finding.finding_id, at=finding.at, status=status)
        if at is not None or round_:
            tx.set(AGAIN, again | {"at": at or 0.0, "round": round_})
        tx.put(diagnosis, id=diagnosis.diagnosis_id, at=now)
        tx.put(plan, id=plan.plan_id, at=now)
        if not known:
            tx.event(
                now,
                "diagnosis",
                diagnosis.diagnosis_id,
                f"{diagnosis.cause}: {diagnosis.reason}",
                data={"cause": diagnosis.cause, "findings": [f.finding_id for f in found]},
            )
            commands.plan_event(tx, plan, now)
        if held:
            tx.event(now, "plan.held", plan.plan_id, "not begun: the service is frozen")
        elif plan.action.makes_update:
            update = loop.start(plan, ledger.champion(), now)
            try:
                commands.begin_update(parts, tx, update, now)
            except Conflict as error:  # the budget went to somebody else this moment
                tx.event(now, "plan.held", plan.plan_id, f"not begun: {error}")
                later = now + parts.config.decision.look_again_s
                for finding in found:
                    tx.put(finding, id=finding.finding_id, at=finding.at, status="waiting")
                tx.set(AGAIN, again | {"at": later, "round": round_})
        elif plan.action is Action.ROLL_BACK and not ledger.active_updates():
            target = commands.rollback_target(ledger, None)
            update = commands.back_to(parts, target, plan.reason, "policy", now)
            commands.begin_update(parts, tx, update, now)
