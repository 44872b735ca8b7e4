"""A gateway under test with workers that speak the real protocol: in one loop without sockets, or
over HTTP for clients that need a server. Every answer is held against the published OpenAPI."""

from __future__ import annotations

import asyncio
import base64
import io
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from intonaco.clock import Clock, SystemClock
from intonaco.codec import decode, encode
from intonaco.config import parse
from intonaco.messages import (
    GENERATED_HEADER,
    PROTOCOL_HEADER,
    PROTOCOL_VERSION,
    STREAM_TYPE,
    Generated,
    GenerateRequest,
    StreamEvent,
    WorkerError,
)
from intonaco.segment_log import SegmentReader
from intonaco.serving.gateway import openapi
from intonaco.serving.gateway.app import Gateway
from intonaco.serving.gateway.main import build
from intonaco.serving.http import bind, server, unless_gone
from intonaco.types import Arm, ArmRole, Json, Record, RoutingTable
from intonaco.workspace import Workspace

if TYPE_CHECKING:
    from intonaco.serving.gateway.spans import GatewayTracing

OLD, NEW = "a" * 64, "b" * 64
CONFIG = """
service: tiny
model: {name: m, generation: {steps: 10, guidance_scale: 1.5, width: 64, height: 64}}
serving: {gateway: {port: 0, challenger_timeout_s: 5, request_timeout_s: 20, MORE}}
monitoring: {signals: {errors: {of: errors}}}
"""


def png(size: tuple[int, int], colour: Any = (10, 20, 30), mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, colour).save(out, format="PNG")
    return out.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """Of a PNG."""
    crc = zlib.crc32(kind + data).to_bytes(4)
    return len(data).to_bytes(4) + kind + data + crc


def claim(kind: str, width: int, height: int) -> bytes:
    """A header that claims a size, with next to nothing behind it."""
    if kind == "PNG":
        head = width.to_bytes(4) + height.to_bytes(4) + b"\x08\x02\0\0\0"
        body = chunk(b"IDAT", zlib.compress(bytes(1000)))
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body + chunk(b"IEND", b"")
    if kind == "JPEG":
        sof = b"\xff\xc0\0\x11\x08" + height.to_bytes(2) + width.to_bytes(2)
        return b"\xff\xd8\xff\xe0\0\x04\0\0" + sof + bytes(12) + b"\xff\xda" + bytes(40)
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"VP8X\x0a\0\0\0" + bytes(4) + size + b"VP8 " + (20).to_bytes(4, "little") + bytes(20)
    return b"RIFF" + (len(body) + 4).to_bytes(4, "little") + b"WEBP" + body


def opened(raw: bytes | str | None) -> Image.Image:
    """A picture of bytes or base64."""
    assert raw is not None
    data = base64.b64decode(raw) if isinstance(raw, str) else raw
    picture = Image.open(io.BytesIO(data))
    picture.load()
    return picture


def pixel(picture: Image.Image, x: int = 0, y: int = 0) -> tuple[int, ...]:
    """Of a picture with several channels."""
    found = picture.getpixel((x, y))
    assert isinstance(found, tuple)
    return found


