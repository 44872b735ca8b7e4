"""Traces of gateway and worker: what a collector gets, who decides, what never leaves, and that
nothing of it is there when it is off."""

from __future__ import annotations

import asyncio
import io
import logging
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from tests.fixtures_gateway import CONFIG, NEW, OLD, in_one_loop, serving

from intonaco import app, config, plugins
from intonaco.clock import FakeClock, SystemClock
from intonaco.errors import ConfigError
from intonaco.messages import PROTOCOL_HEADER, PROTOCOL_VERSION, GenerateRequest
from intonaco.serving import tracing as shared
from intonaco.serving.gateway.main import build, open_tracing
from intonaco.serving.gateway.spans import GatewayTracing
from intonaco.serving.worker import main as worker_main
from intonaco.serving.worker.app import Loaded, Worker
from intonaco.serving.worker.core import Images, InvalidRequest, StepWatch
from intonaco.serving.worker.spans import WorkerTracing
from intonaco.types import Arm, ArmRole, Provenance, Release, RoutingTable, ServingSpec
from intonaco.workspace import Workspace

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"
PROMPT, USER, KEY = "a very private prompt", "somebody-by-name", "sk-of-somebody"
PRIVATE = (PROMPT, USER, KEY, "tracestate-of-somebody", "baggage-of-somebody")
SPEC = ServingSpec(pipeline_class="P", weights={}, scheduler="S", generation={})
QUICK = {"steps": 10, "width": 64, "height": 64}


@dataclass
class Engine:
    """Plays a pipeline: no time passes, but it says that some did."""

    spec: ServingSpec = SPEC
    release_id: str = OLD
    device: str = "cpu"
    load_seconds: float = 0.0

    def check(self, request: GenerateRequest) -> None:
        if request.seed == 400:
            raise InvalidRequest(f"cannot do {request.prompt}")

    def batch_key(self, request: GenerateRequest) -> int:
        return request.width

    def warm_up_request(self) -> GenerateRequest:
        raise NotImplementedError

    def peak_memory_bytes(self) -> int:
        return 1

    def generate(
        self, requests: Sequence[GenerateRequest], size: int, watch: StepWatch | None = None
    ) -> Images:
        if any(r.seed == 500 for r in requests):
            raise RuntimeError(f"failed on {requests[0].prompt}")
        return Images(
            images=[Image.new("RGB", (r.width, r.height)) for r in requests],
            encode_seconds=0.25,
            denoise_seconds=2.0,
            decode_seconds=0.5,
            gpu_seconds=0.0,
            peak_memory_bytes=1,
        )


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, format="PNG")
    return out.getvalue()


@asynccontextmanager
async def working(tracing: WorkerTracing | None) -> AsyncIterator[Worker]:
    """A real worker around the engine above."""
    worker = Worker(sizes=(2,), wait_s=0.0, queue_limit=4, tracing=tracing)
    worker.loaded = Loaded(engine=Engine(), png=png)
    worker.ready = True
    thread = threading.Thread(target=worker.batcher.serve)
    thread.start()
    try:
        yield worker
    finally:
        worker.batcher.stop()
        await asyncio.to_thread(thread.join, 10)
        if tracing is not None:
            await asyncio.to_thread(tracing.close)


# ---------------------------------------------------------------------- with a collector


@dataclass
class Collector:
    """Takes OTLP over HTTP and decodes it."""

    raw: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    async def traces(self, request: Request) -> Response:
        assert request.headers["content-type"] == "application/x-protobuf"
        self.raw.append(await request.body())
        self.headers.append(dict(request.headers))
        content = ExportTraceServiceResponse().SerializeToString()
        return Response(content, media_type="application/x-protobuf")

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/v1/traces", self.traces, methods=["POST"])])

    def spans(self) -> list[tuple[dict[str, Any], Any]]:
        """(resource, span) in order of their start."""
        found = []
        for raw in self.raw:
            for group in ExportTraceServiceRequest.FromString(raw).resource_spans:
                resource = _plain(group.resource.attributes)
                found += [(resource, s) for scope in group.scope_spans for s in scope.spans]
        return sorted(found, key=lambda pair: int(pair[1].start_time_unix_nano))


def _plain(attributes: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in attributes}


