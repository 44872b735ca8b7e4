"""Probes on a schedule: when a round is due, and what a changed one says.

The schedule is a row of the ledger, written in the transaction that asks for a round: a controller
that is started again neither skips a round nor draws it twice. Rounds that were missed while
nobody ruled are not made up for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from intonaco.codec import digest
from intonaco.executor import Parts
from intonaco.ledger import Effect, EffectStatus, Transaction
from intonaco.types import Finding, Json, ProbeRound
from intonaco.watching import Watch

SETTING = "probes"
SIGNAL = "probes"


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """``asked``: subject of the round that is being drawn. ``good_at``, ``good_request``: when
    the last good round ended (or the answers were stored), and how many requests had been seen.
    ``told``: a change of this release has been told. ``unmeasured``: that a round could not be
    drawn has."""

    release: str
    tenure: float
    next_check_at: float
    rounds: int = 0
    asked: str | None = None
    good_at: float | None = None
    good_request: int = 0
    told: bool = False
    unmeasured: bool = False


def look(parts: Parts, watch: Watch, fence: int, now: float) -> None:
    """Ask for the round that is due and judge the one that was drawn, for the champion."""
    if not parts.config.monitoring.probes:
        return
    tenures = [t for t in parts.ledger.tenures() if t.until is None]
    if not tenures:
        return
    champion, since = tenures[-1].release_id, tenures[-1].since
    every = parts.config.monitoring.probe_every_s
    stored = parts.ledger.setting(SETTING)
    state = _State(**stored) if stored else None
    if state is None or (state.release, state.tenure) != (champion, since):
        # Its stored answers are those of its first round.
        state = _State(release=champion, tenure=since, next_check_at=now + every)
        _begin(parts, state, "champion", fence, now)
        return
    if state.asked is not None:
        status = next(iter(parts.ledger.effects(state.asked).values()), None)
        if status is None or status.status == "wanted":
            return
        _judge(parts, watch, state, status, fence, now)
    elif every > 0 and now >= state.next_check_at:
        _begin(parts, replace(state, next_check_at=now + every), "schedule", fence, now)


def _begin(parts: Parts, state: _State, why: str, fence: int, now: float) -> None:
    number = state.rounds + 1
    subject = f"probe:{state.release[:10]}:{state.tenure:.3f}:{number}"
    with parts.ledger.begin(fence=fence) as tx:
        tx.want(effect(parts.config.service, state.release, subject, why), now)
        _keep(tx, replace(state, rounds=number, asked=subject))


def effect(service_id: str, release: str, subject: str, why: str) -> Effect:
    """A round of one release. ``subject``: names the round."""
    return Effect(
        key=f"{service_id}:{subject}:probe",
        kind="probe",
        subject=subject,
        payload={"release": release, "name": subject, "why": why},
    )


def _judge(
    parts: Parts, watch: Watch, state: _State, status: EffectStatus, fence: int, now: float
) -> None:
    """Write what a round says, once: changed, good again, or not measured."""
    found = parts.ledger.find(ProbeRound, str(status.result.get("round", "-")))
    done = replace(state, asked=None)
    first = found is not None and found.ok is None and not found.missing
    good = found is not None and found.ok is True
    changed = found is not None and found.ok is False
    if good or first:
        done = replace(
            done,
            good_at=now,
            good_request=watch.requests,
            told=done.told and not good,
            unmeasured=False,
        )
    elif changed:
        done = replace(done, told=True, unmeasured=False)
    else:
        done = replace(done, unmeasured=True)
    with parts.ledger.begin(fence=fence) as tx:
        _keep(tx, done)
        if found is not None and changed and not state.told:
            finding = _finding(parts, watch, state, found, now)
            tx.put(finding, id=finding.finding_id, at=now, status="new")
            tx.event(
                now,
                "finding",
                finding.finding_id,
                finding.text,
                data={
                    "signal": SIGNAL,
                    "request": finding.request,
                    "since": finding.since,
                    "armed_at": finding.armed_at,
                    "evidence": finding.evidence,
                    "threshold": finding.threshold,
                },
            )
        elif good and (state.told or state.unmeasured):
            tx.event(now, "probe.good", state.release, f"probes: {_text(found, status)}")
        elif done.unmeasured and not state.unmeasured:
            tx.event(now, "probe.unmeasured", state.release, f"probes: {_text(found, status)}")


def _text(found: ProbeRound | None, status: EffectStatus) -> str:
    return found.text if found is not None else f"not measured: {status.error}"


def _finding(parts: Parts, watch: Watch, state: _State, found: ProbeRound, now: float) -> Finding:
    """A changed round. Evidence is how far the worst probe lies beyond its limit."""
    worst = max(found.changed, key=lambda key: found.distances[key] or 0.0)
    distance = found.distances[worst] or 0.0
    since_at = state.good_at if state.good_at is not None else state.tenure
    return Finding(
        finding_id=digest([parts.config.service, SIGNAL, found.round_id])[:16],
        service_id=parts.config.service,
        signal=SIGNAL,
        of="probe",
        detector="golden set",
        at=now,
        request=watch.requests,
        armed_at=0,
        since=state.good_request,
        since_at=since_at,
        evidence=distance,
        threshold=found.limits[worst],
        value_before=0.0,
        value_now=len(found.changed) / len(found.distances),
        unit="share",
        direction="up",
        release=state.release,
        text=f"{found.text[:1].upper()}{found.text[1:]}: the model or its environment changed, not "
        f"its users. Last good at {_utc(since_at)}, changed at {_utc(found.at)}.",
        facts=_facts(found, since_at),
    )


def _facts(found: ProbeRound, since_at: float) -> Mapping[str, Json]:
    return {
        "round": found.round_id,
        "changed": list(found.changed),
        "distances": {key: found.distances[key] for key in found.changed},
        "measures": dict(found.measures),
        "limits": dict(found.limits),
        "conditions": dict(found.conditions),
        "stored_under": None if found.stored_under is None else dict(found.stored_under),
        "images": {key: list(pair) for key, pair in found.images.items()},
        "last_good_at": since_at,
        "probes": len(found.distances),
    }


def _utc(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _keep(tx: Transaction, state: _State) -> None:
    tx.set(SETTING, asdict(state))
