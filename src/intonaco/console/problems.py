"""What the console says when it does not answer: JSON under ``/api/``, one line elsewhere."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from intonaco.errors import NotFound
from intonaco.messages import ApiError

logger = logging.getLogger(__name__)

POLICY = "content-security-policy"
# A report is one file: its own style and pictures, and nothing else.
REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; sandbox allow-popups"
)
SECURITY_HEADERS = {
    POLICY: (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
CODES = {
    400: "invalid_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    409: "conflict",
    413: "too_large",
    415: "unsupported_media_type",
    500: "internal",
    503: "unavailable",
}
NOWHERE = "There is nothing at this address; /openapi.json lists what there is."
MOST_CHARS = 300  # of a message: it may quote the request
_LOCAL = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?", re.IGNORECASE)


class Guard:
    """Sets ``SECURITY_HEADERS`` on every answer. ``local``: refuses requests for another host, as a
    page of another site must not read this one by pointing its own name here."""

    def __init__(self, app: ASGIApp, *, local: bool) -> None:
        self.app = app
        self.local = local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)  # a report has a policy of its own
            await send(message)

        if self.local and not _LOCAL.fullmatch(Headers(scope=scope).get("host", "")):
            refusal = problem(scope["path"], 400, "This host is not served here.")
            await refusal(scope, receive, send_with_headers)
            return
        await self.app(scope, receive, send_with_headers)


def problem(
    path: str, status: int, message: str, headers: Mapping[str, str] | None = None
) -> Response:
    """An answer that tells of an error, in the form that ``path`` has."""
    more = {**(headers or {}), **SECURITY_HEADERS, "cache-control": "no-store"}
    message = message[:MOST_CHARS]
    if not path.startswith(("/api/", "/openapi.json")):
        return PlainTextResponse(message, status, more)
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = ApiError(message=message, type=kind, code=CODES.get(status))
    return JSONResponse(error.body(), status, more)


async def http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = NOWHERE if error.detail == "Not Found" else str(error.detail)
    return problem(request.scope["path"], error.status_code, message, error.headers)


async def not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, NotFound)
    return problem(request.scope["path"], 404, str(error))


async def unavailable(request: Request, error: Exception) -> Response:
    logger.warning("cannot read: %s", error, extra={"action": "console_read_failed"})
    return problem(request.scope["path"], 503, "The ledger cannot be read now.")


async def failed(request: Request, error: Exception) -> Response:
    """A defect; the server logs it."""
    return problem(request.scope["path"], 500, "The console failed.")
