"""Server-sent events of one image being made, as OpenAI's Images API streams them.

Until the first byte is sent an error has the status that it would have had without a stream, so
that clients retry what is worth retrying. The first byte goes out with the first partial image, or
when nothing came for ``heartbeat_s``. From then on an error is an event, which clients raise.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import pybase64
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from intonaco.messages import ApiError, StreamEvent
from intonaco.serving.gateway.problems import BROKEN
from intonaco.serving.gateway.upstream import OnEvent
from intonaco.serving.http import unless_gone

log = logging.getLogger(__name__)

T = TypeVar("T")

# What an image costs in tokens has no meaning for a diffusion model; clients need the field.
NO_USAGE: Mapping[str, Any] = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}
HEARTBEAT = b": still at work\n\n"


def event(fields: Mapping[str, Any], picture: bytes | None = None) -> bytes:
    """``picture`` becomes ``b64_json``."""
    data = json.dumps(fields).encode()
    if picture is not None:  # base64 needs no escaping
        data = b'{"b64_json": "' + pybase64.b64encode(picture) + b'", ' + data[1:]
    return b"event: " + str(fields["type"]).encode() + b"\ndata: " + data + b"\n\n"


def error_event(error: ApiError) -> bytes:
    return event({"type": "error", **error.body()})


async def to_an_end(
    chunks: AsyncGenerator[bytes, None], failed: Callable[[], None]
) -> AsyncGenerator[bytes, None]:
    """``chunks``; where a defect of ours breaks them off, ``failed`` is called and an error event
    ends them, so that no client takes a stream that was cut for one that ended."""
    try:
        async with contextlib.aclosing(chunks):
            async for chunk in chunks:
                yield chunk
    except Exception:
        log.exception("a stream broke off", extra={"action": "gateway.defect"})
        failed()
        yield error_event(BROKEN)


@dataclass(slots=True)
class Live(Generic[T]):
    """Work under way and its partial images, each index once and rising.

    A second worker that takes over starts from its own first partial image: those that are no
    further than what was shown are left out, so that the picture never falls back and there are
    never more than were asked for (``most``)."""

    start: Callable[[OnEvent], Awaitable[T]]
    most: int
    _queue: asyncio.Queue[StreamEvent | None] = field(default_factory=asyncio.Queue)
    _task: asyncio.Future[T] = field(init=False)
    _shown: int = -1

    def __post_init__(self) -> None:
        self._task = asyncio.ensure_future(self.start(self._on_event))
        self._task.add_done_callback(lambda _: self._queue.put_nowait(None))

    async def _on_event(self, seen: StreamEvent) -> None:
        if seen.kind == "partial" and self._shown < seen.index < self.most:
            self._shown = seen.index
            self._queue.put_nowait(seen)

    async def next(self, timeout_s: float) -> StreamEvent | None:
        """The next partial image, None at the end. Raises TimeoutError when nothing came."""
        async with asyncio.timeout(timeout_s):
            return await self._queue.get()

    def result(self) -> T:
        """What came of it, after ``next`` gave None."""
        return self._task.result()

    async def stop(self) -> None:
        """Cancel the work and wait until it has ended."""
        if not self._task.done():
            self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await self._task


class EventStream(Response):
    """Sends what the generator yields, as long as the client is there. ``ended`` is awaited once,
    whatever happened, even if nothing was sent."""

    media_type = "text/event-stream"

    def __init__(
        self,
        request: Request,
        chunks: AsyncGenerator[bytes, None],
        ended: Callable[[], Awaitable[None]],
        headers: Mapping[str, str],
    ) -> None:
        self.request = request
        self.chunks = chunks
        self.ended = ended
        self.status_code = 200
        self.background = None
        # Proxies must pass each event on at once.
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no", **headers})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with contextlib.suppress(ClientDisconnect):
                await unless_gone(self.request, self._send(send))
        finally:
            await self.ended()

    async def _send(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        async with contextlib.aclosing(self.chunks) as chunks:
            await send(start)
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
