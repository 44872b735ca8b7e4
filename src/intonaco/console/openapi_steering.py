"""The part of the console's OpenAPI that is about rollouts and what may be asked of them."""

from __future__ import annotations

from intonaco import steering
from intonaco.console.calls import MOST_REASON
from intonaco.console.schemas import (
    COUNT,
    MAYBE_NUMBER,
    MAYBE_TEXT,
    NUMBER,
    ROLLOUT,
    TEXT,
    TRUTH,
    Json,
    all_of,
    list_of,
    ref,
)

ERRORS = {
    400: "The request is wrong, or for another host.",
    401: "There is no bearer token and nobody is signed in, or nobody has this token.",
    403: "This person is no operator, or the request comes from another site's page.",
    404: "There is no such thing.",
    405: "The method is not allowed.",
    409: "It would be refused now, for the reason that is said; or the key was for something else.",
    413: "The body is too large.",
    415: "The body must be JSON.",
    500: "The console failed.",
    503: "No controller runs, or the ledger cannot be read now.",
}
KEY = r"^[A-Za-z0-9_.:-]{8,128}$"

SCHEMAS: Json = {
    "RolloutCard": all_of(
        **ROLLOUT,
        shares=TEXT,
        step_since=NUMBER,
        stuck_since=MAYBE_NUMBER,
        course={
            "type": "array",
            "items": all_of(
                at=NUMBER,
                shares={"type": "object", "additionalProperties": NUMBER},
                shadow=NUMBER,
            ),
        },
        proof={"type": "array", "items": all_of(metric=TEXT, text=TEXT)},
        deadlines={"type": "array", "items": all_of(at=NUMBER, text=TEXT)},
        events=list_of("Event"),
        acts=list_of("Act"),
    ),
    "Act": {
        **all_of(command=TEXT, consequence=TEXT, refused=MAYBE_TEXT, wants_reason=TRUTH, url=TEXT),
        "description": "What may be asked for, what happens then, and why it would be refused now.",
    },
    "Command": all_of(
        command=COUNT,
        kind=TEXT,
        actor=TEXT,
        at=NUMBER,
        outcome={"anyOf": [all_of(ok=TRUTH, text=TEXT), {"type": "null"}]},
    ),
    "Person": all_of(name=TEXT, role=TEXT),
}


def paths() -> Json:
    return {
        "/api/rollouts": _get("rollouts", "Rollouts, newest first", list_of("Rollout"), _LIMIT),
        "/api/rollouts/{rollout_id}": _get(
            "rollout",
            "One with its shares, its proof, its deadlines and what may be asked of it",
            ref("RolloutCard"),
            _path("rollout_id"),
        ),
        "/api/rollouts/{rollout_id}/{command}": _ask(
            "steerRollout",
            "Steer a rollout",
            _path("rollout_id"),
            _path("command", steering.ROLLOUT_COMMANDS),
        ),
        "/api/updates/{update_id}/{command}": _ask(
            "decideUpdate",
            "Let a staged release go out, or not",
            _path("update_id"),
            _path("command", steering.UPDATE_COMMANDS),
        ),
        "/api/rollback": _ask(
            "rollback",
            "Back to the champion before, or to an earlier one",
            to={"type": ["string", "null"]},
            required=True,
        ),
        "/api/freeze": _ask("freeze", "No update starts and no rollout advances"),
        "/api/unfreeze": _ask("unfreeze", "Let them go on"),
        "/api/commands/{number}": _get(
            "command",
            "What came of what was asked for; `outcome` is null while it waits",
            ref("Command"),
            _path("number"),
        ),
        "/api/session": {
            "get": {
                "operationId": "session",
                "summary": "Who is signed in on the pages",
                "responses": {
                    "200": _json("The person.", ref("Person")),
                    **_errors(400, 401, 405, 500, 503),
                },
            },
            "post": {
                "operationId": "signIn",
                "summary": "Hand a token over for the cookie of the pages",
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/json": {
                            "schema": {
                                "type": "object",
                                "required": ["token"],
                                "properties": {"token": TEXT},
                                "additionalProperties": False,
                            }
                        }
                    },
                },
                "responses": {
                    "200": _json("The person.", ref("Person")),
                    **_errors(400, 401, 405, 413, 415, 500, 503),
                },
            },
            "delete": {
                "operationId": "signOut",
                "summary": "Take the cookie away",
                "responses": {"204": {"description": "Done."}, **_errors(400, 405, 500, 503)},
            },
        },
        "/rollouts/{rollout_id}": _page("rolloutPage", "A rollout"),
        "/partials/rollouts/{rollout_id}": _page("rolloutPartial", "Its inner part"),
    }


def _ask(
    name: str, summary: str, *parameters: Json, required: bool = False, **fields: Json
) -> Json:
    """``required``: the reason."""
    key = {
        "name": "idempotency-key",
        "in": "header",
        "description": "The same key of the same person asks once.",
        "schema": {"type": "string", "pattern": KEY},
    }
    reason = {"type": "string", "maxLength": MOST_REASON}
    schema: Json = {
        "type": "object",
        "properties": {**fields, "reason": reason},
        "additionalProperties": False,
    }
    if required:
        schema["required"] = ["reason"]
    missing = (404,) if parameters or fields else ()
    reasoned = ", ".join(steering.REASONED)
    return {
        "post": {
            "operationId": name,
            "summary": summary,
            "description": "By people with the role operator. It is written down and carried out by"
            " the controller; `/api/commands/{number}` says what came of it. A reason is needed"
            f" for {reasoned}.",
            "security": [{"person": []}],
            "parameters": [*parameters, key],
            "requestBody": {
                "required": required,
                "content": {"application/json": {"schema": schema}},
            },
            "responses": {
                "202": _json("It is written down.", all_of(command=COUNT)),
                **_errors(400, 401, 403, *missing, 405, 409, 413, 415, 500, 503),
            },
        }
    }


def _get(name: str, summary: str, schema: Json, *parameters: Json) -> Json:
    missing = (404,) if any(p["in"] == "path" for p in parameters) else ()
    return {
        "get": {
            "operationId": name,
            "summary": summary,
            "parameters": list(parameters),
            "responses": {
                "200": _json("The facts.", schema),
                **_errors(400, *missing, 405, 500, 503),
            },
        }
    }


def _page(name: str, summary: str) -> Json:
    errors = {str(s): {"description": ERRORS[s], "content": {"text/plain": {}}} for s in _PAGE}
    html = {"description": "HTML.", "content": {"text/html": {}}}
    return {
        "get": {
            "operationId": name,
            "summary": summary,
            "parameters": [_path("rollout_id")],
            "responses": {"200": html, **errors},
        }
    }


def _errors(*statuses: int) -> Json:
    return {str(s): _json(ERRORS[s], ref("Error")) for s in statuses}


def _json(text: str, schema: Json) -> Json:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _path(name: str, known: tuple[str, ...] = ()) -> Json:
    schema: Json = {"enum": list(known)} if known else TEXT
    return {"name": name, "in": "path", "required": True, "schema": schema}


_PAGE = (400, 404, 405, 500, 503)
_LIMIT: Json = {
    "name": "limit",
    "in": "query",
    "description": "How many at most.",
    "schema": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 1000},
}