async def test_a_collector_gets_the_whole_life_of_a_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20collector-key")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    collector = Collector()
    async with serving(collector.app()) as (endpoint,):
        tracing = f"tracing: {{endpoint: '{endpoint}', sample: 0, clients_decide: true}}, "
        settings = config.parse(
            CONFIG.replace("serving: {", "serving: {" + tracing).replace("MORE", "pinning: false")
        )
        release = Release(
            release_id=OLD,
            service_id="tiny",
            serving=SPEC,
            provenance=Provenance(created_at=0),
            path="x",
        )
        of_worker = worker_main.open_tracing(endpoint, release, "worker-a")
        async with working(of_worker) as worker:
            mounts = {"http://old": httpx.ASGITransport(worker.app())}
            upstream = httpx.AsyncClient(mounts=mounts, headers={PROTOCOL_HEADER: PROTOCOL_VERSION})
            gateway = build(
                Workspace(tmp_path),
                settings,
                http=upstream,
                clock=SystemClock(),
                tracing=open_tracing(settings, SystemClock(), "gateway"),
            )
            gateway.state.apply(table(arm("champion", OLD, "http://old")))
            public = httpx.AsyncClient(
                transport=httpx.ASGITransport(gateway.public_app()), base_url="http://gateway"
            )
            async with upstream, public:
                answer = await public.post(
                    "/v1/images/generations",
                    json={"prompt": PROMPT, "user": USER, "seed": 1},
                    headers={
                        "traceparent": SAMPLED,
                        "tracestate": "x=tracestate-of-somebody",
                        "baggage": "y=baggage-of-somebody",
                        "authorization": f"Bearer {KEY}",
                    },
                )
                assert answer.status_code == 200
                assert (await public.get("/readyz")).status_code == 200
                await gateway.close()
    assert all(h["authorization"] == "Bearer collector-key" for h in collector.headers)
    sent = b"".join(collector.raw)
    assert [p for p in PRIVATE if p.encode() in sent] == []

    spans = collector.spans()
    assert Counter(s.name for _, s in spans) == Counter(
        (
            *("POST /v1/images/generations", "attempt", "generate"),
            *("queue", "encode", "denoise", "decode"),
        )
    )
    named = {s.name: s for _, s in spans}
    request, attempt, made = (
        named[n] for n in ("POST /v1/images/generations", "attempt", "generate")
    )
    assert {s.trace_id.hex() for _, s in spans} == {TRACE}
    assert request.parent_span_id.hex() == PARENT
    assert attempt.parent_span_id == request.span_id
    assert made.parent_span_id == attempt.span_id
    assert [s.kind for s in (request, attempt, made)] == [2, 3, 2]  # server, client, server
    request_id = answer.headers["x-request-id"]
    assert _plain(request.attributes) == {
        "http.request.method": "POST",
        "http.route": "/v1/images/generations",
        "http.response.status_code": 200,
        "intonaco.request_id": request_id,
        "intonaco.task": "generate",
        "intonaco.images": 1,
        "intonaco.stream": False,
        "intonaco.assigned_arm": "champion",
        "intonaco.arm": "champion",
        "intonaco.release": OLD[:10],
    }
    tried = {
        "intonaco.request_id": request_id,
        "intonaco.release": OLD[:10],
        "intonaco.outcome": "ok",
        "intonaco.batch_size": 1,
        "intonaco.padded_size": 2,
        **{f"intonaco.{k}": v for k, v in QUICK.items()},
    }
    assert _plain(attempt.attributes) == tried | {"intonaco.arm": "champion"}
    assert _plain(made.attributes) == tried | {
        "http.request.method": "POST",
        "http.route": "/generate",
        "http.response.status_code": 200,
    }
    at = 0
    for name, seconds in (("queue", None), ("encode", 0.25), ("denoise", 2.0), ("decode", 0.5)):
        part = named[name]
        assert part.parent_span_id == made.span_id
        took = (part.end_time_unix_nano - part.start_time_unix_nano) / 1e9
        assert took == pytest.approx(took if seconds is None else seconds, abs=1e-6)
        assert abs(part.start_time_unix_nano - (at or part.start_time_unix_nano)) < 2000
        at = part.end_time_unix_nano
    resources = {s.name: r for r, s in spans}
    assert {k: v for k, v in resources["attempt"].items() if k.startswith("service")} == {
        "service.name": "intonaco-gateway",
        "service.namespace": "tiny",
        "service.instance.id": "gateway",
        "service.version": "0.1.0",
    }
    assert resources["queue"]["service.name"] == "intonaco-worker"
    assert resources["queue"]["service.instance.id"] == "worker-a"


