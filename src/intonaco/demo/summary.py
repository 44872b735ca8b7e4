"""What really happened, from the ledger and the records; and what of the story did not."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from intonaco.app import App
from intonaco.codec import as_json, decode
from intonaco.demo import strategies
from intonaco.demo.data import FIRST_TOPICS, LATER_TOPICS, NAMES
from intonaco.demo.judge import Judge
from intonaco.segment_log import SegmentReader
from intonaco.types import (
    Cause,
    Diagnosis,
    Finding,
    Outcome,
    Plan,
    Record,
    Release,
    Rollout,
    RolloutStatus,
    Update,
    Verdict,
)
from intonaco.workspace import Workspace

if TYPE_CHECKING:
    from intonaco.demo.story import Facts

MAX_DETECTION = 150  # requests after users changed
MIN_ARMED = 300  # quiet requests before
MAX_TRAFFIC_AFTER_TRIP = 1.0  # seconds
SLOW_SECONDS = 1.0  # service time that only the injected slowness explains


def collect(
    app: App | None, workspace: Workspace, facts: Facts, *, quick: bool, strategy: str = "canary"
) -> dict[str, Any]:
    """The facts of the story; keys are a contract (README, "The demo")."""
    summary: dict[str, Any] = {
        "quick": quick,
        "strategy": strategy,
        "releases": [],
        "drift": None,
        "diagnosis": None,
        "plan": None,
        "candidates": [],
        "accuracy": {"before": {}, "after": {}},
        "rollout": {"steps": []},
        "rollback": None,
        "rollbacks": [],
        "requests": {
            "total": facts.counts.get("sent", 0),
            "failed": facts.counts.get("failed", 0),
            "failed_elsewhere": 0,
            "lost": facts.counts.get("lost", 0),
            "errors": facts.counts.get("errors", []),
        },
        "seconds": facts.seconds,
        "extractor": facts.extractor,
    }
    if app is None:
        return summary
    ledger = app.ledger
    updates = ledger.all(Update)
    drift_update = next((u for u in updates if u.plan.diagnosis_id is not None), None)
    records = read_records(workspace.records)
    summary["releases"] = _releases(app, updates)
    summary["tenures"] = [as_json(t) for t in ledger.tenures()]
    summary["findings"] = as_json(ledger.all(Finding))
    summary["drift"] = _drift(ledger.all(Finding), facts.changed_after)
    summary["diagnosis"] = _first(
        {"cause": d.cause, "reason": d.reason, "quality_gap": d.quality_gap}
        for d in ledger.all(Diagnosis)
    )
    if drift_update is not None:
        plan = drift_update.plan
        summary["plan"] = _plan(plan)
        summary["candidates"] = _candidates(drift_update)
        summary["training_cost"] = sum(c.cost for c in drift_update.candidates)
        summary["training_seconds"] = sum(c.train_seconds for c in drift_update.candidates)
        rollout = ledger.find(Rollout, str(drift_update.rollout_id))
        if rollout is not None:
            summary["rollout"] = _rollout(rollout)
        pictures = _pictures(app, drift_update)
        summary["pictures"] = pictures
        summary["accuracy"] = _accuracy(workspace, pictures)
    summary["technique"] = [
        {"update_id": u.update_id, "phase": u.phase, **c}
        for u in updates
        if u.plan.assemble
        for c in _candidates(u)
    ]
    summary["rollbacks"] = [
        _rollback(app, r, records)
        for r in ledger.all(Rollout)
        if r.status is RolloutStatus.ROLLED_BACK
    ]
    summary["rollback"] = _first(summary["rollbacks"])
    summary["champion"] = ledger.champion()
    faulty = {r.challenger for r in ledger.all(Rollout) if r.status is RolloutStatus.ROLLED_BACK}
    user = [r for r in records if r.shadow_of is None and not r.probe]
    summary["requests"] |= {
        "recorded": len(user),
        "shielded": sum(_shielded(r) for r in user),
        "shadowed": sum(r.shadow_of is not None for r in records),
        "failed_elsewhere": sum(r.status >= 500 and not _had_part(r, faulty) for r in user),
    }
    settled, _ = ledger.spent()
    summary["money"] = {"spent": settled, "currency": app.config.decision.budget.currency}
    return summary


def missing_parts(summary: Mapping[str, Any]) -> list[str]:
    """What of the story did not happen. Empty: all of it did."""
    s = summary
    checks: list[tuple[bool, str]] = []

    def need(holds: object, text: str) -> None:
        checks.append((bool(holds), text))

    drift = s["drift"] or {}
    need(s["releases"], "no release was registered")
    need(drift, "no drift was found")
    if drift:
        need(
            drift["false_alarms_before"] == 0,
            f"{drift['false_alarms_before']} findings before users changed",
        )
        need(
            drift["quiet_requests_armed"] >= MIN_ARMED,
            f"only {drift['quiet_requests_armed']} armed requests before users changed",
        )
        need(
            0 < drift["requests_to_detect"] <= MAX_DETECTION,
            f"drift was found after {drift['requests_to_detect']} requests",
        )
    cause = (s["diagnosis"] or {}).get("cause")
    need(cause == Cause.CONCEPT_DRIFT, f"the diagnosis was {cause}, not concept drift")
    need((s["plan"] or {}).get("action") == "fine_tune", "the plan was not a fine-tune")
    verdicts = {c["name"]: c["verdict"] for c in s["candidates"]}
    need(verdicts.get("with-replay") == Verdict.PASS, f"with replay: {verdicts.get('with-replay')}")
    need(
        verdicts.get("without-replay") == Verdict.FAIL,
        f"without replay: {verdicts.get('without-replay')}, expected the gate to fail it",
    )
    checks.extend(_accuracy_checks(s["accuracy"], s["quick"]))
    checks.extend(strategies.checks(s))
    for found in s["rollbacks"][:1]:
        need(
            found["last_attempt_after_trip_seconds"] <= MAX_TRAFFIC_AFTER_TRIP,
            "the faulty release still had traffic 1 s after the breaker tripped",
        )
    need(s["requests"]["total"] > 0, "there was no traffic")
    need(s["requests"]["lost"] == 0, f"{s['requests']['lost']} requests were lost")
    return [text for holds, text in checks if not holds]


def read_records(folder: Path) -> list[Record]:
    """Every record of the gateways."""
    return [decode(Record, line) for line in SegmentReader(folder).read(limit=10**9)]


# ------------------------------------------------------------------------------------ parts


def _first(values: Iterable[Any]) -> Any:
    return next(iter(values), None)


def _releases(app: App, updates: Sequence[Update]) -> list[dict[str, Any]]:
    champion, previous = app.ledger.champion(), app.ledger.previous()
    of = {c.release_id: c for u in updates for c in u.candidates if c.release_id}
    roles = {previous: "previous", champion: "champion"}
    return [
        {
            "release_id": r.release_id,
            "short": r.short,
            "path": r.path,
            "recipe": r.provenance.recipe,
            "parent": r.provenance.parent,
            "dataset_version": r.provenance.dataset_version,
            "role": roles.get(r.release_id),
            "verdict": of[r.release_id].verdict if r.release_id in of else None,
            "registry_version": of[r.release_id].registry_version if r.release_id in of else None,
            "steps": r.serving.generation["steps"],
        }
        for r in app.ledger.all(Release)
    ]


def _drift(findings: Sequence[Finding], changed_after: int) -> dict[str, Any] | None:
    # Requests are counted anew for each champion, so what came later is told by the order.
    begun = next((k for k, f in enumerate(findings) if f.request > changed_after > 0), None)
    if begun is None:
        return None
    first = findings[begun]
    after = [f for f in findings[begun:] if f.request > changed_after]
    return {
        "signal": first.signal,
        "armed_at": first.armed_at,
        "changed_at": changed_after,
        "requests_to_detect": first.request - changed_after,
        "quiet_requests_armed": changed_after - first.armed_at,
        "false_alarms_before": begun,
        "evidence": first.evidence,
        "threshold": first.threshold,
        "text": first.text,
        "signals": [
            {"signal": f.signal, "requests_to_detect": f.request - changed_after} for f in after
        ],
        "clusters": [
            {"share_now": c.share_now, "quality": c.quality_inside, "prompts": c.sample_prompts}
            for c in first.clusters
            if c.moved
        ],
    }


def _plan(plan: Plan) -> dict[str, Any]:
    return {
        "action": plan.action,
        "cause": plan.cause,
        "reason": plan.reason,
        "recipes": plan.recipes,
        "estimated_cost": plan.estimated_cost,
        "expected_benefit": plan.expected_benefit,
        "budget_left": plan.budget_left,
        "currency": plan.currency,
    }


def _candidates(update: Update) -> list[dict[str, Any]]:
    return [as_json(c) for c in update.candidates]


def _rollout(rollout: Rollout) -> dict[str, Any]:
    return {
        "rollout_id": rollout.rollout_id,
        "challenger": rollout.challenger,
        "status": rollout.status,
        "reason": rollout.reason,
        "seconds": (rollout.ended_at or rollout.started_at) - rollout.started_at,
        "steps": [
            {**as_json(step), "seconds": (step.left_at or step.entered_at) - step.entered_at}
            for step in rollout.history
        ],
        "assessments": as_json(rollout.assessments),
    }


def _rollback(app: App, rollout: Rollout, records: Sequence[Record]) -> dict[str, Any]:
    """How long the faulty release hurt: from its first bad answer until nothing reached it any
    more, in seconds and in users' requests that were sent to it."""
    started, ended = rollout.started_at, rollout.ended_at or rollout.started_at
    ended_event = next(
        (
            e
            for e in app.ledger.events(kind="rollout", limit=100_000)
            if e.subject == rollout.rollout_id and e.kind == "rollout.rolled_back"
        ),
        None,
    )
    trips = [
        t for t in (ended_event.data.get("trips", []) if ended_event else []) if t["at"] >= started
    ]
    tries = [
        (a, r)
        for r in records
        for a in r.attempts
        if not r.probe
        and (
            a.arm.endswith(f":{rollout.rollout_id}")
            or (a.release == rollout.challenger and started <= a.started_at <= ended)
        )
    ]
    hurt = [
        (a, r)
        for a, r in tries
        if a.outcome in (Outcome.ERROR, Outcome.TIMEOUT) or a.service_seconds > SLOW_SECONDS
    ]
    first_bad = min((a.started_at for a, _ in hurt), default=ended)
    if trips:
        first_bad = trips[0]["first_failure_at"]
    stopped_at = trips[0]["at"] if trips else ended
    last = max((a.started_at for a, _ in tries), default=stopped_at)
    return {
        "rollout_id": rollout.rollout_id,
        "attempt": rollout.attempt,
        "reason": rollout.reason,
        "seconds": max(0.0, stopped_at - first_bad),
        "requests": sum(r.shadow_of is None for _, r in hurt),
        "shadow_requests": sum(r.shadow_of is not None for _, r in hurt),
        "last_attempt_after_trip_seconds": max(0.0, last - stopped_at),
        "steps": [as_json(step) for step in rollout.history],
        "user_visible_errors": sum(r.status >= 500 for _, r in tries if r.shadow_of is None),
    }


