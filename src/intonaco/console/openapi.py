"""What the console serves, as an OpenAPI 3.1 document. A test holds every answer against it."""

from __future__ import annotations

from typing import Any

import intonaco
from intonaco.console.calls import MOST_REASON
from intonaco.types import Phase, RolloutStatus, StepKind

Json = dict[str, Any]

MOST_ID = 2**63 - 1  # of an event: a larger number is none that SQLite knows
MAX_EVENTS = 1000
MOST_MINUTES = 31 * 24 * 60  # windows of traffic are kept for 31 days
PAGES = ("overview", "findings", "updates", "releases", "events")

ERRORS = {
    400: "The request is wrong, or for another host.",
    401: "There is no bearer token, or nobody has it.",
    403: "This person may not, or `decision.triggers.webhook` is off.",
    404: "There is no such thing.",
    405: "Nothing can be changed here: the console only reads.",
    413: "The body is too large.",
    500: "The console failed.",
    503: "The ledger cannot be read now.",
}
TEXT: Json = {"type": "string"}
MAYBE_TEXT: Json = {"type": ["string", "null"]}
NUMBER: Json = {"type": "number"}
MAYBE_NUMBER: Json = {"type": ["number", "null"]}
COUNT: Json = {"type": "integer", "minimum": 0}
TRUTH: Json = {"type": "boolean"}
OBJECT: Json = {"type": "object"}
STATE: Json = {"enum": ["skipped", "done", "current", "stopped", "to_come"]}


def document() -> Json:
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Intonaco's console",
            "version": intonaco.__version__,
            "description": "What is to be seen of a service. Nothing can be changed but by "
            "`/api/trigger`, which asks for an update. Times are "
            "seconds since the epoch; a number that is not finite is null.",
        },
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {"person": {"type": "http", "scheme": "bearer"}},
        },
        "paths": {
            "/api/snapshot": _api("snapshot", "All there is to see now", _ref("Snapshot")),
            "/api/signals": _api("signals", "Signals and their course", _list("Signal")),
            "/api/events": _api(
                "events",
                "Events in order, without `after` the newest",
                _list("Event"),
                _query("after", 0, MOST_ID, 0, "Only events with a higher id."),
                _query("limit", 1, MAX_EVENTS, 200, "How many at most."),
            ),
            "/api/releases": _api("releases", "Releases, newest first", _list("ListedRelease")),
            "/api/releases/{release_id}": _api(
                "release", "Where a release comes from", _ref("Lineage"), _path("release_id")
            ),
            "/api/updates": _api("updates", "Updates, newest first", _list("Update")),
            "/api/traffic": _api(
                "traffic",
                "Times, failures, refusals, use of the batches, cost",
                _ref("Traffic"),
                _query("minutes", 1, MOST_MINUTES, 60, "How far back."),
            ),
            "/metrics": {
                "get": {
                    "operationId": "metrics",
                    "summary": "Signals and traffic in Prometheus' text format",
                    "responses": {
                        "200": _content("Gauges and counters.", "text/plain"),
                        **_errors("text/plain", 400, 405, 500, 503),
                    },
                }
            },
            "/api/findings": _api("findings", "Findings, newest first", _list("ListedFinding")),
            "/api/findings/{finding_id}": _api(
                "finding",
                "What moved, since when, why, and what is done about it",
                _ref("Card"),
                _path("finding_id"),
            ),
            "/api/probes": _api("probes", "The last rounds of the probes", _ref("Probes")),
            "/api/trigger": {
                "post": {
                    "operationId": "trigger",
                    "summary": "Ask for an update: it is decided on once no call has come for a "
                    "while, and what comes of it is among the events",
                    "security": [{"person": []}],
                    "requestBody": {
                        "content": {
                            "application/json": {
                                "schema": {
                                    "type": "object",
                                    "properties": {
                                        "reason": {"type": "string", "maxLength": MOST_REASON}
                                    },
                                    "additionalProperties": False,
                                }
                            }
                        }
                    },
                    "responses": {
                        "202": _json("It is written down.", _all(command=COUNT)),
                        **_errors("application/json", 400, 401, 403, 405, 413, 500, 503),
                    },
                }
            },
            "/": _page("overviewPage", "The overview"),
            "/{page}": _page("page", "A page", _path("page", PAGES)),
            "/partials/{page}": _page("partial", "Its inner part", _path("page", PAGES)),
            "/releases/{release_id}": _page("releasePage", "A release", _path("release_id")),
            "/findings/{finding_id}": _page("findingPage", "A finding", _path("finding_id")),
            "/evaluations/{update_id}": _page(
                "evaluationPage", "The report of an update's evaluation", _path("update_id")
            ),
            "/images/{path}": {
                "get": {
                    "operationId": "image",
                    "summary": "A picture of the service",
                    "parameters": [_path("path")],
                    "responses": {
                        "200": _content("The picture.", "image/png", "image/jpeg", "image/webp"),
                        **_errors("text/plain", 400, 404, 405, 500),
                    },
                }
            },
            "/static/{path}": {
                "get": {
                    "operationId": "asset",
                    "summary": "A script, a style or a picture of the pages",
                    "parameters": [_path("path") | {"example": "console.js"}],
                    "responses": {
                        "200": _content("The file.", "*/*"),
                        "206": _content("The parts that `range` asks for.", "*/*"),
                        "304": {"description": "It is as it was."},
                        "416": _content("There is no such range.", "text/plain"),
                        **_errors("text/plain", 400, 404, 405, 500),
                    },
                }
            },
            "/livez": {
                "get": {
                    "operationId": "live",
                    "summary": "Alive",
                    "responses": {
                        "200": _content("ok", "text/plain"),
                        **_errors("text/plain", 400, 405, 500),
                    },
                }
            },
            "/openapi.json": {
                "get": {
                    "operationId": "openapi",
                    "summary": "This",
                    "responses": {
                        "200": _json("It.", OBJECT),
                        **_errors("application/json", 400, 405, 500),
                    },
                }
            },
        },
    }


