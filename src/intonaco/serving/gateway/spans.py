"""The gateway's spans: a request, each try at a worker, and copies in traces of their own."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace import Span, SpanContext, SpanKind
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.types import Scope

from intonaco.messages import GenerateRequest
from intonaco.serving.gateway.access import METHODS, QUIET, facts
from intonaco.serving.tracing import Facts, Traced, Tracing, current, traceparent
from intonaco.types import Arm, Attempt, Outcome

# Of what the access log says of a request; the unit and the key's name stay out.
SAID = ("task", "images", "stream", "assigned_arm", "arm", "streamed_status")


@dataclass(frozen=True, slots=True)
class Try:
    """A try at a worker that is under way."""

    tracing: Tracing
    span: Span
    facts: Facts

    @property
    def headers(self) -> dict[str, str]:
        return traceparent(self.span)

    def end(self, attempt: Attempt) -> None:
        """Its error is left out: a worker's words may be about the prompt."""
        more: dict[str, str | int | float | bool] = {"intonaco.outcome": str(attempt.outcome)}
        if attempt.outcome is Outcome.OK:
            more |= {
                "intonaco.batch_size": attempt.batch_size,
                "intonaco.padded_size": attempt.padded_size,
            }
        failed = attempt.outcome is not Outcome.OK
        self.tracing.end(self.span, self.tracing.now(), {**self.facts, **more}, failed=failed)

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        more = {"intonaco.outcome": str(Outcome.CANCELLED)}
        self.tracing.end(self.span, self.tracing.now(), {**self.facts, **more})


class GatewayTracing(Tracing):
    """``share`` of requests is traced; with ``clients_decide`` those that come with a
    ``traceparent`` are traced as it says. ``draw``: uniform between 0 and 1."""

    def __init__(
        self,
        processor: SpanProcessor,
        *,
        service: str,
        name: str,
        share: float,
        clients_decide: bool,
        now: Callable[[], float],
        draw: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(processor, role="gateway", service=service, instance=name, now=now)
        self._share = share
        self._clients_decide = clients_decide
        self._draw = draw

    def middleware(self) -> Middleware:
        """Goes around the access log, which knows a request's facts."""
        return Middleware(Traced, tracing=self, traces=self._traces, describe=_describe)

    def attempt(self, arm: Arm, request: GenerateRequest, at: float) -> Try | None:
        """None if the request is not traced."""
        parent = current()
        if parent is None:
            return None
        span = self.begin("attempt", SpanKind.CLIENT, at, parent=parent.get_span_context())
        facts: Facts = {
            "intonaco.request_id": request.request_id,
            **_arm(arm),
            "intonaco.steps": request.steps,
            "intonaco.width": request.width,
            "intonaco.height": request.height,
        }
        return Try(self, span, facts)

    def copy(self, kind: str, arm: Arm) -> AbstractContextManager[None]:
        """Around what no user waits for: "shadow" or "probe"."""
        return self.apart(kind, _arm(arm))

    def _traces(self, path: str, parent: SpanContext | None) -> bool:
        if path in QUIET:
            return False
        if self._clients_decide and parent is not None:
            return parent.trace_flags.sampled
        return self._draw() < self._share


def _arm(arm: Arm) -> Facts:
    return {"intonaco.arm": arm.name, "intonaco.release": arm.release[:10]}


def _describe(scope: Scope) -> tuple[str, Facts]:
    known = facts(Request(scope))
    method = scope["method"] if scope["method"] in METHODS else "HTTP"
    told: Facts = {f"intonaco.{n}": v for n in SAID if (v := known.said.get(n)) not in (None, "")}
    release = str(known.said.get("release", ""))[:10]
    return f"{method} {known.route}", {
        "http.request.method": method,
        "http.route": known.route,
        "intonaco.request_id": known.request_id,
        **told,
        **({"intonaco.release": release} if release else {}),
    }
