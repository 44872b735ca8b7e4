"""What the console's facts look like, as JSON Schemas of its OpenAPI document."""

from __future__ import annotations

from typing import Any

from intonaco.types import Phase, RolloutStatus, StepKind

Json = dict[str, Any]

TEXT: Json = {"type": "string"}
MAYBE_TEXT: Json = {"type": ["string", "null"]}
NUMBER: Json = {"type": "number"}
MAYBE_NUMBER: Json = {"type": ["number", "null"]}
COUNT: Json = {"type": "integer", "minimum": 0}
TRUTH: Json = {"type": "boolean"}
OBJECT: Json = {"type": "object"}
STATE: Json = {"enum": ["skipped", "done", "current", "stopped", "to_come"]}


def ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def maybe(name: str) -> Json:
    return {"anyOf": [ref(name), {"type": "null"}]}


def list_of(name: str) -> Json:
    return {"type": "array", "items": ref(name)}


def all_of(**properties: Json) -> Json:
    """An object that has all of these, and perhaps more."""
    return {"type": "object", "required": list(properties), "properties": properties}


_PROPOSAL: Json = {
    "update_id": TEXT,
    "phase": {"type": ["string", "null"]},
    "at": NUMBER,
    "count": COUNT,
    "considered": COUNT,
    "min_score": MAYBE_NUMBER,
    "left_out": {"type": "object", "additionalProperties": COUNT},
    "max_generated": NUMBER,
    "consent": {"enum": ["required", "assumed"]},
    "waits": TRUTH,
    "word": {"type": ["object", "null"]},
    "prompts_shown": TRUTH,
}
_CARD: Json = {
    "id": TEXT,
    "short": TEXT,
    "known": TRUTH,
    "since": MAYBE_NUMBER,
    "why": TEXT,
    "tenures": {"type": "array", "items": OBJECT},
}
_PLAN = all_of(
    id=TEXT,
    action=TEXT,
    cause=TEXT,
    reason=TEXT,
    recipes={"type": "array", "items": TEXT},
    estimated_cost=MAYBE_NUMBER,
    expected_benefit=MAYBE_NUMBER,
    budget_left=MAYBE_NUMBER,
    currency=TEXT,
    requested_by=TEXT,
)
_UPDATE: Json = {
    "id": TEXT,
    "phase": {"enum": [str(p) for p in Phase]},
    "phase_since": NUMBER,
    "created_at": NUMBER,
    "attempt": COUNT,
    "reason": TEXT,
    "champion": MAYBE_TEXT,
    "chosen": MAYBE_TEXT,
    "rollout": MAYBE_TEXT,
    "plan": _PLAN,
    "phases": {
        "type": "array",
        "items": all_of(phase=TEXT, state=STATE, seconds=MAYBE_NUMBER),
    },
    "candidates": {"type": "array", "items": OBJECT},
}
_JOB = all_of(
    key=TEXT,
    kind=TEXT,
    name=TEXT,
    label=TEXT,
    status=TEXT,
    phase=TEXT,
    step=NUMBER,
    total=NUMBER,
    text=TEXT,
    error=MAYBE_TEXT,
)
_STEP = all_of(
    kind={"enum": [str(k) for k in StepKind]},
    text=TEXT,
    weight=NUMBER,
    state=STATE,
    min_seconds=MAYBE_NUMBER,
    min_units=COUNT,
    seconds=MAYBE_NUMBER,
    units={"type": ["integer", "null"]},
    decision=TEXT,
)
_ARM = all_of(
    name=TEXT,
    role=TEXT,
    release=TEXT,
    short=TEXT,
    weight=NUMBER,
    effective=MAYBE_NUMBER,
    shadow=TRUTH,
)
_CELL = all_of(
    release=TEXT,
    arm=TEXT,
    requests=COUNT,
    images=COUNT,
    times={
        "type": "object",
        "additionalProperties": all_of(
            count=COUNT, mean=MAYBE_NUMBER, p50=MAYBE_NUMBER, p95=MAYBE_NUMBER, p99=MAYBE_NUMBER
        ),
    },
    batch_fill=MAYBE_NUMBER,
    cost_per_image=MAYBE_NUMBER,
    peak_memory_bytes={"type": ["integer", "null"]},
)

