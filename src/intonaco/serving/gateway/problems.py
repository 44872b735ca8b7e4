"""Refusals and errors, in the form of OpenAI's API everywhere."""

from __future__ import annotations

import math

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from intonaco.messages import NO_ROOM_FOR_PROBES, ApiError

CODES = {404: "not_found", 405: "method_not_allowed"}
MESSAGES = {
    404: "There is nothing at this address; /openapi.json lists what there is.",
    405: "This address does not take that method; the 'allow' header lists those it takes.",
}


BUSY = ApiError(
    message="The service is busy; try again soon.",
    type="rate_limit_error",
    code="rate_limit_exceeded",
)
NO_PROBES = ApiError(
    message="Too many users wait: no probe is drawn now.",
    type="server_error",
    code=NO_ROOM_FOR_PROBES,
)
BROKEN = ApiError(message="The server failed.", type="server_error", code="internal")


class Refused(Exception):
    """The request cannot be served as it is. ``retry_after``: seconds."""

    def __init__(
        self, error: ApiError, status: int = 400, *, retry_after: float | None = None
    ) -> None:
        super().__init__(error.code or error.type)
        self.error = error
        self.status = status
        self.retry_after = retry_after

    def response(self) -> Response:
        headers = {}
        if self.retry_after is not None:
            headers["retry-after"] = in_seconds(self.retry_after)
        if self.status == 408:
            headers["connection"] = "close"  # the rest of the body is not waited for
        return JSONResponse(self.error.body(), self.status, headers)


def in_seconds(wait: float) -> str:
    """A `Retry-After`: whole seconds, at least one."""
    return str(max(1, math.ceil(wait)))


def invalid(param: str | None, message: str, code: str = "invalid_value") -> Refused:
    return Refused(ApiError(message=message, param=param, code=code))


def too_large(limit: int) -> Refused:
    return Refused(ApiError(message=f"The body is over {limit} bytes.", code="body_too_large"), 413)


async def http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code
    body = ApiError(
        message=MESSAGES.get(status, str(error.detail)),
        type="server_error" if status >= 500 else "invalid_request_error",
        code=CODES.get(status),
    ).body()
    return JSONResponse(body, status, error.headers)


def server_error() -> Response:
    return JSONResponse(BROKEN.body(), 500)