@dataclass
class FakeWorker:
    """Speaks protocol 2. Its image is one colour: (release, step or steps, seed)."""

    release: str
    asked: list[GenerateRequest] = field(default_factory=list)
    traceparents: list[str | None] = field(default_factory=list)
    fail_status: int | None = None  # before anything is sent
    fail_after: int | None = None  # a stream breaks off after so many partial images
    hold: asyncio.Event | None = None  # waited for before the last image
    gone: asyncio.Event = field(default_factory=asyncio.Event)  # a client hung up

    def picture(self, wanted: GenerateRequest, step: int) -> bytes:
        colour = (int(self.release[:2], 16), step, wanted.seed % 256)
        return png((wanted.width, wanted.height), colour)

    def generated(self, wanted: GenerateRequest) -> Generated:
        return Generated(
            request_id=wanted.request_id,
            release=self.release,
            queue_seconds=0.25,
            service_seconds=2.0,
            batch_size=1,
            padded_size=1,
        )

    async def generate(self, request: Request) -> Response:
        assert request.headers[PROTOCOL_HEADER] == PROTOCOL_VERSION
        wanted = decode(GenerateRequest, await request.body())
        self.asked.append(wanted)
        self.traceparents.append(request.headers.get("traceparent"))
        headers = {PROTOCOL_HEADER: PROTOCOL_VERSION}
        if self.fail_status is not None:
            code = {429: "full", 400: "invalid"}.get(self.fail_status, "internal")
            text = encode(WorkerError(code=code, message="said the worker"))
            return Response(text, self.fail_status, headers)
        if wanted.stream:
            return StreamingResponse(self.lines(wanted), media_type=STREAM_TYPE, headers=headers)
        try:
            await unless_gone(request, self.held())
        except ClientDisconnect:
            self.gone.set()
            return Response(status_code=499)
        headers[GENERATED_HEADER] = encode(self.generated(wanted))
        return Response(self.picture(wanted, wanted.steps), media_type="image/png", headers=headers)

    async def held(self) -> None:
        if self.hold is not None:
            await self.hold.wait()

    async def lines(self, wanted: GenerateRequest) -> AsyncIterator[str]:
        try:
            yield encode(StreamEvent(kind="progress", step=1, steps=wanted.steps)) + "\n"
            for index in range(wanted.partial_images):
                if index == self.fail_after:
                    problem = WorkerError(code="internal", message="injected")
                    yield encode(StreamEvent(kind="error", error=problem, status=500)) + "\n"
                    return
                step = index + 1
                picture = base64.b64encode(self.picture(wanted, step)).decode()
                seen = StreamEvent(
                    kind="partial", step=step, steps=wanted.steps, index=index, png=picture
                )
                yield encode(seen) + "\n"
            await self.held()
            picture = base64.b64encode(self.picture(wanted, wanted.steps)).decode()
            last = StreamEvent(kind="completed", png=picture, generated=self.generated(wanted))
            yield encode(last) + "\n"
        except asyncio.CancelledError:
            self.gone.set()
            raise

    async def readyz(self, request: Request) -> Response:
        return JSONResponse({"ready": True})

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/generate", self.generate, methods=["POST"]),
                Route("/readyz", self.readyz),
            ]
        )


@dataclass
class Declared:
    """ASGI wrapper that notes each answer that the OpenAPI document does not tell of."""

    app: ASGIApp
    document: dict[str, Any]
    undeclared: list[str] = field(default_factory=list)
    seen: set[tuple[str, str, int]] = field(default_factory=set)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def checked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = {k.decode(): v.decode() for k, v in message["headers"]}
                self.check(scope["method"], scope["path"], message["status"], headers)
            await send(message)

        await self.app(scope, receive, checked)

    def check(self, method: str, path: str, status: int, headers: dict[str, str]) -> None:
        assert headers.get("x-request-id", "").startswith("req_")
        template = next(
            (
                t
                for t in self.document["paths"]
                if t == path or ("{" in t and path.startswith(t.partition("{")[0]))
            ),
            None,
        )
        if template is None or status == 499:
            assert status in (404, 499), f"{path}: {status}"
            return
        operations = self.document["paths"][template]
        if method.lower() not in operations:
            assert status == 405 or method == "HEAD", f"{method} {path}: {status}"
            return
        answers = operations[method.lower()]["responses"]
        self.seen.add((method, template, status))
        if str(status) not in answers:
            self.undeclared.append(f"{method} {template} answers {status}")
            return
        kind = headers.get("content-type", "").partition(";")[0]
        if kind not in answers[str(status)]["content"]:
            self.undeclared.append(f"{method} {template} answers {status} as {kind}")