_FINDING: Json = {
    "finding_id": TEXT,
    "signal": TEXT,
    "at": NUMBER,
    "since": COUNT,
    "since_at": NUMBER,
    "request": COUNT,
    "evidence": MAYBE_NUMBER,
    "threshold": MAYBE_NUMBER,
    "text": TEXT,
    "requests_to_detect": {"type": "integer"},
    "clusters": {"type": "array", "items": OBJECT},
}

ROLLOUT: Json = {
    "id": TEXT,
    "update": TEXT,
    "champion": MAYBE_TEXT,
    "challenger": TEXT,
    "status": {"enum": [str(s) for s in RolloutStatus]},
    "reason": TEXT,
    "notice": TEXT,
    "step": COUNT,
    "steps": {"type": "array", "items": _STEP},
    "history": {"type": "array", "items": OBJECT},
    "assessments": {"type": "array", "items": OBJECT},
    "alpha": NUMBER,
    "attempt": COUNT,
    "started_at": MAYBE_NUMBER,
    "ended_at": MAYBE_NUMBER,
    "promoted_at": MAYBE_NUMBER,
    "waiting_for": MAYBE_TEXT,
    "split": maybe("Split"),
    "baseline": COUNT,
}

SCHEMAS: Json = {
    "Error": all_of(error=all_of(message=TEXT, type=TEXT, param=MAYBE_TEXT, code=MAYBE_TEXT)),
    "ListedProposal": all_of(**_PROPOSAL),
    "Proposal": all_of(
        **_PROPOSAL,
        items={
            "type": "array",
            "items": all_of(
                id=TEXT,
                prompt=MAYBE_TEXT,
                source={"enum": ["review", "feedback", "finding"]},
                request=TEXT,
                release=TEXT,
                finding=TEXT,
                at=NUMBER,
                score=MAYBE_NUMBER,
                votes={"type": "integer"},
                consent=TRUTH,
                generated=TRUTH,
                kept=TRUTH,
                picture=TEXT,
            ),
        },
    ),
    "Event": all_of(
        event_id=COUNT,
        at=NUMBER,
        service_id=TEXT,
        kind=TEXT,
        subject=TEXT,
        actor=TEXT,
        text=TEXT,
        data=OBJECT,
    ),
    "Signal": all_of(
        signal=TEXT,
        detector=TEXT,
        armed=TRUTH,
        armed_at={"type": ["integer", "null"]},
        requests=COUNT,
        value=MAYBE_NUMBER,
        reference=MAYBE_NUMBER,
        evidence=MAYBE_NUMBER,
        threshold=MAYBE_NUMBER,
        firing=TRUTH,
        history={
            "type": "object",
            "description": "Columns of equal length; empty where the course is left out.",
            "additionalProperties": {"type": "array"},
        },
    ),
    "Release": all_of(**_CARD),
    "ListedRelease": all_of(
        **_CARD,
        roles={"type": "array", "items": {"enum": ["champion", "challenger", "previous"]}},
        candidate=MAYBE_TEXT,
        verdict=MAYBE_TEXT,
        registry_version=MAYBE_TEXT,
    ),
    "Lineage": all_of(
        release=ref("Release"),
        ancestors={"type": "array", "items": TEXT},
        update=maybe("Update"),
        run=all_of(recipe=MAYBE_TEXT, job=MAYBE_TEXT, code=MAYBE_TEXT),
        candidate={"type": ["object", "null"]},
        dataset={"type": ["object", "null"]},
        diagnosis={"type": ["object", "null"]},
        findings=list_of("Finding"),
        traffic={"type": "array", "items": OBJECT},
    ),
    "Traffic": {
        **all_of(
            level={"enum": ["minute", "hour", "day"]},
            requests=COUNT,
            failed=COUNT,
            refused={"type": "object", "additionalProperties": COUNT},
            demand=NUMBER,
            throughput=NUMBER,
            capacity=MAYBE_NUMBER,
            currency=TEXT,
            cells={"type": "array", "items": _CELL},
            course={"type": "array", "items": all_of(at=NUMBER, seconds=COUNT, requests=COUNT)},
        ),
        "description": "Seconds; images and requests a second.",
    },
    "Update": all_of(**_UPDATE),
    "RunningUpdate": all_of(
        **_UPDATE,
        in_phase_seconds=NUMBER,
        jobs={"type": "array", "items": _JOB},
        waiting_for=MAYBE_TEXT,
    ),
    "Rollout": all_of(**ROLLOUT),
    "Split": all_of(
        metric=TEXT,
        then={"enum": ["promote", "ask", "none"]},
        winner=MAYBE_TEXT,
        text=TEXT,
        arms={
            "type": "array",
            "items": all_of(
                name=TEXT,
                release=MAYBE_TEXT,
                share=NUMBER,
                state={
                    "enum": [
                        *("champion", "to_come", "compared", "taken_out"),
                        *("won", "lost", "ended"),
                    ]
                },
                units={"type": ["integer", "null"]},
                reason=TEXT,
                lacks={"type": "array", "items": TEXT},
                assessments={"type": "array", "items": OBJECT},
            ),
        },
        pairs={"type": "array", "items": OBJECT},
    ),
    "Routing": all_of(
        epoch=COUNT,
        reason=TEXT,
        followed={"type": ["boolean", "null"]},
        arms={"type": "array", "items": _ARM},
    ),
    "Gateway": all_of(
        epoch=COUNT,
        salt=TEXT,
        weights={"type": "object", "additionalProperties": NUMBER},
        in_flight={"type": "object", "additionalProperties": COUNT},
        trips={"type": "array", "items": OBJECT},
        requests=COUNT,
        failed=COUNT,
    ),
    "Finding": all_of(**_FINDING),
    "ListedFinding": all_of(
        **_FINDING,
        headline=TEXT,
        cause=MAYBE_TEXT,
        action=MAYBE_TEXT,
        update={"type": ["object", "null"]},
    ),
    "Card": all_of(
        finding=ref("Finding"),
        headline=TEXT,
        seconds_to_find=NUMBER,
        nearest={
            "anyOf": [all_of(at=NUMBER, text=TEXT, seconds_before=NUMBER), {"type": "null"}],
            "description": "The change of what serves that lies nearest; negative: after it.",
        },
        diagnosis={"type": ["object", "null"]},
        excluded={"type": "object", "additionalProperties": TEXT},
        plan={"type": ["object", "null"]},
        also_planned={"type": "array", "items": all_of(cause=TEXT, action=TEXT, reason=TEXT)},
        update={"type": ["object", "null"]},
        others={"type": "array", "items": OBJECT},
        evidence={"type": "object", "additionalProperties": {"type": "array"}},
        probes={"type": "array", "items": OBJECT},
        parts={"type": "array", "items": OBJECT},
        kinds={"type": "object", "additionalProperties": COUNT},
        shares={"type": "object", "additionalProperties": NUMBER},
    ),
    "Probes": all_of(
        every_s=NUMBER,
        next_check_at=MAYBE_NUMBER,
        probes={"type": "array", "items": all_of(key=TEXT, prompt=TEXT)},
        rounds={
            "type": "array",
            "items": all_of(
                round_id=TEXT,
                release=TEXT,
                at=NUMBER,
                why=TEXT,
                ok={"type": ["boolean", "null"]},
                changed={"type": "array", "items": TEXT},
                missing={"type": "object", "additionalProperties": TEXT},
                text=TEXT,
            ),
        },
    ),
    "Budget": all_of(
        amount=NUMBER,
        currency=TEXT,
        per_days=NUMBER,
        since=NUMBER,
        settled=NUMBER,
        reserved=NUMBER,
        left=NUMBER,
    ),
    "Process": all_of(
        name=TEXT,
        pid={"type": ["integer", "null"]},
        url=MAYBE_TEXT,
        started=MAYBE_NUMBER,
        alive=TRUTH,
        facts=OBJECT,
    ),
    "Controller": all_of(last_tick=MAYBE_NUMBER, age_s=MAYBE_NUMBER, late=TRUTH, text=TEXT),
    "Snapshot": all_of(
        service=TEXT,
        model=TEXT,
        now=NUMBER,
        frozen=TRUTH,
        releases=all_of(
            champion=maybe("Release"), challenger=maybe("Release"), previous=maybe("Release")
        ),
        routing=maybe("Routing"),
        gateway=maybe("Gateway"),
        update=maybe("RunningUpdate"),
        rollout=maybe("Rollout"),
        last_rollout=maybe("Rollout"),
        signals=list_of("Signal"),
        findings=list_of("Finding"),
        budget=ref("Budget"),
        events=list_of("Event"),
        processes=list_of("Process"),
        controller=ref("Controller"),
    ),
}
