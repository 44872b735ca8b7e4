"""Findings that wait: for an update to end, for data, for money, for quiet hours to be over.

Each has a time at which it is judged again, from what the latest requests show. It is over when
what moved came back (``guards.is_over``), and taken up again should it move once more: its detector
fired once and stays silent until there is another release.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from intonaco.decision.diagnosis import signal_kind
from intonaco.decision.guards import Quiet, is_over
from intonaco.executor import Parts
from intonaco.ledger import Ledger, Transaction
from intonaco.types import Diagnosis, Finding, Json, Phase, Update
from intonaco.watching import Watch

# Setting: {"at": {finding: time}, "rounds": {finding: how often it was judged again}, "during":
# {finding: the update whose end it waits for at most}, "after": the update that was looked at,
# "cleared_at": when those that are over are looked at}.
AGAIN = "judge_again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """Findings of one incident that are to be judged again, for the ``round``-th time."""

    findings: tuple[Finding, ...]
    round: int


def look(parts: Parts, watch: Watch, fence: int, now: float) -> None:
    """Take up what an update did not mend, and what moved again."""
    _reopen(parts, fence)
    _back_again(parts, watch, fence, now)


def due(
    parts: Parts, watch: Watch, headline: Diagnosis | None, fence: int, now: float
) -> Due | None:
    """What is to be judged again now, without what is over. ``headline``: the latest diagnosis;
    its findings are judged together."""
    waiting = parts.ledger.all(Finding, status="waiting")
    times: Mapping[str, float] = _setting(parts).get("at", {})
    active = {u.update_id for u in parts.ledger.active_updates()}
    during = _setting(parts).get("during", {})
    ripe = [
        f
        for f in waiting
        if now >= float(times.get(f.finding_id, 0.0))
        or (f.finding_id in during and during[f.finding_id] not in active)
    ]
    if not ripe:
        return None
    together = {f.finding_id for f in headline.findings} if headline else set()
    if ripe[0].finding_id in together:
        group = [f for f in waiting if f.finding_id in together]
    else:
        group = [f for f in ripe if f.finding_id not in together]
    kept = _still_there(parts, watch, group, fence, now)
    if not kept:
        return None
    rounds = _setting(parts).get("rounds", {})
    last = max(int(rounds.get(f.finding_id, 0)) for f in kept)
    return Due(findings=tuple(kept), round=last + 1)


def put_off(
    parts: Parts, tx: Transaction, findings: Sequence[Finding], at: float, round_: int
) -> None:
    """Have findings judged again at a time. The caller writes them with the status "waiting"."""
    ids = [f.finding_id for f in findings]
    again = _setting(parts)
    waiting = {f.finding_id for f in parts.ledger.all(Finding, status="waiting")} | set(ids)
    active = parts.ledger.active_updates()
    values: dict[str, Json] = {"at": at, "rounds": round_}
    if active:
        values["during"] = active[0].update_id
    for name in ("at", "rounds", "during"):
        entries = {k: v for k, v in again.get(name, {}).items() if k in waiting and k not in ids}
        again[name] = entries | (dict.fromkeys(ids, values[name]) if name in values else {})
    tx.set(AGAIN, again)


def recent(finding: Finding, parts: Parts, watch: Watch, now: float) -> Finding:
    """The finding as if it had begun with the latest requests: what they show is what is so now."""
    rate = watch.rate()
    if rate <= 0:
        return finding
    span = parts.config.decision.clear_after_requests / rate
    return replace(finding, since_at=max(finding.since_at, now - span))


def _setting(parts: Parts) -> dict[str, Json]:
    return dict(parts.ledger.setting(AGAIN) or {})


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
    ledger, decision = parts.ledger, parts.config.decision
    again = _setting(parts)
    if now < float(again.get("cleared_at", 0.0)):
        return
    champion = ledger.champion()
    first = min((t.since for t in ledger.tenures() if t.release_id == champion), default=0.0)
    cleared = ledger.since(Finding, first, status="cleared")
    over = [f for f in cleared if f.release == champion]
    if not over:
        return
    back = [f for f in over if _is_back(f, parts, watch, now)]
    with ledger.begin(fence=fence) as tx:
        for finding in back:
            begun = replace(finding, since_at=recent(finding, parts, watch, now).since_at)
            tx.put(begun, id=finding.finding_id, at=finding.at, status="waiting")
            tx.event(now, "finding.again", finding.finding_id, "what had come back moved again")
        times = again.get("at", {}) | {f.finding_id: now for f in back}
        tx.set(AGAIN, again | {"at": times, "cleared_at": now + decision.look_again_s})


def _is_back(finding: Finding, parts: Parts, watch: Watch, now: float) -> bool:
    high = _quiet(finding, parts, watch, now).deficit_high
    return high is not None and high >= parts.config.decision.min_quality_gap > 0


def _quiet(finding: Finding, parts: Parts, watch: Watch, now: float) -> Quiet:
    """What the latest requests show of a finding."""
    requests = int(watch.rate() * (now - finding.at))
    latest = watch.monitor.refresh(recent(finding, parts, watch, now))
    if not latest.clusters:
        return Quiet(requests=requests, deficit_high=None)
    gaps = [
        None
        if c.quality_inside is None or c.quality_outside is None
        else c.quality_outside - c.quality_inside
        for c in latest.clusters
        if c.moved
    ]
    if any(gap is None for gap in gaps):
        return Quiet(requests=requests, deficit_high=None)
    return Quiet(requests=requests, deficit_high=max((g for g in gaps if g is not None), default=0))


def _reopen(parts: Parts, fence: int) -> None:
    """After an update that was not promoted, what it was for is judged again: it is still there."""
    ledger = parts.ledger
    update = _last_ended(ledger)
    if update is None or update.phase in (Phase.PROMOTED, Phase.CANCELLED):
        return
    again = _setting(parts)
    if again.get("after") == update.update_id:
        return
    diagnosis = ledger.find(Diagnosis, str(update.plan.diagnosis_id))
    findings = diagnosis.findings if diagnosis else ()
    decision = parts.config.decision
    at = update.phase_since + max(decision.cooldown_s, decision.look_again_s)
    with ledger.begin(fence=fence) as tx:
        for finding in findings:
            tx.put(finding, id=finding.finding_id, at=finding.at, status="waiting")
        times = again.get("at", {}) | {f.finding_id: at for f in findings}
        tx.set(AGAIN, again | {"at": times, "after": update.update_id})


def _last_ended(ledger: Ledger) -> Update | None:
    """The last update of a diagnosis that is over. Looked for from the newest on, ever wider: this
    is asked at every look, and the history only grows."""
    limit = 1
    while True:
        found = ledger.newest(Update, limit, status="final")
        for update in found:
            if update.plan.diagnosis_id is not None:
                return update
        if len(found) < limit:
            return None
        limit *= 8
