"""One try at one worker: streams, and answers that are none."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import pytest
from tests.fixtures_gateway import png

from intonaco.clock import SystemClock
from intonaco.codec import decode, encode
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
from intonaco.serving.gateway.upstream import OnEvent, Reply, Upstream
from intonaco.types import Arm, ArmRole, Outcome
from intonaco.workspace import Workspace

PNG, HALF = png((8, 8)), png((8, 8), (1, 2, 3))
ARM = Arm(name="champion", role=ArmRole.CHAMPION, release="a" * 64, urls=("http://w",), weight=1.0)
REQUEST = GenerateRequest(
    request_id="r", prompt="p", seed=1, steps=4, guidance_scale=1.0, width=8, height=8
)
SAID = Generated(
    request_id="r",
    release="a" * 64,
    queue_seconds=0.25,
    service_seconds=1.5,
    denoise_seconds=1.25,
    gpu_seconds=0.75,
    batch_size=2,
    padded_size=4,
)
PROGRESS = StreamEvent(kind="progress", step=1, steps=4)
PARTIAL = StreamEvent(kind="partial", index=0, png=base64.b64encode(HALF).decode())
DONE = StreamEvent(kind="completed", png=base64.b64encode(PNG).decode(), generated=SAID)


def line(event: StreamEvent) -> bytes:
    return encode(event).encode() + b"\n"


@dataclass
class Worker:
    """Streams ``parts``; answers plainly with ``plain`` where that is given."""

    parts: list[bytes] = field(default_factory=list)
    plain: httpx.Response | None = None
    asked: list[GenerateRequest] = field(default_factory=list)
    hang: bool = False  # after the parts

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(decode(GenerateRequest, request.content))
        if self.plain is not None:
            return self.plain
        headers = {PROTOCOL_HEADER: PROTOCOL_VERSION, "content-type": STREAM_TYPE}
        return httpx.Response(200, headers=headers, content=self._body())

    async def _body(self) -> AsyncIterator[bytes]:
        for part in self.parts:
            yield part
        if self.hang:
            await asyncio.Event().wait()

    async def generate(
        self,
        root: Path,
        on_event: OnEvent | None,
        seconds: float = 10.0,
        most_bytes: int = 10**6,
    ) -> Reply:
        clock = SystemClock()
        async with httpx.AsyncClient(transport=httpx.MockTransport(self)) as http:
            state = GatewayState(Workspace(root), 3)
            upstream = Upstream(state, http, clock, most_bytes=most_bytes)
            try:
                return await upstream.generate(
                    ARM, "http://w", REQUEST, clock.now() + seconds, on_event
                )
            finally:
                assert not state.observed().in_flight


@dataclass
class Listener:
    heard: list[StreamEvent] = field(default_factory=list)

    async def __call__(self, event: StreamEvent) -> None:
        self.heard.append(event)


async def test_a_stream_is_told_and_makes_the_same_reply(tmp_path: Path) -> None:
    text = line(PROGRESS) + b"\n" + line(PARTIAL) + line(DONE)
    for parts in ([text], [text[i : i + 7] for i in range(0, len(text), 7)]):
        worker, listener = Worker(parts=parts), Listener()
        reply = await worker.generate(tmp_path, listener)
        assert worker.asked[0].stream
        assert listener.heard == [PROGRESS, PARTIAL]
        assert (reply.outcome, reply.png) == (Outcome.OK, PNG)
        attempt = reply.attempt
        assert (attempt.queue_seconds, attempt.service_seconds) == (0.25, 1.5)
        assert (attempt.denoise_seconds, attempt.gpu_seconds) == (1.25, 0.75)
        assert (attempt.batch_size, attempt.padded_size) == (2, 4)


def plainly(status: int, content: bytes, said: Generated = SAID) -> httpx.Response:
    headers = {PROTOCOL_HEADER: PROTOCOL_VERSION, GENERATED_HEADER: encode(said)}
    return httpx.Response(status, headers=headers, content=content)


async def test_a_plain_answer_to_a_stream_request_is_fine(tmp_path: Path) -> None:
    listener = Listener()
    reply = await Worker(plain=plainly(200, PNG)).generate(tmp_path, listener)
    assert (reply.outcome, reply.png, listener.heard) == (Outcome.OK, PNG, [])
    worker = Worker(plain=plainly(200, PNG))
    assert (await worker.generate(tmp_path, None)).png == PNG
    assert not worker.asked[0].stream


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (429, Outcome.REJECTED),
        (503, Outcome.REJECTED),
        (400, Outcome.INVALID),
        (504, Outcome.TIMEOUT),
        (500, Outcome.ERROR),
    ],
)
async def test_an_error_means_the_same_in_a_stream(
    tmp_path: Path, status: int, outcome: Outcome
) -> None:
    problem = WorkerError(code="c", message="m")
    event = StreamEvent(kind="error", status=status, error=problem)
    streamed = await Worker(parts=[line(PROGRESS), line(event)]).generate(tmp_path, Listener())
    plain = Worker(plain=plainly(status, encode(problem).encode()))
    for reply in (streamed, await plain.generate(tmp_path, Listener())):
        assert (reply.outcome, reply.attempt.error) == (outcome, f"{status} c: m")
        assert reply.png is None


async def test_a_worker_without_the_release_leaves_it_to_another(tmp_path: Path) -> None:
    problem = WorkerError(code="release", message="release aaaaaaaaaa is not held here")
    worker = Worker(plain=plainly(409, encode(problem).encode()))
    reply = await worker.generate(tmp_path, None)
    assert worker.asked[0].release == ARM.release
    assert (reply.outcome, reply.refused, reply.hard) == (Outcome.ERROR, True, True)
    other = WorkerError(code="protocol", message="m")
    reply = await Worker(plain=plainly(409, encode(other).encode())).generate(tmp_path, None)
    assert (reply.outcome, reply.refused) == (Outcome.ERROR, False)


@pytest.mark.parametrize(
    ("last", "text"),
    [
        (b"", "without its last line"),
        (line(DONE)[:-20], "without its last line"),
        (b"{}\n", "unreadable"),
        (line(StreamEvent(kind="completed", generated=SAID)), "unreadable"),
        (line(StreamEvent(kind="completed", generated=SAID, png="no base64!")), "unreadable"),
        (b"x" * 10**6, "over 1000000 bytes"),
        (line(DONE).replace(b"a" * 64, b"b" * 64), "answered as release bbbbbbbbbb"),
        (line(DONE).replace(b'"r"', b'"another"'), "answered another request"),
        (line(replace(DONE, png=base64.b64encode(PNG[:-1]).decode())), "no whole PNG"),
        (
            line(replace(PARTIAL, png=base64.b64encode(PNG[:20]).decode())) + line(DONE),
            "unreadable",
        ),
        (line(replace(PARTIAL, png=None)) + line(DONE), "unreadable"),
        (line(replace(PARTIAL, png="no base64!")) + line(DONE), "unreadable"),
    ],
)
async def test_a_broken_stream_is_an_error(tmp_path: Path, last: bytes, text: str) -> None:
    reply = await Worker(parts=[line(PROGRESS), last]).generate(tmp_path, Listener())
    assert reply.outcome is Outcome.ERROR
    assert text in reply.attempt.error
    assert reply.png is None


async def test_a_large_plain_answer_is_an_error(tmp_path: Path) -> None:
    reply = await Worker(plain=plainly(200, PNG)).generate(tmp_path, None, most_bytes=5)
    assert (reply.outcome, reply.png) == (Outcome.ERROR, None)
    assert "over 5 bytes" in reply.attempt.error


async def test_a_plain_answer_that_is_no_picture_or_not_ours_is_an_error(tmp_path: Path) -> None:
    html = b"<html>It works!</html>"
    for answer, text in (
        (plainly(200, b""), "no whole PNG"),
        (plainly(200, html), "no whole PNG"),
        (plainly(200, PNG[:-1]), "no whole PNG"),
        (plainly(200, PNG, replace(SAID, request_id="another")), "answered another request"),
        (plainly(200, PNG, replace(SAID, release="b" * 64)), "answered as release bbbbbbbbbb"),
    ):
        reply = await Worker(plain=answer).generate(tmp_path, None)
        assert (reply.outcome, reply.png) == (Outcome.ERROR, None)
        assert text in reply.attempt.error


async def test_a_stream_that_stops_is_a_timeout(tmp_path: Path) -> None:
    worker = Worker(parts=[line(PROGRESS)], hang=True)
    reply = await worker.generate(tmp_path, Listener(), seconds=0.2)
    assert reply.outcome is Outcome.TIMEOUT


async def test_a_worker_that_does_not_end_its_stream_loses_nothing(tmp_path: Path) -> None:
    reply = await Worker(parts=[line(DONE)], hang=True).generate(tmp_path, Listener())
    assert (reply.outcome, reply.png) == (Outcome.OK, PNG)


async def test_a_slow_listener_is_not_the_workers_fault(tmp_path: Path) -> None:
    async def stuck(event: StreamEvent) -> None:
        await asyncio.Event().wait()

    reply = await Worker(parts=[line(PROGRESS), line(DONE)]).generate(tmp_path, stuck, seconds=0.3)
    assert (reply.outcome, reply.png) == (Outcome.OK, PNG)
    assert reply.attempt.seconds < 0.3


async def test_what_the_listener_raises_is_raised(tmp_path: Path) -> None:
    async def broken(event: StreamEvent) -> None:
        raise RuntimeError("the client's socket")

    with pytest.raises(RuntimeError, match="the client's socket"):
        await Worker(parts=[line(PROGRESS), line(DONE)]).generate(tmp_path, broken)


async def test_a_cancelled_try_stops_telling(tmp_path: Path) -> None:
    started = asyncio.Event()

    async def listen(event: StreamEvent) -> None:
        started.set()
        await asyncio.Event().wait()

    work = Worker(parts=[line(PROGRESS)], hang=True).generate(tmp_path, listen)
    task = asyncio.create_task(work)
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(asyncio.all_tasks()) == 1