@dataclass
class Stage:
    workspace: Workspace
    gateway: Gateway
    app: Declared
    old: FakeWorker
    new: FakeWorker
    http: httpx.AsyncClient
    old_url: str = "http://old"
    new_url: str = "http://new"
    url: str = "http://gateway"

    def route(self, challenger: float = 0.0, epoch: int = 1) -> None:
        """The challenger's share of users."""
        arms = (
            self._arm("champion", OLD, 1 - challenger, self.old_url),
            self._arm("challenger:x", NEW, challenger, self.new_url),
        )
        self.gateway.state.apply(RoutingTable(service_id="tiny", epoch=epoch, salt="s", arms=arms))

    def _arm(self, name: str, release: str, weight: float, url: str) -> Arm:
        role = ArmRole(name.partition(":")[0])
        return Arm(name=name, role=role, release=release, urls=(url,), weight=weight)

    async def ask(self, headers: dict[str, str] | None = None, **body: Json) -> httpx.Response:
        content = {"prompt": "a cat", "seed": 1, "user": "u"} | body
        return await self.http.post("/v1/images/generations", json=content, headers=headers)

    async def edit(self, image: bytes, mask: bytes | None = None, **fields: str) -> httpx.Response:
        files = [("image", ("a.png", image))]
        if mask is not None:
            files.append(("mask", ("m.png", mask)))
        data = {"prompt": "a cat", "seed": "1"} | fields
        return await self.http.post("/v1/images/edits", data=data, files=files)

    async def records(self) -> Sequence[Record]:
        await self.gateway.copies.settle()
        return [decode(Record, t) for t in SegmentReader(self.workspace.records).read(10**6)]

    async def metrics(self) -> str:
        return (await self.http.get("/metrics")).text


def _make(
    root: Path,
    more: str,
    http: httpx.AsyncClient,
    clock: Clock,
    tracing: GatewayTracing | None = None,
) -> tuple[Gateway, Declared]:
    config = parse(CONFIG.replace("MORE", more or "pinning: false"))
    gateway = build(Workspace(root), config, http=http, clock=clock, tracing=tracing)
    return gateway, Declared(gateway.public_app(), openapi.document(gateway.limits))


@asynccontextmanager
async def in_one_loop(
    root: Path,
    more: str = "",
    *,
    clock: Clock | None = None,
    client: tuple[str, int] = ("192.0.2.1", 1),
    tracing: GatewayTracing | None = None,
) -> AsyncIterator[Stage]:
    """Without sockets. ``more``: settings of ``serving.gateway`` in YAML's flow style."""
    old, new = FakeWorker(OLD), FakeWorker(NEW)
    mounts = {
        "http://old": httpx.ASGITransport(old.app()),
        "http://new": httpx.ASGITransport(new.app()),
    }
    headers = {PROTOCOL_HEADER: PROTOCOL_VERSION}
    async with httpx.AsyncClient(mounts=mounts, headers=headers) as upstream:
        gateway, app = _make(root, more, upstream, clock or SystemClock(), tracing)
        public = httpx.AsyncClient(
            transport=httpx.ASGITransport(app, client=client), base_url="http://gateway"
        )
        try:
            async with public:
                yield Stage(gateway.recorder.workspace, gateway, app, old, new, public)
        finally:
            await gateway.close()
    assert app.undeclared == []


@asynccontextmanager
async def serving(*apps: ASGIApp) -> AsyncIterator[list[str]]:
    """URLs of real servers of these apps, on the present loop."""
    bound = [bind("127.0.0.1", 0, what="test") for _ in apps]
    running = [server(app, keep_alive_s=5, grace_s=5) for app in apps]
    tasks = [
        asyncio.create_task(s.serve(sockets=[sock]))
        for s, (sock, _) in zip(running, bound, strict=True)
    ]
    try:
        yield [url for _, url in bound]
    finally:
        for each in running:
            each.should_exit = True
        await asyncio.wait_for(asyncio.gather(*tasks), 20)


@asynccontextmanager
async def over_http(root: Path, more: str = "") -> AsyncIterator[Stage]:
    """Gateway and workers behind real sockets on 127.0.0.1."""
    old, new = FakeWorker(OLD), FakeWorker(NEW)
    upstream = httpx.AsyncClient(
        headers={PROTOCOL_HEADER: PROTOCOL_VERSION}, trust_env=False, timeout=30
    )
    gateway, app = _make(root, more, upstream, SystemClock())
    try:
        async with serving(old.app(), new.app(), app) as urls:
            public = httpx.AsyncClient(base_url=urls[2], trust_env=False, timeout=30)
            async with upstream, public:
                workspace = gateway.recorder.workspace
                yield Stage(workspace, gateway, app, old, new, public, *urls)
    finally:
        await gateway.close()
    assert app.undeclared == []