async def test_a_collector_that_is_away_costs_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "EXPORT_S", 0.1)
    monkeypatch.setattr(shared, "CLOSE_S", 0.1)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    tracing = GatewayTracing(
        shared.exporting("http://127.0.0.1:9"),  # nobody listens there
        service="tiny",
        name="gateway",
        share=1.0,
        clients_decide=False,
        now=time.time,
    )
    async with in_one_loop(tmp_path, tracing=tracing) as stage:
        stage.route()
        for _ in range(3):
            assert (await stage.ask()).status_code == 200


def test_where_spans_go() -> None:
    assert shared.address("http://c:4318") == shared.address("http://c:4318/")
    assert shared.address("http://c:4318") == "http://c:4318/v1/traces"
    assert shared.address("https://c/otlp/v1/traces") == "https://c/otlp/v1/traces"


# ---------------------------------------------------------------------- the gateway


@dataclass
class Seen:
    """Spans that ended, in the order they ended."""

    exporter: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)

    @property
    def processor(self) -> SimpleSpanProcessor:
        return SimpleSpanProcessor(self.exporter)

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        return [s for s in self.spans if s.name == name]


def facts(span: ReadableSpan) -> dict[str, Any]:
    return {
        k.removeprefix("intonaco."): v
        for k, v in (span.attributes or {}).items()
        if k.startswith("intonaco.")
    }


def tracer(
    seen: Seen,
    *,
    share: float = 1.0,
    clients_decide: bool = False,
    draw: Callable[[], float] = lambda: 0.0,
    now: Callable[[], float] = time.time,
) -> GatewayTracing:
    return GatewayTracing(
        seen.processor,
        service="tiny",
        name="gateway",
        share=share,
        clients_decide=clients_decide,
        now=now,
        draw=draw,
    )


def arm(name: str, release: str, url: str, weight: float = 1.0) -> Arm:
    role = ArmRole(name.partition(":")[0])
    return Arm(name=name, role=role, release=release, urls=(url,), weight=weight)


def table(*arms: Arm) -> RoutingTable:
    return RoutingTable(service_id="tiny", epoch=1, salt="s", arms=arms)


async def test_each_try_is_told_and_the_users_answer_is_no_error(tmp_path: Path) -> None:
    seen = Seen()
    async with in_one_loop(tmp_path, tracing=tracer(seen)) as stage:
        stage.route(challenger=1.0)
        stage.new.fail_status = 500
        assert (await stage.ask(user=USER, prompt=PROMPT)).status_code == 200
        await stage.gateway.copies.settle()
        (request,) = seen.named("POST /v1/images/generations")
        of_user = [
            s for s in seen.named("attempt") if s.parent and s.parent.span_id == _id(request)
        ]
        assert [(facts(s)["arm"], facts(s)["outcome"]) for s in of_user] == [
            ("challenger:x", "error"),
            ("champion", "ok"),
        ]
        assert [s.status.status_code for s in of_user] == [StatusCode.ERROR, StatusCode.UNSET]
        assert "batch_size" not in facts(of_user[0])
        assert request.status.status_code is StatusCode.UNSET
        assert facts(request)["assigned_arm"] == "challenger:x"
        assert facts(request)["arm"] == "champion"
        assert stage.new.traceparents[0] == _header(of_user[0])
        assert stage.old.traceparents == [_header(of_user[1])]
        stage.old.fail_status = 500
        assert (await stage.ask(prompt="another")).status_code == 502
        assert seen.named("POST /v1/images/generations")[-1].status.status_code is StatusCode.ERROR
    assert [p for p in PRIVATE if any(p in s.to_json() for s in seen.spans)] == []
    assert not any("said the worker" in s.to_json() for s in seen.spans)


async def until(good: Callable[[], bool]) -> None:
    for _ in range(5000):
        if good():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("it never was")


def _id(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.span_id)


def _trace(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.trace_id)


def _header(span: ReadableSpan) -> str:
    assert span.context is not None
    flags = int(span.context.trace_flags)
    return f"00-{_trace(span):032x}-{_id(span):016x}-{flags:02x}"


async def test_times_are_the_clocks(tmp_path: Path) -> None:
    seen, clock = Seen(), FakeClock(1_700_000_000.0)
    async with in_one_loop(tmp_path, clock=clock, tracing=tracer(seen, now=clock.now)) as stage:
        stage.route()
        stage.old.hold = asyncio.Event()
        asked = asyncio.create_task(stage.ask())
        await until(lambda: bool(stage.old.asked))
        clock.advance(7.0)
        stage.old.hold.set()
        assert (await asked).status_code == 200
    for span in seen.spans:
        assert span.start_time == 1_700_000_000_000_000_000
        assert span.end_time == 1_700_000_007_000_000_000