def _api(name: str, summary: str, schema: Json, *parameters: Json) -> Json:
    missing = (404,) if any(p["in"] == "path" for p in parameters) else ()
    return {
        "get": {
            "operationId": name,
            "summary": summary,
            "parameters": list(parameters),
            "responses": {
                "200": _json("The facts.", schema),
                **_errors("application/json", 400, *missing, 405, 500, 503),
            },
        }
    }


def _page(name: str, summary: str, *parameters: Json) -> Json:
    missing = (404,) if parameters else ()
    return {
        "get": {
            "operationId": name,
            "summary": summary,
            "parameters": list(parameters),
            "responses": {
                "200": _content("HTML.", "text/html"),
                **_errors("text/plain", 400, *missing, 405, 500, 503),
            },
        }
    }


def _errors(media: str, *statuses: int) -> Json:
    if media == "application/json":
        return {str(s): _json(ERRORS[s], _ref("Error")) for s in statuses}
    return {str(s): _content(ERRORS[s], media) for s in statuses}


def _json(text: str, schema: Json) -> Json:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _content(text: str, *media: str) -> Json:
    return {"description": text, "content": {m: {} for m in media}}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _maybe(name: str) -> Json:
    return {"anyOf": [_ref(name), {"type": "null"}]}


def _list(name: str) -> Json:
    return {"type": "array", "items": _ref(name)}


def _path(name: str, known: tuple[str, ...] = ()) -> Json:
    schema: Json = {"enum": list(known)} if known else TEXT
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _query(name: str, least: int, most: int, default: int, text: str) -> Json:
    schema = {"type": "integer", "minimum": least, "maximum": most, "default": default}
    return {"name": name, "in": "query", "description": text, "schema": schema}


def _all(**properties: Json) -> Json:
    """An object that has all of these, and perhaps more."""
    return {"type": "object", "required": list(properties), "properties": properties}