def _had_part(record: Record, releases: Collection[str]) -> bool:
    """Whether one of the releases was asked for the request."""
    return any(a.release in releases for a in record.attempts)


def _shielded(record: Record) -> bool:
    return len(record.attempts) > 1 and record.served_by is not None


def _pictures(app: App, update: Update) -> dict[str, str]:
    """Files of the images that the evaluation drew with the champion and the chosen candidate."""
    chosen = update.chosen_candidate
    evaluated = [
        s
        for s in app.ledger.effects(update.update_id).values()
        if s.effect.kind == "evaluate" and s.status == "done"
    ]
    if chosen is None or not evaluated:
        return {}
    folder = evaluated[-1].result["folder"]
    return {
        "before": f"{folder}/images/champion.npz",
        "after": f"{folder}/images/{chosen.name}.npz",
    }


def _accuracy(workspace: Workspace, pictures: Mapping[str, str]) -> dict[str, dict[str, float]]:
    judge = Judge.fit(workspace.root / "data" / "judge.npz")
    found: dict[str, dict[str, float]] = {}
    for when in ("before", "after"):
        found[when] = {}
        if when in pictures:
            with np.load(workspace.resolve(pictures[when]), allow_pickle=False) as stored:
                labels = [NAMES.index(str(name)) for name in stored["slices"]]
                accuracy = judge.accuracy(stored["images"], labels)
            found[when] = {str(digit): round(a, 4) for digit, a in sorted(accuracy.items())}
    return found


def accuracy_targets(quick: bool) -> tuple[tuple[str, tuple[str, ...], float, float], ...]:
    """(when, topics, at least, at most). A quick run trains less and judges fewer pictures."""
    old, new_before, new_after = (0.92, 0.15, 0.80) if quick else (0.95, 0.10, 0.85)
    return (
        ("before", FIRST_TOPICS, old, 1.0),
        ("before", LATER_TOPICS, 0.0, new_before),
        ("after", FIRST_TOPICS, old, 1.0),
        ("after", LATER_TOPICS, new_after, 1.0),
    )


def _accuracy_checks(
    accuracy: Mapping[str, Mapping[str, float]], quick: bool
) -> list[tuple[bool, str]]:
    checks = []
    for when, topics, low, high in accuracy_targets(quick):
        values = [accuracy[when].get(str(NAMES.index(t))) for t in topics]
        known = [v for v in values if v is not None]
        mean = sum(known) / len(known) if known else float("nan")
        checks.append(
            (
                len(known) == len(topics) and low <= mean <= high,
                f"conditional accuracy {when} on {topics[0]} to {topics[-1]} is {mean:.3f}, "
                f"not within [{low}, {high}]",
            )
        )
    return checks