async def test_a_share_is_drawn_and_clients_do_not_decide(tmp_path: Path) -> None:
    seen, drawn = Seen(), iter([0.09, 0.1, 0.5, 0.0])
    tracing = tracer(seen, share=0.1, draw=lambda: next(drawn))
    async with in_one_loop(tmp_path, tracing=tracing) as stage:
        stage.route()
        for _ in range(4):
            assert (await stage.ask({"traceparent": SAMPLED})).status_code == 200
        assert (await stage.http.get("/livez")).status_code == 200  # nothing is drawn for it
        assert (await stage.http.get("/metrics")).status_code == 200
        assert [t is not None for t in stage.old.traceparents] == [True, False, False, True]
    requests = seen.named("POST /v1/images/generations")
    assert len(requests) == 2
    assert {f"{_trace(s):032x}" for s in requests} == {TRACE}, "the client's trace is gone on with"


async def test_clients_decide_where_they_may(tmp_path: Path) -> None:
    seen = Seen()
    tracing = tracer(seen, share=0.5, clients_decide=True, draw=lambda: 0.9)
    async with in_one_loop(tmp_path, tracing=tracing) as stage:
        stage.route()
        for header in ({"traceparent": SAMPLED}, {"traceparent": UNSAMPLED}, {}):
            assert (await stage.ask(header)).status_code == 200
    assert len(seen.named("POST /v1/images/generations")) == 1


@pytest.mark.parametrize(
    "given",
    [
        [("traceparent", "00-x")],
        [("traceparent", f"00-{'0' * 32}-{PARENT}-01")],
        [("traceparent", f"00-{TRACE}-{'0' * 16}-01")],
        [("traceparent", f"ff-{TRACE}-{PARENT}-01")],
        [("traceparent", SAMPLED + "-more")],
        [("traceparent", SAMPLED.upper())],
        [("traceparent", "0" * 5000)],
        [("traceparent", "\xff\xfe".encode("latin-1").decode("latin-1"))],
        [("traceparent", SAMPLED), ("traceparent", UNSAMPLED)],
        [],
    ],
)
async def test_a_traceparent_that_is_none_begins_a_trace(
    given: list[tuple[str, str]], tmp_path: Path
) -> None:
    seen = Seen()
    async with in_one_loop(tmp_path, tracing=tracer(seen)) as stage:
        stage.route()
        answer = await stage.http.post(
            "/v1/images/generations",
            json={"prompt": "a cat"},
            headers=[(k.encode(), v.encode("latin-1")) for k, v in given],
        )
        assert answer.status_code == 200
    (request,) = seen.named("POST /v1/images/generations")
    assert request.parent is None
    assert f"{_trace(request):032x}" != TRACE


async def test_all_images_of_a_request_are_in_its_trace(tmp_path: Path) -> None:
    seen = Seen()
    async with in_one_loop(tmp_path, tracing=tracer(seen)) as stage:
        stage.route()
        assert (await stage.ask(n=3)).status_code == 200
        assert (await stage.ask(model="unknown")).status_code == 404
        assert (await stage.http.get("/v1/files/secret-name.png")).status_code == 404
        assert (await stage.http.get("/somewhere/secret")).status_code == 404
    (request, refused) = seen.named("POST /v1/images/generations")
    assert len(seen.named("attempt")) == 3
    assert {_trace(s) for s in seen.named("attempt")} == {_trace(request)}
    assert (refused.attributes or {})["http.response.status_code"] == 404
    names = {s.name for s in seen.spans} - {"attempt", "POST /v1/images/generations"}
    assert names == {"GET /v1/files/{name}", "GET other"}
    assert not any("secret" in s.to_json() for s in seen.spans)


async def test_a_stream_is_traced_to_its_end(tmp_path: Path) -> None:
    seen = Seen()
    async with in_one_loop(tmp_path, tracing=tracer(seen)) as stage:
        stage.route()
        assert (await stage.ask(stream=True, partial_images=2)).status_code == 200
    (request,), (attempt,) = seen.named("POST /v1/images/generations"), seen.named("attempt")
    assert facts(request)["stream"] is True
    assert facts(request)["streamed_status"] == 200
    assert facts(attempt)["outcome"] == "ok"
    assert attempt.end_time is not None
    assert request.end_time is not None
    assert attempt.end_time <= request.end_time