_CARD: Json = {
    "id": TEXT,
    "short": TEXT,
    "known": TRUTH,
    "since": MAYBE_NUMBER,
    "why": TEXT,
    "tenures": {"type": "array", "items": OBJECT},
}
_PLAN = _all(
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
        "items": _all(phase=TEXT, state=STATE, seconds=MAYBE_NUMBER),
    },
    "candidates": {"type": "array", "items": OBJECT},
}
_JOB = _all(
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
_STEP = _all(
    kind={"enum": [str(k) for k in StepKind]},
    weight=NUMBER,
    state=STATE,
    min_seconds=NUMBER,
    min_units=COUNT,
    seconds=MAYBE_NUMBER,
    units={"type": ["integer", "null"]},
    decision=TEXT,
)
_ARM = _all(
    name=TEXT,
    role=TEXT,
    release=TEXT,
    short=TEXT,
    weight=NUMBER,
    effective=MAYBE_NUMBER,
    shadow=TRUTH,
)
_CELL = _all(
    release=TEXT,
    arm=TEXT,
    requests=COUNT,
    images=COUNT,
    times={
        "type": "object",
        "additionalProperties": _all(
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

SCHEMAS: Json = {
    "Error": _all(error=_all(message=TEXT, type=TEXT, param=MAYBE_TEXT, code=MAYBE_TEXT)),
    "Event": _all(
        event_id=COUNT,
        at=NUMBER,
        service_id=TEXT,
        kind=TEXT,
        subject=TEXT,
        actor=TEXT,
        text=TEXT,
        data=OBJECT,
    ),
    "Signal": _all(
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
    "Release": _all(**_CARD),
    "ListedRelease": _all(
        **_CARD,
        roles={"type": "array", "items": {"enum": ["champion", "challenger", "previous"]}},
        candidate=MAYBE_TEXT,
        verdict=MAYBE_TEXT,
        registry_version=MAYBE_TEXT,
    ),
    "Lineage": _all(
        release=_ref("Release"),
        ancestors={"type": "array", "items": TEXT},
        update=_maybe("Update"),
        run=_all(recipe=MAYBE_TEXT, job=MAYBE_TEXT, code=MAYBE_TEXT),
        candidate={"type": ["object", "null"]},
        dataset={"type": ["object", "null"]},
        diagnosis={"type": ["object", "null"]},
        findings=_list("Finding"),
        traffic={"type": "array", "items": OBJECT},
    ),
    "Traffic": {
        **_all(
            level={"enum": ["minute", "hour", "day"]},
            requests=COUNT,
            failed=COUNT,
            refused={"type": "object", "additionalProperties": COUNT},
            demand=NUMBER,
            throughput=NUMBER,
            capacity=MAYBE_NUMBER,
            currency=TEXT,
            cells={"type": "array", "items": _CELL},
            course={"type": "array", "items": _all(at=NUMBER, seconds=COUNT, requests=COUNT)},
        ),
        "description": "Seconds; images and requests a second.",
    },
    "Update": _all(**_UPDATE),
    "RunningUpdate": _all(
        **_UPDATE,
        in_phase_seconds=NUMBER,
        jobs={"type": "array", "items": _JOB},
        waiting_for=MAYBE_TEXT,
    ),
    "Rollout": _all(
        id=TEXT,
        update=TEXT,
        champion=MAYBE_TEXT,
        challenger=TEXT,
        status={"enum": [str(s) for s in RolloutStatus]},
        reason=TEXT,
        step=COUNT,
        steps={"type": "array", "items": _STEP},
        history={"type": "array", "items": OBJECT},
        assessments={"type": "array", "items": OBJECT},
        alpha=NUMBER,
        attempt=COUNT,
        started_at=MAYBE_NUMBER,
        ended_at=MAYBE_NUMBER,
    ),
    "Routing": _all(
        epoch=COUNT,
        reason=TEXT,
        followed={"type": ["boolean", "null"]},
        arms={"type": "array", "items": _ARM},
    ),
    "Gateway": _all(
        epoch=COUNT,
        salt=TEXT,
        weights={"type": "object", "additionalProperties": NUMBER},
        in_flight={"type": "object", "additionalProperties": COUNT},
        trips={"type": "array", "items": OBJECT},
        requests=COUNT,
        failed=COUNT,
    ),
    "Finding": _all(**_FINDING),
    "ListedFinding": _all(
        **_FINDING,
        headline=TEXT,
        cause=MAYBE_TEXT,
        action=MAYBE_TEXT,
        update={"type": ["object", "null"]},
    ),
    "Card": _all(
        finding=_ref("Finding"),
        headline=TEXT,
        seconds_to_find=NUMBER,
        nearest={
            "anyOf": [_all(at=NUMBER, text=TEXT, seconds_before=NUMBER), {"type": "null"}],
            "description": "The change of what serves that lies nearest; negative: after it.",
        },
        diagnosis={"type": ["object", "null"]},
        excluded={"type": "object", "additionalProperties": TEXT},
        plan={"type": ["object", "null"]},
        also_planned={"type": "array", "items": _all(cause=TEXT, action=TEXT, reason=TEXT)},
        update={"type": ["object", "null"]},
        others={"type": "array", "items": OBJECT},
        evidence={"type": "object", "additionalProperties": {"type": "array"}},
        probes={"type": "array", "items": OBJECT},
        parts={"type": "array", "items": OBJECT},
        kinds={"type": "object", "additionalProperties": COUNT},
        shares={"type": "object", "additionalProperties": NUMBER},
    ),
    "Probes": _all(
        every_s=NUMBER,
        next_check_at=MAYBE_NUMBER,
        probes={"type": "array", "items": _all(key=TEXT, prompt=TEXT)},
        rounds={
            "type": "array",
            "items": _all(
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
    "Budget": _all(
        amount=NUMBER,
        currency=TEXT,
        per_days=NUMBER,
        since=NUMBER,
        settled=NUMBER,
        reserved=NUMBER,
        left=NUMBER,
    ),
    "Process": _all(
        name=TEXT,
        pid={"type": ["integer", "null"]},
        url=MAYBE_TEXT,
        started=MAYBE_NUMBER,
        alive=TRUTH,
        facts=OBJECT,
    ),
    "Snapshot": _all(
        service=TEXT,
        model=TEXT,
        now=NUMBER,
        frozen=TRUTH,
        releases=_all(
            champion=_maybe("Release"), challenger=_maybe("Release"), previous=_maybe("Release")
        ),
        routing=_maybe("Routing"),
        gateway=_maybe("Gateway"),
        update=_maybe("RunningUpdate"),
        rollout=_maybe("Rollout"),
        last_rollout=_maybe("Rollout"),
        signals=_list("Signal"),
        findings=_list("Finding"),
        budget=_ref("Budget"),
        events=_list("Event"),
        processes=_list("Process"),
    ),
}
