"""The worker's HTTP side: ``/generate``, ``/attest``, ``/livez``, ``/readyz``, ``/drain``.

Before the engine is loaded the worker lives but is not ready.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from intonaco.codec import as_json, decode, encode
from intonaco.errors import StorageError
from intonaco.messages import (
    GENERATED_HEADER,
    PROTOCOL_HEADER,
    PROTOCOL_VERSION,
    Attestation,
    Generated,
    GenerateRequest,
    WorkerError,
)
from intonaco.releases import environment_versions
from intonaco.serving.faults import Fault
from intonaco.serving.http import BodyTooLarge, body, unless_gone
from intonaco.serving.worker.batcher import DeadlinePassed, Done, Draining, MicroBatcher, QueueFull
from intonaco.serving.worker.engine import Engine, InvalidRequest, batch_key, png

log = logging.getLogger(__name__)

HEADERS = {PROTOCOL_HEADER: PROTOCOL_VERSION}
MAX_BODY = 2**20
NO_LONGER_THERE = 499


@dataclass(frozen=True, slots=True)
class Item:
    request: GenerateRequest
    slow: float = 0.0  # injected seconds


@dataclass(slots=True)
class Worker:
    """``engine`` is set once loaded, ``ready`` once warm."""

    sizes: Sequence[int]
    wait_s: float
    queue_limit: int
    fault: Fault | None = None
    engine: Engine | None = None
    ready: bool = False
    batcher: MicroBatcher[Item, Any] = field(init=False)
    _ordinal: Any = field(init=False, default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.batcher = MicroBatcher(
            self._run, sizes=self.sizes, wait_s=self.wait_s, limit=self.queue_limit
        )

    def warm_up(self) -> None:
        """One batch of each size with the release's own generation defaults."""
        assert self.engine is not None
        request = self.engine.warm_up_request()
        for size in self.sizes:
            self.engine.generate([request], size)

    def _run(self, items: Sequence[Item], size: int) -> list[Any]:
        assert self.engine is not None
        slow = max(i.slow for i in items)
        if slow:  # an injected fault, said at the start of the log
            time.sleep(slow)
        return list(self.engine.generate([i.request for i in items], size).images)

    # ------------------------------------------------------------------ endpoints

    async def generate(self, request: Request) -> Response:
        theirs = request.headers.get(PROTOCOL_HEADER, "")
        if theirs.partition(".")[0] != PROTOCOL_VERSION.partition(".")[0]:
            return _error(409, "protocol", f"this worker speaks {PROTOCOL_VERSION}, not {theirs!r}")
        try:
            wanted = decode(GenerateRequest, await body(request, MAX_BODY))
        except StorageError as error:
            return _error(400, "invalid", str(error))
        except BodyTooLarge:
            return _error(400, "invalid", f"the body is over {MAX_BODY} bytes")
        if self.engine is None or not self.ready:
            return _error(503, "draining", "not ready yet", retry_after=1)
        try:
            self.engine.check(wanted)
        except InvalidRequest as error:
            return _error(400, "invalid", str(error))
        ordinal = next(self._ordinal)
        hit = self.fault if self.fault and self.fault.hits(ordinal) else None
        if hit and hit.kind == "errors":
            return _error(500, "internal", "injected fault")
        try:
            future = self.batcher.submit(
                Item(wanted, hit.seconds if hit else 0.0), batch_key(wanted), wanted.deadline
            )
        except QueueFull:
            return _error(429, "full", "the queue is full", retry_after=1)
        except Draining:
            return _error(503, "draining", "no new work is taken", retry_after=1)
        try:
            done = await unless_gone(request, _result(future))
        except ClientDisconnect:
            return _error(NO_LONGER_THERE, "internal", "the client hung up")
        except DeadlinePassed:
            return _error(504, "deadline", "the deadline passed in the queue")
        except Draining:
            return _error(503, "draining", "stopped before the batch began", retry_after=1)
        except Exception as error:  # whatever the pipeline raised; the batcher logged it
            return _error(500, "internal", type(error).__name__)
        generated = Generated(
            request_id=wanted.request_id,
            release=self.engine.release_id,
            queue_seconds=done.queue_seconds,
            service_seconds=done.service_seconds,
            batch_size=done.batch_size,
            padded_size=done.padded_size,
        )
        headers = HEADERS | {GENERATED_HEADER: encode(generated)}
        return Response(await _png(done.output), media_type="image/png", headers=headers)

    async def attest(self, request: Request) -> Response:
        if self.engine is None:
            return _error(503, "draining", "still loading", retry_after=1)
        value = Attestation(
            release_id=self.engine.release_id,
            protocol=PROTOCOL_VERSION,
            pid=os.getpid(),
            serving=as_json(self.engine.spec),
            versions=environment_versions(),
            load_seconds=self.engine.load_seconds,
            peak_memory_bytes=self.engine.peak_memory_bytes(),
        )
        return Response(encode(value), media_type="application/json", headers=HEADERS)

    async def livez(self, request: Request) -> Response:
        return JSONResponse({"live": True}, headers=HEADERS)

    async def readyz(self, request: Request) -> Response:
        serving = self.ready and not self.batcher.draining
        state = {
            "ready": serving,
            "draining": self.batcher.draining,
            "in_flight": self.batcher.in_flight,
            "release_id": self.engine.release_id if self.engine else None,
        }
        return JSONResponse(state, 200 if serving else 503, headers=HEADERS)

    async def drain(self, request: Request) -> Response:
        """Take no new work; ``?off=1`` takes it again."""
        self.batcher.drain("off" not in request.query_params)
        log.info("draining=%s", self.batcher.draining, extra={"action": "worker.drain"})
        state = {"draining": self.batcher.draining, "in_flight": self.batcher.in_flight}
        return JSONResponse(state, headers=HEADERS)

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/generate", self.generate, methods=["POST"]),
                Route("/attest", self.attest),
                Route("/livez", self.livez),
                Route("/readyz", self.readyz),
                Route("/drain", self.drain, methods=["POST"]),
            ],
            exception_handlers={HTTPException: _http_error, Exception: _server_error},
        )


async def _result(future: Any) -> Done[Any]:
    done: Done[Any] = await asyncio.wrap_future(future)
    return done


async def _png(image: Any) -> bytes:
    # Small images are encoded faster than a thread is handed the work.
    if image.width * image.height <= 256 * 256:
        return png(image)
    return await asyncio.to_thread(png, image)


def _error(status: int, code: str, message: str, retry_after: int | None = None) -> Response:
    headers = dict(HEADERS)
    if retry_after is not None:
        headers["retry-after"] = str(retry_after)
    text = encode(WorkerError(code=code, message=message))
    return Response(text, status, media_type="application/json", headers=headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, "invalid", str(error.detail))


async def _server_error(request: Request, error: Exception) -> Response:
    return _error(500, "internal", type(error).__name__)
