"""Traces of requests, as spans for an OpenTelemetry collector: what gateway and worker share.

This module imports OpenTelemetry, and is itself imported only where ``serving.tracing`` is set. A
gateway decides which requests are traced and tells workers in the W3C ``traceparent`` header;
everything that is begun here is sent.

No span holds a prompt, a user or a key: attributes are named one by one, exceptions are not
recorded, and of what clients send in headers only the ids and the flag of ``traceparent`` are taken
(``tracestate`` and ``baggage`` are the client's own words).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import intonaco

log = logging.getLogger(__name__)

TRACEPARENT = "traceparent"
EXPORT_S = 5.0  # that a batch of spans may take on its way, tries included
CLOSE_S = 3.0  # that the last spans may take when a process ends

Facts: TypeAlias = Mapping[str, str | int | float | bool]

_current: ContextVar[Span | None] = ContextVar("intonaco.span", default=None)
_propagator = TraceContextTextMapPropagator()


def current() -> Span | None:
    """The span that this task works for; None if its request is not traced."""
    return _current.get()


def address(endpoint: str) -> str:
    """Where spans go: an endpoint without a path is a collector, with the usual path."""
    parts = urlsplit(endpoint)
    return endpoint if parts.path.strip("/") else f"{parts.scheme}://{parts.netloc}/v1/traces"


def exporting(endpoint: str) -> SpanProcessor:
    """Sends spans in batches from a thread of its own; what a collector that is away makes wait is
    bounded, and dropped beyond. Credentials come from OTEL_EXPORTER_OTLP_HEADERS."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return BatchSpanProcessor(OTLPSpanExporter(endpoint=address(endpoint), timeout=EXPORT_S))


class Tracing:
    """Spans of one process. ``role``: gateway or worker. ``now``: epoch seconds."""

    def __init__(
        self,
        processor: SpanProcessor,
        *,
        role: str,
        service: str,
        instance: str,
        now: Callable[[], float],
    ) -> None:
        resource = Resource.create(
            {
                "service.name": f"intonaco-{role}",
                "service.namespace": service,
                "service.instance.id": instance,
                "service.version": intonaco.__version__,
            }
        )
        self._provider = TracerProvider(
            sampler=ALWAYS_ON, resource=resource, shutdown_on_exit=False
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("intonaco", intonaco.__version__)
        self.now = now

    def begin(
        self,
        name: str,
        kind: SpanKind,
        at: float,
        *,
        parent: SpanContext | None = None,
        of: SpanContext | None = None,
    ) -> Span:
        """A span from ``at`` (epoch seconds) on; without ``parent`` the first of a trace, which
        ``of`` links to another."""
        context = Context()
        if parent is not None:
            context = set_span_in_context(NonRecordingSpan(parent), context)
        return self._tracer.start_span(
            name,
            context,
            kind,
            links=() if of is None else (Link(of),),
            start_time=_nanoseconds(at),
            record_exception=False,
            set_status_on_exception=False,
        )

    def end(self, span: Span, at: float, facts: Facts, *, failed: bool = False) -> None:
        """End it at ``at`` (epoch seconds)."""
        span.set_attributes(facts)
        if failed:
            span.set_status(StatusCode.ERROR)
        span.end(_nanoseconds(at))

    @contextmanager
    def apart(self, name: str, facts: Facts) -> Iterator[None]:
        """What this task does on its own: a trace of its own, linked to the one it came from, if
        that is traced."""
        origin = current()
        if origin is None:
            yield
            return
        span = self.begin(name, SpanKind.INTERNAL, self.now(), of=origin.get_span_context())
        token = _current.set(span)
        try:
            yield
        finally:
            _current.reset(token)
            self.end(span, self.now(), facts)

    def close(self) -> None:
        """Send what is left, at most ``CLOSE_S`` long. Blocks."""
        thread = threading.Thread(target=self._provider.shutdown, name="spans", daemon=True)
        thread.start()
        thread.join(CLOSE_S)
        if thread.is_alive():
            log.warning("the last spans are lost", extra={"action": "tracing.close"})


@dataclass(frozen=True, slots=True)
class Traced:
    """ASGI middleware: a span a request. ``traces`` says of a path and what the client sent in
    ``traceparent`` whether, ``describe`` its name and attributes once it is over."""

    app: ASGIApp
    tracing: Tracing
    traces: Callable[[str, SpanContext | None], bool]
    describe: Callable[[Scope], tuple[str, Facts]]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        parent = _parent(scope) if scope["type"] == "http" else None
        if scope["type"] != "http" or not self.traces(scope["path"], parent):
            await self.app(scope, receive, send)
            return
        span = self.tracing.begin("request", SpanKind.SERVER, self.tracing.now(), parent=parent)
        token = _current.set(span)
        status = 500  # of an app that raised before it answered

        async def seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, seen)
        finally:
            _current.reset(token)
            name, facts = self.describe(scope)
            span.update_name(name)
            facts = {**facts, "http.response.status_code": status}
            self.tracing.end(span, self.tracing.now(), facts, failed=status >= 500)


def traceparent(span: Span) -> dict[str, str]:
    """The header that makes what another process does a part of the span."""
    known = span.get_span_context()
    value = f"00-{known.trace_id:032x}-{known.span_id:016x}-{known.trace_flags:02x}"
    return {TRACEPARENT: value}


def _parent(scope: Scope) -> SpanContext | None:
    """Of the one ``traceparent`` header; None if there is none, or not one that can be read."""
    given: Collection[bytes] = [v for k, v in scope["headers"] if k == TRACEPARENT.encode()]
    if len(given) != 1:
        return None
    (value,) = given
    context = _propagator.extract({TRACEPARENT: value.decode("latin-1")}, Context())
    found = get_current_span(context).get_span_context()
    return found if found.is_valid else None


def _nanoseconds(at: float) -> int:
    return int(at * 1e9)
