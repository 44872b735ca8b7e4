"""The worker's spans: a request that the gateway traces, and where its time went."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace import SpanContext, SpanKind, StatusCode
from starlette.middleware import Middleware
from starlette.types import Scope

from intonaco.messages import GenerateRequest
from intonaco.serving.tracing import Facts, Traced, Tracing, current
from intonaco.serving.worker.job import Done, Job


class WorkerTracing(Tracing):
    """``now``: epoch seconds, ``monotonic``: the batcher's clock."""

    def __init__(
        self,
        processor: SpanProcessor,
        *,
        service: str,
        name: str,
        now: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        super().__init__(processor, role="worker", service=service, instance=name, now=now)
        self._monotonic = monotonic

    def middleware(self) -> Middleware:
        return Middleware(Traced, tracing=self, traces=_traces, describe=_describe)

    def made(self, job: Job[Any], request: GenerateRequest, done: Done, release: str) -> None:
        """Its wait and the parts of its batch's run, with the times that were measured."""
        span = current()
        if span is None:
            return
        facts: Facts = {
            "intonaco.request_id": request.request_id,
            "intonaco.release": release[:10],
            "intonaco.outcome": "ok",
            "intonaco.batch_size": done.batch_size,
            "intonaco.padded_size": done.padded_size,
            "intonaco.steps": request.steps,
            "intonaco.width": request.width,
            "intonaco.height": request.height,
        }
        span.set_attributes(facts)
        at = self.now() - self._monotonic() + job.at
        for name, seconds in (
            ("queue", done.queue_seconds),
            ("encode", done.cost.encode_seconds),
            ("denoise", done.cost.denoise_seconds),
            ("decode", done.cost.decode_seconds),
        ):
            part = self.begin(name, SpanKind.INTERNAL, at, parent=span.get_span_context())
            at += seconds
            self.end(part, at, {})

    def failed(self, code: str) -> None:
        """No image: ``code`` of the answer's WorkerError."""
        span = current()
        if span is not None:
            span.set_attribute("intonaco.outcome", code)
            span.set_status(StatusCode.ERROR)


def _traces(path: str, parent: SpanContext | None) -> bool:
    return path == "/generate" and parent is not None and parent.trace_flags.sampled


def _describe(scope: Scope) -> tuple[str, Facts]:
    return "generate", {"http.request.method": scope["method"], "http.route": scope["path"]}
