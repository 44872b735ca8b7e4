"""Findings as a person on call reads them: what moved, since when, why, what is done about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from intonaco.codec import as_json
from intonaco.config import Config
from intonaco.decision.incidents import HEADLINE
from intonaco.errors import NotFound
from intonaco.ledger import Ledger
from intonaco.monitoring.explanation import moved_share, quality
from intonaco.monitoring.probes import ProbeSet
from intonaco.readmodel.plain import Facts, plain
from intonaco.readmodel.signals import finding_facts, signal_history
from intonaco.types import Cause, Diagnosis, Event, Finding, Plan, ProbeRound, SignalStatus, Update

POINTS = 240  # of the evidence's course
MARGIN = 1.5  # how much of it is shown before the change, in times from change to finding
NEAR_SECONDS = 6 * 3600.0  # a change of what serves this far from a finding is worth naming
ROUNDS = 20
MOST = 1000  # findings
RARE = 0.02  # share of requests


def findings(ledger: Ledger, limit: int = MOST) -> list[Facts]:
    """The last findings, newest first, with what came of each: {…, "cause", "action", "update"}."""
    judged = _judged(ledger)
    facts = []
    for finding in ledger.newest(Finding, limit):
        diagnosis, plan = judged.get(finding.finding_id, (None, None))
        facts.append(
            finding_facts(finding)
            | {
                "headline": headline(finding),
                "cause": diagnosis.cause if diagnosis else None,
                "action": plan.action if plan else None,
                "update": _update_of(ledger, plan),
            }
        )
    found: list[Facts] = plain(facts)
    return found


def finding_card(ledger: Ledger, config: Config, finding_id: str) -> Facts:
    """One finding with all that a person needs to judge it. Raises NotFound.

    "finding"; "headline": it in a few words; "seconds_to_find" from the change to the finding;
    "nearest": the change of what serves that lies nearest to the change, or None; "diagnosis" and
    "plan" or None; "excluded": {cause: why it is not it}; "others": the other signals at that time;
    "evidence": columns "at", "evidence", or empty; "probes": for a probe's finding, each changed
    probe with its pictures; "parts": which requests hold the change; "kinds": of errors, how many;
    "shares": what the evidence lies on."""
    finding = ledger.find(Finding, finding_id)
    if finding is None:
        raise NotFound(f"no finding {finding_id}", hint="`intonaco drift show` lists them")
    diagnosis, plan = _judged(ledger).get(finding.finding_id, (None, None))
    points = ledger.signal_points(limit=2000)
    judged: Facts | None = None
    if diagnosis is not None:
        told = as_json(diagnosis)
        names = ("diagnosis_id", "at", "cause", "reason", "moved_share", "quality_gap")
        judged = {n: told[n] for n in names}
        judged |= {"factor": told.get("factor"), "also": told.get("also") or []}
    facts: Facts = plain(
        {
            "finding": finding_facts(finding),
            "headline": headline(finding),
            "seconds_to_find": max(0.0, finding.at - finding.since_at),
            "nearest": _nearest(ledger, finding.since_at),
            "diagnosis": judged,
            "excluded": (as_json(diagnosis).get("excluded") or {}) if diagnosis else {},
            "plan": _plan(plan) if plan else None,
            "also_planned": _besides(ledger, diagnosis),
            "update": _update_of(ledger, plan),
            "others": _others(points, finding),
            "evidence": _evidence(points, finding),
            "probes": _probes(config, finding),
            "parts": finding.facts.get("parts", []),
            "kinds": finding.facts.get("kinds", {}),
            "shares": finding.facts.get("evidence_shares", {}),
        }
    )
    return facts


def headline(finding: Finding) -> str:
    """What happened in one line, without prompts."""
    moved = [c for c in finding.clusters if c.moved]
    if finding.of == "prompt_embedding" and moved:
        new = all(c.share_before < RARE for c in moved)
        asked = "what was rarely asked for" if new else "a few things more than"
        said = f"{moved_share(moved):.0%} of requests are now for {asked} before"
        inside, outside = quality(moved)
        if inside is None or outside is None:
            return f"{said}; quality there is not known"
        return f"{said}; they score {inside:.2f}, others {outside:.2f}"
    if finding.of == "probe":
        changed, total = len(finding.facts["changed"]), finding.facts["probes"]
        return (
            f"{changed} of {total} probes changed under the same release: the model or its "
            "environment did, not the users"
        )
    quoted = {p for c in finding.clusters for p in c.sample_prompts}
    text = finding.text.partition(". ")[0].rstrip(".") or f"{finding.signal} changed"
    return f"{finding.signal} changed" if any(p in text for p in quoted) else text


def probe_rounds(ledger: Ledger, config: Config, limit: int = ROUNDS) -> Facts:
    """{"every_s", "next_check_at", "probes": [{"key", "prompt"}], "rounds": newest first}."""
    state = ledger.setting("probes") or {}
    monitoring = config.monitoring
    every = monitoring.probe_every_s if monitoring.probes else 0.0
    facts: Facts = plain(
        {
            "every_s": every,
            "next_check_at": state.get("next_check_at") if every else None,
            "probes": [
                {"key": p.key, "prompt": p.prompt} for p in ProbeSet(monitoring.probes).probes
            ],
            "rounds": [as_json(r) for r in ledger.newest(ProbeRound, limit)],
        }
    )
    return facts


def _made(ledger: Ledger) -> dict[tuple[str, Cause], Plan]:
    """The last plan of each incident for each of its causes."""
    incidents = {d.diagnosis_id: d.incident for d in ledger.all(Diagnosis)}
    return {
        (incidents.get(p.diagnosis_id) or p.diagnosis_id, p.cause): p
        for p in ledger.all(Plan)
        if p.diagnosis_id
    }


def _besides(ledger: Ledger, diagnosis: Diagnosis | None) -> list[Facts]:
    """What is planned for the other causes of an incident."""
    if diagnosis is None:
        return []
    made, incident = _made(ledger), diagnosis.incident or diagnosis.diagnosis_id
    plans = [(cause, made.get((incident, cause))) for cause in diagnosis.also]
    return [{"cause": cause, "action": p.action, "reason": p.reason} for cause, p in plans if p]


def _judged(ledger: Ledger) -> dict[str, tuple[Diagnosis, Plan | None]]:
    """Per finding its incident's last diagnosis, and the plan made for that cause: what was planned
    before is not planned again when findings join."""
    plans = _made(ledger)
    return {
        f.finding_id: (d, plans.get((d.incident or d.diagnosis_id, d.cause)))
        for d in (*ledger.all(Diagnosis), *ledger.all(Diagnosis, status=HEADLINE))
        for f in d.findings
    }


def _plan(plan: Plan) -> Facts:
    return {
        "id": plan.plan_id,
        "action": plan.action,
        "reason": plan.reason,
        "recipes": plan.recipes,
        "estimated_cost": plan.estimated_cost,
        "expected_benefit": plan.expected_benefit,
        "budget_left": plan.budget_left,
        "currency": plan.currency,
    }


def _update_of(ledger: Ledger, plan: Plan | None) -> Facts | None:
    if plan is None or not plan.action.makes_update:
        return None
    found = next((u for u in ledger.all(Update) if u.plan.plan_id == plan.plan_id), None)
    return None if found is None else {"id": found.update_id, "phase": found.phase}


def _nearest(ledger: Ledger, at: float) -> Facts | None:
    """The change of what serves that lies nearest to a time, and by how much before it (negative:
    after)."""
    events: Iterable[Event] = [
        event
        for kind in ("champion", "rollout", "release")
        for event in ledger.events(kind=kind, limit=500, newest=True)
    ]
    changes = [(e.at, e.text) for e in events]
    changes += [(t.since, f"{t.release_id[:10]} became champion") for t in ledger.tenures()]
    near = [c for c in changes if abs(at - c[0]) <= NEAR_SECONDS]
    if not near:
        return None
    when, text = min(near, key=lambda c: abs(at - c[0]))
    return {"at": when, "text": text, "seconds_before": at - when}


Points = Sequence[tuple[float, Sequence[SignalStatus]]]


def _others(points: Points, finding: Finding) -> list[Facts]:
    """The other signals when the finding was made."""
    then = next((statuses for at, statuses in reversed(points) if at <= finding.at + 1.0), None)
    return [as_json(s) for s in then or () if s.signal != finding.signal]


def _evidence(points: Points, finding: Finding) -> Facts:
    """The course of the evidence around the finding; empty where it is not kept any more."""
    start = finding.since_at - max(60.0, MARGIN * (finding.at - finding.since_at))
    around = [(at, statuses) for at, statuses in points if start <= at <= finding.at + 5.0]
    course: Mapping[str, Facts] = signal_history(around, POINTS)
    columns = course.get(finding.signal, {})
    return {name: columns.get(name, []) for name in ("at", "evidence", "value")}


def _probes(config: Config, finding: Finding) -> list[Facts]:
    if finding.of != "probe":
        return []
    prompts = {p.key: p.prompt for p in ProbeSet(config.monitoring.probes).probes}
    f = finding.facts
    return [
        {
            "key": key,
            "prompt": prompts.get(key, ""),
            "distance": f["distances"].get(key),
            "measure": f["measures"].get(key),
            "limit": f["limits"].get(key),
            "images": f["images"].get(key, []),
        }
        for key in f.get("changed", [])
    ]
