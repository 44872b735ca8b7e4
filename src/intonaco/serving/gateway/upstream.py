"""One try at one worker: an HTTP call and what came of it."""

from __future__ import annotations

import asyncio
import base64
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

import httpx

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
from intonaco.serving.gateway.state import GatewayState
from intonaco.serving.http import GATEWAY_KEEP_ALIVE_S
from intonaco.types import Arm, Attempt, Outcome

CONNECT_S = 2.0
DOWN_S = 1.0  # how long a URL that refused a connection is tried last
READY_S = 1.0  # for a worker to say whether it is ready
HEADERS = {PROTOCOL_HEADER: PROTOCOL_VERSION, "content-type": "application/json"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """``refused``: nothing was sent, so another try is surely safe."""

    attempt: Attempt
    png: bytes | None = None
    refused: bool = False

    @property
    def outcome(self) -> Outcome:
        return self.attempt.outcome

    @property
    def hard(self) -> bool:
        """Whether it counts against the release."""
        return self.outcome in (Outcome.ERROR, Outcome.TIMEOUT)


def client() -> httpx.AsyncClient:
    """Pooled connections to workers; proxies of the environment are not for them."""
    return httpx.AsyncClient(
        limits=httpx.Limits(max_connections=None, keepalive_expiry=GATEWAY_KEEP_ALIVE_S),
        timeout=httpx.Timeout(None, connect=CONNECT_S),
        trust_env=False,
        headers=HEADERS,
    )


@dataclass(slots=True)
class Upstream:
    state: GatewayState
    http: httpx.AsyncClient
    clock: Clock
    _busy: Counter[str] = field(default_factory=Counter)
    _down: dict[str, float] = field(default_factory=dict)

    def order(self, urls: Sequence[str]) -> list[str]:
        """URLs, the least busy first, those that just refused a connection last."""
        now = self.clock.now()
        return sorted(urls, key=lambda u: (now - self._down.get(u, 0) < DOWN_S, self._busy[u]))

    async def any_ready(self, urls: Sequence[str]) -> bool:
        """Whether a worker says it is ready."""
        for url in self.order(urls):
            try:
                async with asyncio.timeout(READY_S):
                    response = await self.http.get(f"{url}/readyz")
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
        on_event: Callable[[StreamEvent], Awaitable[None]] | None = None,
    ) -> Reply:
        """One image of one worker, before ``deadline`` (epoch seconds). With ``on_event`` the
        worker streams, and progress and partial images are passed on as they come. Never raises,
        except when cancelled."""
        start = self.clock.now()
        left = deadline - start
        wanted = replace(request, deadline=deadline, stream=on_event is not None)
        outcome, error, refused = Outcome.ERROR, "", False
        answer: Generated | None = None
        png: bytes | None = None
        self._busy[url] += 1
        try:
            with self.state.flight(arm.release):
                async with asyncio.timeout(max(0.0, left)):
                    if on_event is None:
                        response = await self.http.post(f"{url}/generate", content=encode(wanted))
                        last = None
                    else:
                        response, last = await self._streamed(url, wanted, on_event)
            outcome, error = _judge(response)
            if outcome is Outcome.OK and last is not None and last.error is not None:
                outcome = _outcome(last.status)
                error = f"{last.status} {last.error.code}: {last.error.message}"
            elif outcome is Outcome.OK:
                if last is not None and last.generated is not None and last.png is not None:
                    answer, png = last.generated, base64.b64decode(last.png)
                else:
                    answer = decode(Generated, response.headers.get(GENERATED_HEADER, ""))
                    png = response.content
                if answer.release != arm.release:
                    # A port can pass to another process: never credit an image to a stranger.
                    outcome, error = Outcome.ERROR, f"answered as release {answer.release[:10]}"
        except TimeoutError:
            outcome, error = Outcome.TIMEOUT, f"no answer within {left:.1f} s"
        except (httpx.ConnectError, httpx.ConnectTimeout) as problem:
            self._down[url] = self.clock.now()
            error, refused = f"{type(problem).__name__}: {problem}", True
        except httpx.HTTPError as problem:
            error = f"{type(problem).__name__}: {problem}"
        except StorageError as problem:
            outcome, error = Outcome.ERROR, f"unreadable answer: {type(problem).__name__}"
        finally:
            self._busy[url] -= 1
        good = outcome is Outcome.OK
        attempt = Attempt(
            arm=arm.name,
            release=arm.release,
            outcome=outcome,
            started_at=start,
            seconds=self.clock.now() - start,
            error=error,
        )
        if answer and good:
            attempt = replace(
                attempt,
                queue_seconds=answer.queue_seconds,
                service_seconds=answer.service_seconds,
                encode_seconds=answer.encode_seconds,
                denoise_seconds=answer.denoise_seconds,
                decode_seconds=answer.decode_seconds,
                batch_size=answer.batch_size,
                padded_size=answer.padded_size,
                gpu_seconds=answer.gpu_seconds,
                peak_memory_bytes=answer.peak_memory_bytes,
            )
        return Reply(attempt=attempt, png=png if good else None, refused=refused)

    async def _streamed(
        self, url: str, wanted: GenerateRequest, on_event: Callable[[StreamEvent], Awaitable[None]]
    ) -> tuple[httpx.Response, StreamEvent | None]:
        """The response and its last event; None where it was no stream."""
        async with self.http.stream("POST", f"{url}/generate", content=encode(wanted)) as response:
            if not response.headers.get("content-type", "").startswith(STREAM_TYPE):
                await response.aread()
                return response, None
            async for line in response.aiter_lines():
                seen = decode(StreamEvent, line)
                if seen.kind in ("completed", "error"):
                    return response, seen
                await on_event(seen)
        raise httpx.RemoteProtocolError("the stream ended early")


def _outcome(status: int) -> Outcome:
    if status in (429, 503):
        return Outcome.REJECTED
    if status in (400, 422):
        return Outcome.INVALID
    if status == 504:
        return Outcome.TIMEOUT
    return Outcome.ERROR


def _judge(response: httpx.Response) -> tuple[Outcome, str]:
    theirs = response.headers.get(PROTOCOL_HEADER, "")
    if theirs.partition(".")[0] != PROTOCOL_VERSION.partition(".")[0]:
        return Outcome.ERROR, f"speaks protocol {theirs!r}, not {PROTOCOL_VERSION}"
    status = response.status_code
    if status == 200:
        return Outcome.OK, ""
    try:
        problem = decode(WorkerError, response.content)
        text = f"{status} {problem.code}: {problem.message}"
    except StorageError:
        text = f"{status}"
    return _outcome(status), text