async def test_a_request_that_is_cancelled_says_so(tmp_path: Path) -> None:
    seen = Seen()
    async with in_one_loop(tmp_path, tracing=tracer(seen)) as stage:
        stage.route()
        stage.old.hold = asyncio.Event()
        asked = asyncio.create_task(stage.ask())
        await until(lambda: bool(stage.old.asked))
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
    (attempt,) = seen.named("attempt")
    assert facts(attempt)["outcome"] == "cancelled"
    assert attempt.status.status_code is StatusCode.UNSET


async def test_copies_have_traces_of_their_own_with_a_link(tmp_path: Path) -> None:
    seen = Seen()
    async with in_one_loop(tmp_path, tracing=tracer(seen)) as stage:
        shadow = arm("shadow:x", NEW, stage.new_url)
        stage.gateway.state.apply(table(arm("champion", OLD, stage.old_url), shadow))
        assert (await stage.ask(prompt=PROMPT)).status_code == 200
        await stage.gateway.copies.settle()
    (request,), (copy,) = seen.named("POST /v1/images/generations"), seen.named("shadow")
    of_champion, of_shadow = seen.named("attempt")
    assert copy.parent is None
    assert copy.kind is SpanKind.INTERNAL
    assert _trace(copy) != _trace(request)
    assert [link.context.span_id for link in copy.links] == [_id(request)]
    assert facts(copy) == {"arm": "shadow:x", "release": NEW[:10]}
    assert of_shadow.parent is not None
    assert of_shadow.parent.span_id == _id(copy)
    assert of_champion.parent is not None
    assert of_champion.parent.span_id == _id(request)
    assert not any(PROMPT in s.to_json() for s in seen.spans)


async def test_probes_after_a_failure_are_linked_too(tmp_path: Path) -> None:
    seen = Seen()
    async with in_one_loop(tmp_path, tracing=tracer(seen)) as stage:
        stage.route(challenger=1.0)
        assert (await stage.ask(prompt="served before")).status_code == 200
        stage.new.fail_status = 500
        assert (await stage.ask(prompt="fails")).status_code == 200
        await stage.gateway.copies.settle()
    failing = seen.named("POST /v1/images/generations")[-1]
    probes = seen.named("probe")
    assert probes
    for probe in probes:
        assert [link.context.span_id for link in probe.links] == [_id(failing)]
        assert probe.parent is None


async def test_copies_of_what_is_not_traced_are_not(tmp_path: Path) -> None:
    seen = Seen()
    async with in_one_loop(tmp_path, tracing=tracer(seen, share=0.0)) as stage:
        shadow = arm("shadow:x", NEW, stage.new_url)
        stage.gateway.state.apply(table(arm("champion", OLD, stage.old_url), shadow))
        assert (await stage.ask()).status_code == 200
        await stage.gateway.copies.settle()
        assert stage.new.traceparents == [None]
    assert seen.spans == []


# ---------------------------------------------------------------------- the worker


@dataclass
class Asking:
    """Ask a worker: (traceparent, fields of the request) → its answer."""

    client: httpx.AsyncClient

    async def __call__(self, traceparent: str | None = SAMPLED, **fields: Any) -> httpx.Response:
        body = {"request_id": "r", "prompt": PROMPT, "seed": 1, "guidance_scale": 1.0}
        headers = {} if traceparent is None else {"traceparent": traceparent}
        return await self.client.post("/generate", json=body | QUICK | fields, headers=headers)


@asynccontextmanager
async def asking(seen: Seen) -> AsyncIterator[Asking]:
    tracing = WorkerTracing(
        seen.processor, service="tiny", name="w", now=time.time, monotonic=time.monotonic
    )
    async with working(tracing) as worker:
        client = httpx.AsyncClient(
            transport=httpx.ASGITransport(worker.app()),
            base_url="http://worker",
            headers={PROTOCOL_HEADER: PROTOCOL_VERSION},
        )
        async with client:
            yield Asking(client)


async def test_a_worker_traces_what_the_gateway_traces() -> None:
    seen = Seen()
    async with asking(seen) as ask:
        for header in (None, UNSAMPLED, "nonsense"):
            assert (await ask(header)).status_code == 200
        assert (await ask.client.get("/readyz", headers={"traceparent": SAMPLED})).is_success
        assert seen.spans == []
        assert (await ask()).status_code == 200
        assert (await ask(stream=True, partial_images=1)).status_code == 200
    assert Counter(s.name for s in seen.spans) == dict.fromkeys(
        ("generate", "queue", "encode", "denoise", "decode"), 2
    )


