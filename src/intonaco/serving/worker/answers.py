"""Answers of a worker that are no image."""

from __future__ import annotations

import math
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from intonaco.codec import encode
from intonaco.messages import PROTOCOL_HEADER, PROTOCOL_VERSION, WorkerError
from intonaco.serving.worker.core import OutOfMemory
from intonaco.serving.worker.job import DeadlinePassed, DeadlineUnmeetable, Draining, QueueFull

HEADERS = {PROTOCOL_HEADER: PROTOCOL_VERSION}


@dataclass(frozen=True, slots=True)
class Problem:
    """An answer that is no image. ``retry_after``: seconds."""

    status: int
    code: str
    message: str
    retry_after: int | None = None

    @property
    def refusal(self) -> bool:
        """Whether the pipeline never began with it."""
        return self.code != "internal"


def not_held(release_id: str) -> Problem:
    """It was asked for a release that it does not hold; another worker may."""
    which = f"release {release_id[:10]} is not held here" if release_id else "name a release"
    return Problem(409, "release", which)


def problem_of(error: Exception) -> Problem:
    """What is said of a job that was not taken or not done."""
    match error:
        case QueueFull():
            return Problem(429, "full", "the queue is full", error.retry_after_s)
        case Draining():
            return Problem(503, "draining", "no new work is taken", 1)
        case DeadlinePassed():
            return Problem(504, "deadline", "the deadline passed in the queue")
        case DeadlineUnmeetable():
            message = f"with what waits, the answer would come {error.late_s:.1f} s too late"
            retry_after = max(1, math.ceil(error.late_s))
            return Problem(503, "deadline_unmeetable", message, retry_after)
        case OutOfMemory():
            return Problem(500, "internal", "the device has too little memory for this request")
    return Problem(500, "internal", type(error).__name__)


def error_response(problem: Problem) -> Response:
    headers = dict(HEADERS)
    if problem.retry_after is not None:
        headers["retry-after"] = str(problem.retry_after)
    text = encode(WorkerError(code=problem.code, message=problem.message))
    return Response(text, problem.status, media_type="application/json", headers=headers)


async def http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_response(Problem(error.status_code, "invalid", str(error.detail)))


async def server_error(request: Request, error: Exception) -> Response:
    return error_response(Problem(500, "internal", type(error).__name__))
