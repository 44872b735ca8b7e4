"""The part of the console's OpenAPI document that is about reviews."""

from __future__ import annotations

from intonaco.console.schemas import (
    COUNT,
    MAYBE_NUMBER,
    MAYBE_TEXT,
    NUMBER,
    OBJECT,
    TEXT,
    TRUTH,
    Json,
    all_of,
    list_of,
    ref,
)

SIDE: Json = {"enum": ["left", "right"]}
CHOICE: Json = {"enum": ["left", "right", "tie"]}
KEY: Json = {"type": "string", "pattern": "^[A-Za-z0-9-]{8,64}$"}
INTERVAL: Json = {"type": ["array", "null"], "items": NUMBER}
HTML = "text/html"

ERRORS = {
    400: "The request is wrong, or for another host.",
    401: "There is no token or cookie of this review, or not any more.",
    403: "The token is for another role.",
    404: "There is no such review, pair or picture.",
    405: "The method is not allowed.",
    409: "The review is over, or there is nothing to take back.",
    413: "The body is too large.",
    415: "The body must be JSON.",
    500: "The console failed.",
    503: "The ledger cannot be read now.",
}


def paths() -> Json:
    """By address. Who asks shows the cookie that ``enter`` gives, or a bearer token."""
    return {
        "/api/reviews": {
            "get": _operation(
                "reviews",
                "Reviews, newest first, without what open ones say",
                {"200": _json("The facts.", list_of("ListedReview"))},
                400, 405, 500, 503,
            )
        },
        "/review/{review_id}": {
            "get": _page("reviewPage", "To vote")
        },
        "/review/{review_id}/result": {
            "get": _page("reviewResultPage", "The result, or a field for the token of a lead")
        },
        "/review/{review_id}/live": {
            "get": _page("reviewLive", "The result's inner part", 401, 403)
        },
        "/review/{review_id}/pictures/{task}/{side}": {
            "get": _operation(
                "reviewPicture",
                "A picture of a pair of the asking reviewer's",
                {"200": {"description": "It.", "content": {"image/png": {}}}},
                400, 401, 403, 404, 405, 500, 503,
                parameters=("task", "side"),
                media="text/plain",
            )
        },
        "/api/review/{review_id}/enter": {
            "post": _operation(
                "reviewEnter",
                "Hand the token of a link over for a cookie",
                {"200": _json("Who it is; the cookie is set.", all_of(name=TEXT, role=TEXT))},
                400, 401, 404, 405, 413, 415, 500, 503,
                body={"type": "object", "properties": {"token": TEXT}, "required": ["token"]},
            )
        },
        "/api/review/{review_id}/next": {
            "get": _operation(
                "reviewNext",
                "What the asking reviewer is to see now, and after that",
                {"200": _json("The pairs.", ref("NextPairs"))},
                400, 401, 403, 404, 405, 500, 503,
            )
        },
        "/api/review/{review_id}/votes": {
            "post": _operation(
                "reviewVote",
                "A vote, or a skip. It is in the ledger when this answers; the same key again "
                "changes nothing",
                {"200": _json("What comes next.", ref("NextPairs"))},
                400, 401, 403, 404, 405, 409, 413, 415, 500, 503,
                body={
                    "type": "object",
                    "properties": {
                        "key": KEY,
                        "task": TEXT,
                        "choices": {"type": "object", "additionalProperties": CHOICE},
                        "skip": TRUTH,
                        "seconds": {"type": "number", "minimum": 0},
                    },
                    "required": ["key", "task"],
                },
            )
        },
        "/api/review/{review_id}/undo": {
            "post": _operation(
                "reviewUndo",
                "Take the last vote or skip back, once for a key",
                {"200": _json("What comes next.", ref("NextPairs"))},
                400, 401, 403, 404, 405, 409, 413, 415, 500, 503,
                body={"type": "object", "properties": {"key": KEY}, "required": ["key"]},
            )
        },
        "/api/review/{review_id}/result": {
            "get": _operation(
                "reviewResult",
                "What the votes say; as long as the review is open without the releases' names",
                {"200": _json("The facts.", ref("ReviewResult"))},
                400, 401, 403, 404, 405, 500, 503,
            )
        },
    }  # fmt: skip


def _operation(
    name: str,
    summary: str,
    good: Json,
    *statuses: int,
    body: Json | None = None,
    parameters: tuple[str, ...] = (),
    media: str = "application/json",
) -> Json:
    error: Json = {media: {"schema": ref("Error")} if media == "application/json" else {}}
    bad = {str(s): {"description": ERRORS[s], "content": error} for s in statuses}
    named = (*(() if name == "reviews" else ("review_id",)), *parameters)
    found: Json = {
        "operationId": name,
        "summary": summary,
        "parameters": [
            {"name": n, "in": "path", "required": True, "schema": SIDE if n == "side" else TEXT}
            for n in named
        ],
        "responses": {**good, **bad},
    }
    if body is not None:
        schema = body | {"additionalProperties": False}
        found["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema}},
        }
    return found


def _page(name: str, summary: str, *statuses: int) -> Json:
    good = {"200": {"description": "HTML.", "content": {HTML: {}}}}
    return _operation(name, summary, good, 400, *statuses, 404, 405, 500, 503, media="text/plain")


def _json(text: str, schema: Json) -> Json:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


_LISTED: Json = {
    "id": TEXT,
    "open": TRUTH,
    "update": MAYBE_TEXT,
    "created_at": NUMBER,
    "deadline": NUMBER,
    "closed_at": MAYBE_NUMBER,
    "closed_because": TEXT,
    "candidates": {"type": "array", "items": TEXT},
    "questions": {"type": "array", "items": TEXT},
    "prompts": COUNT,
    "votes": COUNT,
    "wanted": COUNT,
    "reviewers": COUNT,
    "reviewers_wanted": COUNT,
    "verdicts": {"type": "object", "additionalProperties": TEXT},
    "reasons": {"type": "object", "additionalProperties": TEXT},
}
_ANSWER = all_of(
    first=TEXT,
    second=TEXT,
    question=TEXT,
    for_first=COUNT,
    ties=COUNT,
    for_second=COUNT,
    prompts=COUNT,
    share=MAYBE_NUMBER,
    interval=INTERVAL,
    level=NUMBER,
    wilson=INTERVAL,
    two_way=INTERVAL,
    decided=TRUTH,
    threshold=MAYBE_NUMBER,
    needed={"type": ["integer", "null"]},
    slices={"type": "array", "items": OBJECT},
)

SCHEMAS: Json = {
    "ListedReview": all_of(**_LISTED),
    "ReviewResult": all_of(
        **_LISTED,
        unblinded=TRUTH,
        margin=NUMBER,
        alpha=NUMBER,
        min_prompts=COUNT,
        releases={"type": "object", "additionalProperties": TEXT},
        decided={"type": "object", "additionalProperties": TRUTH},
        answers={"type": "array", "items": _ANSWER},
        agreement={"type": "object", "additionalProperties": MAYBE_NUMBER},
        people={"type": "array", "items": OBJECT},
        ranking={"type": ["array", "null"], "items": OBJECT},
        skips=COUNT,
    ),
    "NextPairs": all_of(
        reviewer=TEXT,
        over=TRUTH,
        done=COUNT,
        left=COUNT,
        can_undo=TRUTH,
        guide=TEXT,
        questions={"type": "array", "items": all_of(name=TEXT, text=TEXT)},
        tasks={"type": "array", "items": all_of(task=TEXT, prompt=TEXT, left=TEXT, right=TEXT)},
    ),
}
