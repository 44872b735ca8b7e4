"""What the console serves, as an OpenAPI 3.1 document. A test holds every answer against it."""

from __future__ import annotations

import intonaco
from intonaco.console import openapi_review, openapi_steering
from intonaco.console.calls import MOST_REASON
from intonaco.console.schemas import (
    COUNT,
    OBJECT,
    SCHEMAS,
    TEXT,
    TRUTH,
    Json,
    all_of,
    list_of,
    ref,
)
from intonaco.readmodel.findings import MOST, ROUNDS

MOST_ID = 2**63 - 1  # of an event: a larger number is none that SQLite knows
MAX_EVENTS = 1000
MAX_LISTED = MOST  # findings, updates, releases, rounds of probes
MOST_MINUTES = 31 * 24 * 60  # windows of traffic are kept for 31 days
PAGES = ("overview", "findings", "updates", "rollouts", "curation", "reviews", "releases", "events")

ERRORS = {
    400: "The request is wrong, or for another host.",
    401: "There is no bearer token, or nobody has it.",
    403: "This person may not (the role is another), or `decision.triggers.webhook` is off.",
    404: "There is no such thing.",
    409: "It does not wait for that.",
    405: "The method is not allowed.",
    413: "The body is too large.",
    500: "The console failed.",
    503: "The ledger cannot be read now.",
}


def document() -> Json:
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Intonaco's console",
            "version": intonaco.__version__,
            "description": "What is to be seen of a service, and what may be asked for: an update "
            "(`/api/trigger`), what of live traffic may be learnt from "
            "(`/api/curation/{update_id}/word`), votes in reviews, and the steering of rollouts, "
            "updates and the service by people with the role operator. Times are seconds since the "
            "epoch; a number that is not finite is null.",
        },
        "components": {
            "schemas": SCHEMAS | openapi_review.SCHEMAS | openapi_steering.SCHEMAS,
            "securitySchemes": {"person": {"type": "http", "scheme": "bearer"}},
        },
        "paths": {
            "/api/snapshot": _api("snapshot", "All there is to see now", ref("Snapshot")),
            "/api/signals": _api("signals", "Signals and their course", list_of("Signal")),
            "/api/events": _api(
                "events",
                "Events in order, without `after` the newest",
                list_of("Event"),
                _query("after", 0, MOST_ID, 0, "Only events with a higher id."),
                _query("limit", 1, MAX_EVENTS, 200, "How many at most."),
            ),
            "/api/releases": _api(
                "releases", "Releases, newest first", list_of("ListedRelease"), _LIMIT
            ),
            "/api/releases/{release_id}": _api(
                "release", "Where a release comes from", ref("Lineage"), _path("release_id")
            ),
            "/api/updates": _api("updates", "Updates, newest first", list_of("Update"), _LIMIT),
            "/api/traffic": _api(
                "traffic",
                "Times, failures, refusals, use of the batches, cost",
                ref("Traffic"),
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
            "/api/findings": _api(
                "findings", "Findings, newest first", list_of("ListedFinding"), _LIMIT
            ),
            "/api/findings/{finding_id}": _api(
                "finding",
                "What moved, since when, why, and what is done about it",
                ref("Card"),
                _path("finding_id"),
            ),
            "/api/probes": _api(
                "probes",
                "The last rounds of the probes",
                ref("Probes"),
                _query("limit", 1, MAX_LISTED, ROUNDS, "How many rounds at most."),
            ),
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
                        "202": _json("It is written down.", all_of(command=COUNT)),
                        **_errors("application/json", 400, 401, 403, 405, 413, 500, 503),
                    },
                }
            },
            **openapi_review.paths(),
            **openapi_steering.paths(),
            "/api/curation": _api(
                "proposals", "What is proposed as training data", list_of("ListedProposal")
            ),
            "/api/curation/{update_id}": _api(
                "proposal",
                "What is proposed for an update, item by item",
                ref("Proposal"),
                _path("update_id"),
            ),
            "/api/curation/{update_id}/word": {
                "post": {
                    "operationId": "curate",
                    "summary": "Say what of it may be used; what comes of it is among the events",
                    "security": [{"person": []}],
                    "parameters": [_path("update_id")],
                    "requestBody": {
                        "required": True,
                        "content": {"application/json": {"schema": _WORD}},
                    },
                    "responses": {
                        "202": _json("It is written down.", all_of(command=COUNT)),
                        **_errors("application/json", 400, 401, 403, 404, 405, 409, 413, 500, 503),
                    },
                }
            },
            "/curation/{update_id}": _page(
                "proposalPage", "What is proposed for an update", _path("update_id")
            ),
            "/proposed/{path}": {
                "get": {
                    "operationId": "proposedPicture",
                    "summary": "A picture that is proposed",
                    "parameters": [_path("path")],
                    "responses": {
                        "200": _content("The picture.", "image/png", "image/jpeg", "image/webp"),
                        **_errors("text/plain", 400, 404, 405, 500),
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
        return {str(s): _json(ERRORS[s], ref("Error")) for s in statuses}
    return {str(s): _content(ERRORS[s], media) for s in statuses}


def _json(text: str, schema: Json) -> Json:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _content(text: str, *media: str) -> Json:
    return {"description": text, "content": {m: {} for m in media}}


def _path(name: str, known: tuple[str, ...] = ()) -> Json:
    schema: Json = {"enum": list(known)} if known else TEXT
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _query(name: str, least: int, most: int, default: int, text: str) -> Json:
    schema = {"type": "integer", "minimum": least, "maximum": most, "default": default}
    return {"name": name, "in": "query", "description": text, "schema": schema}


_LIMIT = _query("limit", 1, MAX_LISTED, MAX_LISTED, "How many at most.")
_WORD: Json = {
    "type": "object",
    "required": ["approve"],
    "properties": {
        "approve": TRUTH,
        "drop": {"type": "array", "items": TEXT, "maxItems": 5000},
        "reason": {"type": "string", "maxLength": MOST_REASON},
    },
    "additionalProperties": False,
}