@pytest.mark.parametrize(
    ("fields", "outcome", "status"),
    [
        ({"seed": 400}, "invalid", 400),
        ({"seed": 500}, "internal", 500),
        ({"seed": 500, "stream": True}, "internal", 200),
        ({"deadline": 1.0}, "deadline", 504),
        ({"partial_images": 99}, "invalid", 400),
    ],
)
async def test_what_a_worker_cannot_do_is_told_by_its_code(
    fields: dict[str, Any], outcome: str, status: int
) -> None:
    seen = Seen()
    async with asking(seen) as ask:
        assert (await ask(**fields)).status_code == status
    (span,) = seen.spans
    assert (span.name, facts(span)["outcome"]) == ("generate", outcome)
    assert span.status.status_code is StatusCode.ERROR
    assert span.events == ()
    assert PROMPT not in span.to_json()


# ---------------------------------------------------------------------- off, missing, wrong


def test_without_the_setting_nothing_of_it_is_imported(tmp_path: Path) -> None:
    code = """
import asyncio, sys, httpx
from pathlib import Path
from intonaco.clock import SystemClock
from intonaco.config import parse
from intonaco.serving.gateway.main import build, open_tracing
from intonaco.serving.worker.app import Worker
from intonaco.serving.worker.main import open_tracing as of_worker
from intonaco.workspace import Workspace

async def main():
    config = parse("service: s")
    assert open_tracing(config, SystemClock(), "gateway") is None
    assert of_worker(None, None, "worker") is None
    async with httpx.AsyncClient() as http:
        gateway = build(Workspace(Path(sys.argv[1])), config, http=http, clock=SystemClock())
        gateway.public_app(), Worker(sizes=(1,), wait_s=0, queue_limit=1).app()
        await gateway.close()

asyncio.run(main())
sys.exit(any(m.partition(".")[0] == "opentelemetry" for m in sys.modules))
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)


TRACED = "service: s\nserving: {tracing: {endpoint: 'http://127.0.0.1:4318'}}\n"


def test_a_missing_extra_is_said_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(plugins, "find_spec", lambda name: None)
    settings = config.parse(TRACED)
    with pytest.raises(ConfigError, match=r"serving\.tracing needs the extra 'otel'") as error:
        open_tracing(settings, SystemClock(), "gateway")
    assert "pip install 'intonaco[otel]'" in (error.value.hint or "")
    problems = app.check(settings, Workspace(tmp_path))
    assert [p for p in problems if "serving.tracing" in p] == [str(error.value)]
    release = Release(
        release_id=OLD,
        service_id="s",
        serving=SPEC,
        provenance=Provenance(created_at=0),
        path="x",
    )
    with caplog.at_level(logging.WARNING):
        assert worker_main.open_tracing("http://127.0.0.1:4318", release, "w") is None
    assert "not traced: serving.tracing needs the extra" in caplog.text


def test_an_extra_of_which_not_even_the_parent_is_there() -> None:
    with pytest.raises(ConfigError, match="needs the extra 'x'"):
        plugins.need_extra("field", "no_such_package.no_such_module", "x")
    plugins.need_extra("serving.tracing", *plugins.OTEL)


@pytest.mark.parametrize(
    ("endpoint", "why"),
    [
        ("collector:4318", "not http"),
        ("grpc://collector:4317", "not http"),
        ("http://", "not http"),
        ("http://collector:99999", "not http"),
        ("http://[", "not http"),
        ("https://me:secret@collector", "OTEL_EXPORTER_OTLP_HEADERS"),
        ("https://collector/v1/traces?key=secret", "OTEL_EXPORTER_OTLP_HEADERS"),
    ],
)
def test_endpoints_that_are_none(endpoint: str, why: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(why)) as error:
        config.parse(f"service: s\nserving: {{tracing: {{endpoint: '{endpoint}'}}}}\n")
    assert "serving.tracing.endpoint" in str(error.value)
    assert "secret" not in str(error.value)


def test_what_is_set_and_what_is_not() -> None:
    assert config.parse("service: s").serving.tracing is None
    tracing = config.parse(TRACED).serving.tracing
    assert tracing is not None
    assert (tracing.sample, tracing.clients_decide) == (0.1, False)
    with pytest.raises(ConfigError, match=r"serving\.tracing\.sample"):
        config.parse(TRACED.replace("endpoint:", "sample: 1.5, endpoint:"))
