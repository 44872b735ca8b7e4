"""One try at one worker: an HTTP call and what came of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import httpx
import pybase64

from intonaco.clock import Clock
from intonaco.codec import decode, encode
from intonaco.errors import StorageError
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
from intonaco.serving.gateway.foreign import Foreign, is_foreign
from intonaco.serving.gateway.picture_headers import is_whole_png
from intonaco.serving.gateway.state import GatewayState
from intonaco.serving.gateway.transport import WorkerTransport
from intonaco.serving.http import GATEWAY_KEEP_ALIVE_S
from intonaco.types import Arm, Attempt, Outcome
from intonaco.upstreams import retry_after

if TYPE_CHECKING:
    from intonaco.serving.gateway.spans import GatewayTracing

CONNECT_S = 2.0
DOWN_S = 1.0  # how long a URL that refused or broke a connection is tried last
DRAIN_S = 0.2  # for a worker to end a stream after its last line
READY_S = 1.0  # for a worker to say whether it is ready
HEADERS = {
    PROTOCOL_HEADER: PROTOCOL_VERSION,
    "content-type": "application/json",
    "accept-encoding": "identity",
}

OnEvent = Callable[[StreamEvent], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """``refused``: nothing was sent or begun, so another try is surely safe. ``broken``: the
    connection to a worker of ours broke, as it does when the worker dies."""

    attempt: Attempt
    png: bytes | None = None
    refused: bool = False
    broken: bool = False

    @property
    def outcome(self) -> Outcome:
        return self.attempt.outcome

    @property
    def hard(self) -> bool:
        """Whether it counts against the release."""
        return self.outcome in (Outcome.ERROR, Outcome.TIMEOUT)


def client(most_bytes: int) -> httpx.AsyncClient:
    """Pooled connections to workers. ``most_bytes``: of an answer; a larger one is an error."""
    return httpx.AsyncClient(
        transport=WorkerTransport(limit=most_bytes, keep_alive_s=GATEWAY_KEEP_ALIVE_S),
        timeout=httpx.Timeout(None, connect=CONNECT_S),
        trust_env=False,
        headers=HEADERS,
    )


@dataclass(slots=True)
class Upstream:
    state: GatewayState
    http: httpx.AsyncClient
    clock: Clock
    most_bytes: int = 2**27  # of an answer
    foreign: Foreign | None = None  # for arms that are other people's servers
    tracing: GatewayTracing | None = None
    _busy: Counter[str] = field(default_factory=Counter)
    _down: dict[str, float] = field(default_factory=dict)

    def order(self, urls: Sequence[str]) -> list[str]:
        """URLs, the least busy first, those that just refused or broke a connection
        last."""
        now = self.clock.now()
        return sorted(urls, key=lambda u: (now - self._down.get(u, 0) < DOWN_S, self._busy[u]))

    async def any_ready(self, arm: Arm) -> bool:
        """Whether a worker of the arm says it is ready."""
        for url in self.order(arm.urls):
            if is_foreign(url):
                if self.foreign is not None and await self.foreign.ready(arm.release):
                    return True
                continue
            try:
                async with asyncio.timeout(READY_S):
                    response = await self.http.get(f"{url}/readyz?release={arm.release}")
            except (httpx.HTTPError, TimeoutError):
                continue
            if response.status_code == 200:
                return True
        return False

    async def generate(
        self,
        arm: Arm,
        url: str,
        request: GenerateRequest,
        deadline: float,
        on_event: OnEvent | None = None,
    ) -> Reply:
        """One image of one worker, before ``deadline`` (epoch seconds).

        With ``on_event`` the worker is asked for a stream, and what comes before its last line is
        told there, in order; a worker that answers plainly is fine. Who listens slowly delays
        nothing: the worker's time is taken when its last line is here. Never raises, except when
        cancelled or what ``on_event`` raises."""
        start = self.clock.now()
        left = deadline - start
        wanted = replace(
            request, deadline=deadline, stream=on_event is not None, release=arm.release
        )
        end = _End(error="")
        refused = broken = False
        span = None if self.tracing is None else self.tracing.attempt(arm, request, start)
        headers = None if span is None else span.headers
        self._busy[url] += 1
        told = None if on_event is None else _Teller(on_event)
        try:
            with self.state.flight(arm.release):
                async with asyncio.timeout(max(0.0, left)):
                    if is_foreign(url):
                        end = await self._elsewhere(arm, wanted)
                    else:
                        end = await self._ask(url, wanted, told, headers)
            end = _checked(end, arm.release, request.request_id)
        except TimeoutError:
            end = _End(outcome=Outcome.TIMEOUT, error=f"no answer within {left:.1f} s")
        except (httpx.ConnectError, httpx.ConnectTimeout) as problem:
            self._down[url] = self.clock.now()
            end, refused = _End(error=f"{type(problem).__name__}: {problem}"), True
        except httpx.HTTPError as problem:
            end = _End(error=f"{type(problem).__name__}: {problem}")
            broken = isinstance(problem, httpx.NetworkError) and not is_foreign(url)
            if broken:
                self._down[url] = self.clock.now()
        except StorageError as problem:
            end = _End(error=f"unreadable answer: {type(problem).__name__}")
        except BaseException:
            if told is not None:
                told.stop()
            if span is not None:
                span.cancel()
            raise
        finally:
            self._busy[url] -= 1
            if not self._busy[url]:
                del self._busy[url]  # its worker may never come back
        attempt = _attempt(arm, start, self.clock.now() - start, end)
        if span is not None:
            span.end(attempt)
        if told is not None:
            await told.finish(max(0.0, deadline - self.clock.now()))
        refused = refused or end.refused
        return Reply(attempt=attempt, png=end.png, refused=refused, broken=broken)

    async def _elsewhere(self, arm: Arm, wanted: GenerateRequest) -> _End:
        """By somebody else's server, which tells no times of its own: all of its answer's time
        counts as service. Raises httpx.HTTPError."""
        if self.foreign is None:
            return _End(error="no upstream is configured here")
        start = self.clock.now()
        answer = await self.foreign.draw(arm.release, wanted)
        if answer.png is None:
            wait = answer.wait_s or None
            return _End(outcome=answer.outcome, error=answer.error, retry_after_s=wait)
        generated = Generated(
            request_id=wanted.request_id,
            release=arm.release,
            queue_seconds=0.0,
            service_seconds=self.clock.now() - start,
            batch_size=1,
            padded_size=1,
        )
        return _End(outcome=Outcome.OK, error="", generated=generated, png=answer.png)

    async def _ask(
        self,
        url: str,
        wanted: GenerateRequest,
        told: _Teller | None,
        headers: Mapping[str, str] | None,
    ) -> _End:
        """Raises httpx.HTTPError, StorageError, TimeoutError."""
        content = encode(wanted)
        sent = self.http.stream("POST", f"{url}/generate", content=content, headers=headers)
        async with sent as response:
            theirs = response.headers.get(PROTOCOL_HEADER, "")
            if theirs.partition(".")[0] != PROTOCOL_VERSION.partition(".")[0]:
                return _End(error=f"speaks protocol {theirs!r}, not {PROTOCOL_VERSION}")
            kind = response.headers.get("content-type", "").partition(";")[0]
            if told is not None and response.status_code == 200 and kind == STREAM_TYPE:
                return await _follow(response, told, self.most_bytes)
            body = await _whole(response, self.most_bytes)
            if response.status_code != 200:
                end = _judge(response.status_code, _worker_error(body))
                if end.outcome is not Outcome.REJECTED:
                    return end
                said = response.headers.get("retry-after", "")
                return replace(end, retry_after_s=retry_after(said, self.clock.now()))
            generated = decode(Generated, response.headers.get(GENERATED_HEADER, ""))
            return _End(outcome=Outcome.OK, error="", generated=generated, png=body)


@dataclass(frozen=True, slots=True, kw_only=True)
class _End:
    """How a try ended. ``generated`` and ``png`` exactly when it was good. ``refused``: the worker
    does not hold the release, and began nothing. ``retry_after_s``: of one that is full."""

    outcome: Outcome = Outcome.ERROR
    error: str
    refused: bool = False
    retry_after_s: float | None = None
    generated: Generated | None = None
    png: bytes | None = None


def _checked(end: _End, release: str, request_id: str) -> _End:
    """A port can pass to another process, and a worker can be broken: never credit an image to a
    stranger, show a user what another one asked for, or pass on what is no picture."""
    if end.generated is None or end.png is None:
        return end
    if end.generated.release != release:
        return _End(error=f"answered as release {end.generated.release[:10]}")
    if end.generated.request_id != request_id:
        return _End(error="answered another request")
    if not is_whole_png(end.png):
        return _End(error="answered with no whole PNG")
    return end


class _Teller:
    """Hands events on in order, from a task of its own: reading never waits for the listener. What
    waits is bounded by the size of an answer."""

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event
        self._events: asyncio.Queue[StreamEvent | None] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    def tell(self, event: StreamEvent) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        self._events.put_nowait(event)

    async def _run(self) -> None:
        while (event := await self._events.get()) is not None:
            await self._on_event(event)

    async def finish(self, seconds: float) -> None:
        """Until all is told, at most so long. Raises what the listener raised."""
        if self._task is None:
            return
        self._events.put_nowait(None)
        try:
            async with asyncio.timeout(seconds):
                await self._task
        except TimeoutError:
            return  # the listener's connection is the slow one; the picture is here
        finally:
            self.stop()

    def stop(self) -> None:
        if self._task is None:
            return
        self._task.cancel()
        if self._task.done() and not self._task.cancelled():
            self._task.exception()  # told already, or nobody is left to tell


async def _whole(response: httpx.Response, most: int) -> bytes:
    """The body. Raises httpx.HTTPError."""
    parts: list[bytes] = []
    size = 0
    async for part in response.aiter_bytes():
        size += len(part)
        if size > most:
            raise httpx.RemoteProtocolError(f"an answer over {most} bytes")
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def _lines(response: httpx.Response, most: int) -> AsyncGenerator[bytes, None]:
    """Whole lines as they come. Raises httpx.HTTPError."""
    tail: list[bytes] = []
    size = 0  # of all lines, so of the longest too
    async for part in response.aiter_bytes():
        size += len(part)
        if size > most:
            raise httpx.RemoteProtocolError(f"an answer over {most} bytes")
        *lines, rest = part.split(b"\n")
        for line in lines:
            yield b"".join((*tail, line))
            tail = []
        tail.append(rest)


async def _follow(response: httpx.Response, told: _Teller, most: int) -> _End:
    """Tell what happens until the last line. Raises httpx.HTTPError, StorageError."""
    async with aclosing(_lines(response, most)) as lines:
        async for line in lines:
            if not line:
                continue
            event = decode(StreamEvent, line)
            if event.kind in ("progress", "partial"):
                if event.kind == "partial" and not is_whole_png(_png(event)):
                    raise StorageError("a partial image that is no PNG")
                told.tell(event)
                continue
            end = _last(event)
            # Read to its end, the connection can be used again.
            with suppress(TimeoutError, httpx.HTTPError):
                async with asyncio.timeout(DRAIN_S):
                    async for _ in lines:
                        pass
            return end
    return _End(error="the stream ended without its last line")


def _last(event: StreamEvent) -> _End:
    """Raises StorageError."""
    if event.kind == "error":
        return _judge(event.status, event.error)
    if event.generated is None:
        raise StorageError("a completed event without generated")
    return _End(outcome=Outcome.OK, error="", generated=event.generated, png=_png(event))


def _png(event: StreamEvent) -> bytes:
    """Raises StorageError."""
    if event.png is None:
        raise StorageError(f"a {event.kind} event without png")
    try:
        return pybase64.b64decode(event.png, validate=True)
    except ValueError as error:
        raise StorageError("the png is no base64") from error


def _attempt(arm: Arm, start: float, seconds: float, end: _End) -> Attempt:
    attempt = Attempt(
        arm=arm.name,
        release=arm.release,
        outcome=end.outcome,
        started_at=start,
        seconds=seconds,
        error=end.error,
        retry_after_s=end.retry_after_s,
    )
    said = end.generated
    if said is None:
        return attempt
    return replace(
        attempt,
        queue_seconds=said.queue_seconds,
        service_seconds=said.service_seconds,
        encode_seconds=said.encode_seconds,
        denoise_seconds=said.denoise_seconds,
        decode_seconds=said.decode_seconds,
        batch_size=said.batch_size,
        padded_size=said.padded_size,
        gpu_seconds=said.gpu_seconds,
        peak_memory_bytes=said.peak_memory_bytes,
    )


def _worker_error(body: bytes) -> WorkerError | None:
    try:
        return decode(WorkerError, body)
    except StorageError:
        return None


def _judge(status: int, problem: WorkerError | None) -> _End:
    """What a status other than 200 means."""
    text = f"{status} {problem.code}: {problem.message}" if problem else f"{status}"
    if status in (429, 503):
        return _End(outcome=Outcome.REJECTED, error=text)
    if status in (400, 422):
        return _End(outcome=Outcome.INVALID, error=text)
    if status == 504:
        return _End(outcome=Outcome.TIMEOUT, error=text)
    gone = problem is not None and problem.code == "release"
    return _End(outcome=Outcome.ERROR, error=text, refused=gone)
