"""Every request's id, its line in the access log, and its place in the metrics.

One JSON line a request, with the same fields as ``extra``. It holds no prompt, and of the unit only
the digest that workers see too.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from intonaco.clock import Clock
from intonaco.messages import REQUEST_ID
from intonaco.serving.gateway.metrics import Metrics
from intonaco.serving.gateway.problems import server_error

log = logging.getLogger(__name__)

HUNG_UP = 499
QUIET = frozenset({"/livez", "/readyz", "/metrics"})  # asked for every few seconds by machines
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})
_KEY = "intonaco.facts"


def new_id() -> str:
    return f"req_{secrets.token_hex(12)}"


@dataclass(slots=True)
class Facts:
    """What is known of a request so far. ``said`` goes into the access log."""

    request_id: str
    route: str = "other"  # once it is answered
    said: dict[str, Any] = field(default_factory=dict)


def facts(request: Request) -> Facts:
    found: Facts = request.scope[_KEY]
    return found


@dataclass(frozen=True, slots=True)
class AccessLog:
    """ASGI middleware. ``routes``: the paths' templates; all others are told as "other"."""

    app: ASGIApp
    routes: Collection[str]
    metrics: Metrics
    clock: Clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = self.clock.now()
        known = scope[_KEY] = Facts(new_id())
        status, sent, begun = HUNG_UP, 0, False

        async def counted(message: Message) -> None:
            nonlocal status, sent, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                MutableHeaders(scope=message).setdefault(REQUEST_ID, known.request_id)
            else:
                sent += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, counted)
        except Exception:
            # Answered here and not further out, so that this answer has its id and its line too.
            status = 500
            log.exception(
                "a request failed",
                extra={"action": "gateway.defect", "request_id": known.request_id},
            )
            if not begun:
                await server_error()(scope, receive, counted)
        finally:
            route = known.route = self._route(scope)
            method = scope["method"] if scope["method"] in METHODS else "other"
            seconds = self.clock.now() - start
            self.metrics.http(route, method, status, seconds)
            if route not in QUIET:
                _say(
                    {
                        "request_id": known.request_id,
                        "method": method,
                        "route": route,
                        "status": status,
                        "seconds": round(seconds, 6),
                        "bytes": sent,
                        **known.said,
                    }
                )

    def _route(self, scope: Mapping[str, Any]) -> str:
        path = scope["path"]
        if path in self.routes:
            return str(path)
        above = path.rpartition("/")[0]
        for route in self.routes:
            head, brace, _ = route.partition("/{")
            if brace and (above == head or above.startswith(head + "/")):
                return route
        return "other"


def _say(fields: dict[str, Any]) -> None:
    log.info(json.dumps(fields), extra={"action": "gateway.access", **fields})
