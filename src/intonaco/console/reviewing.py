"""Voting in a review, and its result. Unlike the rest of the console this writes: votes, into the
ledger, before anything else is said.

Who may vote has a link from ``intonaco review invite`` or a token of ``console.people`` with the
role "reviewer"; "lead" sees the result. The page hands the token over once and then goes with a
cookie that scripts cannot read. Nothing that a reviewer is sent, not in an address, a header or a
picture, tells which release is which.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from intonaco import readmodel
from intonaco.clock import Clock
from intonaco.console.calls import People
from intonaco.errors import Conflict, NotFound
from intonaco.ledger import Ledger
from intonaco.ledger import votes as rows
from intonaco.review import desk, pictures, session
from intonaco.types import TIE, Invitation, Review
from intonaco.workspace import Workspace

MOST_BYTES = 4096
MOST_SECONDS = 86_400.0
CHOICES = (*session.SIDES, TIE)
QUESTIONS = {
    "overall": "Which picture is better?",
    "quality": "Which picture is better made?",
    "style": "Which picture keeps to the style better?",
    "adherence": "Which picture shows better what the words say?",
}
_KEY = re.compile(r"[A-Za-z0-9-]{8,64}", re.ASCII)
_NO_STORE = {"cache-control": "no-store"}


class Reviewing:
    """The addresses of a review: pages under ``/review/``, what they ask under ``/api/review/``.
    ``html`` renders a template."""

    def __init__(
        self,
        ledger: Ledger,
        workspace: Workspace,
        people: People,
        clock: Clock,
        html: Callable[..., Response],
    ) -> None:
        self.ledger = ledger
        self.workspace = workspace
        self.people = people
        self.clock = clock
        self.html = html

    def routes(self) -> list[Route]:
        return [
            Route("/review/{review_id}", self.page),
            Route("/review/{review_id}/result", self.result_page),
            Route("/review/{review_id}/live", self.live),
            Route("/review/{review_id}/pictures/{task}/{side}", self.picture),
            Route("/api/review/{review_id}/enter", self.enter, methods=["POST"]),
            Route("/api/review/{review_id}/next", self.next),
            Route("/api/review/{review_id}/votes", self.vote, methods=["POST"]),
            Route("/api/review/{review_id}/undo", self.undo, methods=["POST"]),
            Route("/api/review/{review_id}/result", self.result),
        ]

    # ------------------------------------------------------------------ pages

    def page(self, request: Request) -> Response:
        """The same for everybody: what is in it is asked for with the cookie."""
        return self.html("review.html", review_id=self._review(request).review_id)

    def result_page(self, request: Request) -> Response:
        review = self._review(request)
        may = self._known(request, review)
        facts = None if may is None or may.role != "lead" else self._result(review)
        return self.html("review_result.html", review_id=review.review_id, r=facts)

    def live(self, request: Request) -> Response:
        review = self._review(request)
        self._who(request, review, "lead")
        return self.html("_review_result.html", review_id=review.review_id, r=self._result(review))

    def picture(self, request: Request) -> Response:
        review = self._review(request)
        name = self._who(request, review, "reviewer").name
        side = request.path_params["side"]
        votes = rows.votes(self.ledger, review.review_id)
        task = session.find(review, name, votes, request.path_params["task"])
        if task is None or side not in session.SIDES:
            raise NotFound("no such picture")
        arm = task.side(side)
        shown = task.intact if arm == session.BROKEN else arm
        raw = pictures.picture(self.workspace, review, shown, task.item)
        if arm == session.BROKEN:
            raw = pictures.scrambled(raw, review.key, task.item)
        # No time of change, no tag: they are of the file, and the file is a release's.
        return Response(
            raw, media_type="image/png", headers={"cache-control": "private, max-age=3600"}
        )

    # ------------------------------------------------------------------ what pages ask

    async def enter(self, request: Request) -> Response:
        """Hands a token over for the cookie."""
        body = await _body(request, {"token"})
        token = body.get("token")
        if not isinstance(token, str):
            raise HTTPException(400, "token: text")
        review = await run_in_threadpool(self._review, request)
        who = await run_in_threadpool(self._of_token, review, token)
        if who is None:
            raise HTTPException(401, "This link is not valid, or not any more.")
        answer = JSONResponse({"name": who.name, "role": who.role}, headers=_NO_STORE)
        answer.set_cookie(
            _cookie(review),
            token,
            max_age=max(1, int(review.deadline - self.clock.now()) + 30 * 86_400),
            path="/",
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer

    def next(self, request: Request) -> Response:
        review = self._review(request)
        name = self._who(request, review, "reviewer").name
        return JSONResponse(self._next(review, name), headers=_NO_STORE)

    async def vote(self, request: Request) -> Response:
        """Writes a vote or a skip, and says what comes next. It is in the ledger when this
        answers; the same key again changes nothing."""
        review, name = await run_in_threadpool(self._reviewer, request)
        body = await _body(request, {"key", "task", "choices", "skip", "seconds"})
        key, task, seconds = _key(body), body.get("task"), body.get("seconds", 0.0)
        if not isinstance(task, str):
            raise HTTPException(400, "task: text")
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds >= 0:
            raise HTTPException(400, "seconds: a number, not negative")
        choices = None if body.get("skip") is True else _choices(body, review)

        def write() -> Any:
            now = self.clock.now()
            desk.vote(
                self.ledger,
                review,
                name,
                key=key,
                task=task,
                choices=choices,
                seconds=min(float(seconds), MOST_SECONDS),
                now=now,
            )
            return self._next(desk.settle(self.ledger, review.review_id, now), name)

        return await self._written(write)

    async def undo(self, request: Request) -> Response:
        """Takes the last vote or skip back, once for a key."""
        review, name = await run_in_threadpool(self._reviewer, request)
        key = _key(await _body(request, {"key"}))

        def write() -> Any:
            desk.undo(self.ledger, review, name, key=key, now=self.clock.now())
            return self._next(review, name)

        return await self._written(write)

    async def _written(self, write: Callable[[], Any]) -> Response:
        try:
            return JSONResponse(await run_in_threadpool(write), headers=_NO_STORE)
        except Conflict as error:
            raise HTTPException(409, str(error)) from error

    def result(self, request: Request) -> Response:
        review = self._review(request)
        self._who(request, review, "lead")
        return JSONResponse(self._result(review), headers=_NO_STORE)

    # ------------------------------------------------------------------ small parts

    def _result(self, review: Review) -> Mapping[str, Any]:
        return readmodel.review_result(self.ledger, review)

    def _next(self, review: Review, name: str) -> Mapping[str, Any]:
        items = {item.item: item for item in review.items}
        votes = rows.votes(self.ledger, review.review_id)
        told, progress = session.upcoming(review, name, votes)
        over = review.closed_at is not None
        return {
            "reviewer": name,
            "over": over,
            "done": progress.done,
            "left": 0 if over else progress.left,
            "can_undo": not over and session.to_undo(votes, name) is not None,
            "guide": review.guide,
            "questions": [{"name": q, "text": QUESTIONS[q]} for q in review.questions],
            "tasks": [
                {
                    "task": t.task,
                    "prompt": items[t.item].prompt,
                    **{
                        side: f"/review/{review.review_id}/pictures/{t.task}/{side}"
                        for side in session.SIDES
                    },
                }
                for t in (() if over else told)
            ],
        }

    def _review(self, request: Request) -> Review:
        asked = request.path_params["review_id"]
        found = self.ledger.find(Review, asked)
        if found is None or found.review_id != asked:
            raise NotFound("no such review")
        return found

    def _reviewer(self, request: Request) -> tuple[Review, str]:
        review = self._review(request)
        return review, self._who(request, review, "reviewer").name

    def _who(self, request: Request, review: Review, role: str) -> Invitation:
        """Raises HTTPException 401, 403."""
        who = self._known(request, review)
        if who is None:
            raise HTTPException(401, "Open the link that you were given.")
        if who.role != role:
            raise HTTPException(403, f"{who.name} is here as {who.role}, not as {role}.")
        return who

    def _known(self, request: Request, review: Review) -> Invitation | None:
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        token = bearer.strip() if scheme.lower() == "bearer" else ""
        token = token or request.cookies.get(_cookie(review), "")
        return self._of_token(review, token) if token else None

    def _of_token(self, review: Review, token: str) -> Invitation | None:
        person = self.people.of_token(token)
        if person is not None and person.role in ("reviewer", "lead"):
            return Invitation(name=person.name, role=person.role, at=0.0)
        return desk.who(self.ledger, review.review_id, token)


def _cookie(review: Review) -> str:
    return f"review_{review.review_id}"


def _key(body: Mapping[str, Any]) -> str:
    key = body.get("key")
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise HTTPException(400, "key: 8 to 64 letters, digits or dashes")
    return key


def _choices(body: Mapping[str, Any], review: Review) -> dict[str, str]:
    given = body.get("choices")
    wanted = ", ".join(review.questions)
    if not isinstance(given, dict) or set(given) != set(review.questions):
        raise HTTPException(400, f"choices: an answer to each of {wanted}, or skip: true")
    if not all(c in CHOICES for c in given.values()):
        raise HTTPException(400, f"choices: each one of {', '.join(CHOICES)}")
    return {question: given[question] for question in review.questions}


async def _body(request: Request, allowed: set[str]) -> dict[str, Any]:
    """The object that a page sends. Raises HTTPException 400, 413, 415."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # what another site's form cannot send
        raise HTTPException(415, "content-type: application/json")
    raw = b""
    async for part in request.stream():
        raw += part
        if len(raw) > MOST_BYTES:
            raise HTTPException(413, f"The body is larger than {MOST_BYTES} bytes.")
    try:
        given = json.loads(raw or b"{}")
        raw.decode()
    except (ValueError, RecursionError):
        raise HTTPException(400, "The body is not JSON.") from None
    if not isinstance(given, dict) or set(given) - allowed:
        raise HTTPException(400, f"The body is an object with {', '.join(sorted(allowed))}.")
    return given
