"""Workers that break off, lie or talk nonsense, byte by byte over real sockets.

Whatever a challenger does, the user gets the champion's picture; what the champion does too is an
honest error. The record tells each attempt as it was, and nothing is counted twice.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.fixtures_gateway import CONFIG, NEW, OLD, FakeWorker, opened, pixel

from intonaco.clock import SystemClock
from intonaco.codec import decode, encode
from intonaco.config import parse
from intonaco.messages import (
    GENERATED_HEADER,
    PROTOCOL_HEADER,
    PROTOCOL_VERSION,
    STREAM_TYPE,
    GenerateRequest,
    StreamEvent,
)
from intonaco.segment_log import SegmentReader
from intonaco.serving.gateway import dispatch
from intonaco.serving.gateway.app import Gateway
from intonaco.serving.gateway.main import build
from intonaco.serving.gateway.upstream import Reply, Upstream, client
from intonaco.types import Arm, ArmRole, Attempt, Outcome, Record, RoutingTable
from intonaco.workspace import Workspace

LIMIT = 200_000  # bytes of an answer
Misbehaviour = Callable[["Raw", GenerateRequest, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Raw:
    """A worker that writes its answers itself. After ``good`` right ones it misbehaves; the
    connection is closed then."""

    release: str
    wrong: Misbehaviour | None = None
    good: int = 0
    url: str = ""
    asked: list[GenerateRequest] = field(default_factory=list)
    open: int = 0
    server: asyncio.Server | None = None
    _fake: FakeWorker = field(init=False)

    def __post_init__(self) -> None:
        self._fake = FakeWorker(self.release)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Raw]:
        self.server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            self.server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                found = re.search(rb"content-length: (\d+)", head.lower())
                assert found is not None
                self.asked.append(decode(GenerateRequest, await reader.readexactly(int(found[1]))))
                wanted = self.asked[-1]
                if self.wrong is not None and len(self.asked) > self.good:
                    await self.wrong(self, wanted, writer)
                    return
                for part in await self.parts(wanted):
                    writer.write(part)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the gateway closed it
        finally:
            writer.close()
            self.open -= 1

    async def parts(
        self, wanted: GenerateRequest, *, body: bytes | None = None, **said: Any
    ) -> list[bytes]:
        """The right answer: its head and its body, of a stream each line a chunk. ``body`` and
        ``said`` (of the facts) make it a wrong one."""
        facts = replace(self._fake.generated(wanted), **said)
        if not wanted.stream:
            picture = self._fake.picture(wanted, wanted.steps) if body is None else body
            return [self.head(picture, encode(facts)), picture]
        lines = [line async for line in self._fake.lines(wanted)]
        if body is not None or said:
            text = base64.b64encode(body if body is not None else self.picture(wanted)).decode()
            last = StreamEvent(kind="completed", png=text, generated=facts)
            lines[-1] = encode(last) + "\n"
        head = (
            f"HTTP/1.1 200 OK\r\n{PROTOCOL_HEADER}: {PROTOCOL_VERSION}\r\n"
            f"content-type: {STREAM_TYPE}\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        return [head.encode(), *(chunk(line.encode()) for line in lines), chunk(b"")]

    def picture(self, wanted: GenerateRequest) -> bytes:
        return self._fake.picture(wanted, wanted.steps)

    def head(self, body: bytes, facts: str, status: str = "200 OK") -> bytes:
        lines = (
            f"HTTP/1.1 {status}",
            f"{PROTOCOL_HEADER}: {PROTOCOL_VERSION}",
            f"{GENERATED_HEADER}: {facts}",
            "content-type: image/png",
            f"content-length: {len(body)}",
        )
        return "\r\n".join([*lines, "", ""]).encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


# ---------------------------------------------------------------------------------- what goes wrong


async def closes(raw: Raw, wanted: GenerateRequest, writer: asyncio.StreamWriter) -> None:
    """Reads the request and goes."""


async def resets(raw: Raw, wanted: GenerateRequest, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def cuts_the_head(raw: Raw, wanted: GenerateRequest, writer: asyncio.StreamWriter) -> None:
    writer.write((await raw.parts(wanted))[0][:25])


async def cuts_after_the_head(
    raw: Raw, wanted: GenerateRequest, writer: asyncio.StreamWriter
) -> None:
    writer.write((await raw.parts(wanted))[0])


async def cuts_the_body(raw: Raw, wanted: GenerateRequest, writer: asyncio.StreamWriter) -> None:
    """Of a stream: in the middle of the last line."""
    *whole, last = [p for p in await raw.parts(wanted) if p != chunk(b"")]
    for part in whole:
        writer.write(part)
    writer.write(last[: len(last) // 2])


async def cuts_between_lines(
    raw: Raw, wanted: GenerateRequest, writer: asyncio.StreamWriter
) -> None:
    """Of a stream; a plain answer loses its last byte."""
    parts = await raw.parts(wanted)
    kept = parts[:2] if wanted.stream else [parts[0], parts[1][:-1]]
    for part in kept:
        writer.write(part)


async def ends_without_a_last_line(
    raw: Raw, wanted: GenerateRequest, writer: asyncio.StreamWriter
) -> None:
    """A stream that ends as HTTP should; a plain answer of no bytes."""
    if wanted.stream:
        parts = await raw.parts(wanted)
        for part in (*parts[:-2], parts[-1]):
            writer.write(part)
    else:
        for part in await raw.parts(wanted, body=b""):
            writer.write(part)


async def says_hello(raw: Raw, wanted: GenerateRequest, writer: asyncio.StreamWriter) -> None:
    """Somebody else's server at that port."""
    page = b"<html>It works!</html>"
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(page) + page)


async def answers_html(raw: Raw, wanted: GenerateRequest, writer: asyncio.StreamWriter) -> None:
    """With a worker's headers."""
    for part in await raw.parts(wanted, body=b"<html>It works!</html>"):
        writer.write(part)


async def answers_half_a_png(
    raw: Raw, wanted: GenerateRequest, writer: asyncio.StreamWriter
) -> None:
    """Of the length that it says."""
    half = raw.picture(wanted)[:-30]
    for part in await raw.parts(wanted, body=half):
        writer.write(part)


async def answers_no_facts(raw: Raw, wanted: GenerateRequest, writer: asyncio.StreamWriter) -> None:
    picture = raw.picture(wanted)
    writer.write(raw.head(picture, "{}") + picture)


async def speaks_no_http(raw: Raw, wanted: GenerateRequest, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")


async def is_another_release(
    raw: Raw, wanted: GenerateRequest, writer: asyncio.StreamWriter
) -> None:
    for part in await raw.parts(wanted, release="c" * 64):
        writer.write(part)


async def answers_another_request(
    raw: Raw, wanted: GenerateRequest, writer: asyncio.StreamWriter
) -> None:
    for part in await raw.parts(wanted, request_id="req_of_somebody_else"):
        writer.write(part)


async def speaks_another_protocol(
    raw: Raw, wanted: GenerateRequest, writer: asyncio.StreamWriter
) -> None:
    for part in await raw.parts(wanted):
        ours, theirs = f"{PROTOCOL_HEADER}: {PROTOCOL_VERSION}", f"{PROTOCOL_HEADER}: 99"
        writer.write(part.replace(ours.encode(), theirs.encode()))


async def sends_elsewhere(raw: Raw, wanted: GenerateRequest, writer: asyncio.StreamWriter) -> None:
    writer.write(raw.head(b"", "", "302 Found").replace(b"content-type", b"location: /x\r\nx"))


async def fails_with_a_page(
    raw: Raw, wanted: GenerateRequest, writer: asyncio.StreamWriter
) -> None:
    page = b"<html>Internal Server Error</html>"
    writer.write(raw.head(page, "", "500 Internal Server Error") + page)


async def sends_too_much(raw: Raw, wanted: GenerateRequest, writer: asyncio.StreamWriter) -> None:
    writer.write(raw.head(bytes(LIMIT + 1), "{}"))
    writer.write(bytes(LIMIT + 1))


WRONG = (
    *(closes, resets, cuts_the_head, cuts_after_the_head, cuts_the_body, cuts_between_lines),
    *(ends_without_a_last_line, says_hello, answers_html, answers_half_a_png, answers_no_facts),
    *(speaks_no_http, is_another_release, answers_another_request, speaks_another_protocol),
    *(sends_elsewhere, fails_with_a_page, sends_too_much),
)
BREAKING = (closes, resets, cuts_the_head, cuts_after_the_head, cuts_the_body, cuts_between_lines)


# ---------------------------------------------------------------------------------- the stage


@dataclass
class Stage:
    workspace: Workspace
    gateway: Gateway
    http: httpx.AsyncClient

    async def ask(self, stream: bool, user: str = "u") -> tuple[int, bytes | None]:
        """Status of one request and its picture; 0 for an error in the middle of a stream."""
        body = {"prompt": f"for {user}", "seed": 7, "user": user}
        if stream:
            body |= {"stream": True, "partial_images": 2}
        answer = await self.http.post("/v1/images/generations", json=body)
        if answer.status_code != 200:
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
            return answer.status_code, None
        if not stream:
            return 200, base64.b64decode(answer.json()["data"][0]["b64_json"])
        events = [
            json.loads(line[6:]) for line in answer.text.split("\n") if line.startswith("data: ")
        ]
        for event in events[:-1]:
            assert event["type"] == "image_generation.partial_image"
            opened(event["b64_json"])
        shown = [e["partial_image_index"] for e in events[:-1]]
        assert shown == sorted(set(shown))
        assert len(shown) <= 2
        if events[-1]["type"] == "error":
            return 0, None
        assert events[-1]["type"] == "image_generation.completed"
        return 200, base64.b64decode(events[-1]["b64_json"])

    async def records(self) -> list[Record]:
        await self.gateway.copies.settle()
        return [decode(Record, t) for t in SegmentReader(self.workspace.records).read(10**6)]

    def counted(self) -> dict[str, int]:
        m = self.gateway.metrics
        return {
            "requests": self.gateway.state.requests,
            "failed": self.gateway.state.failed,
            "images": sum(n for labels, n in m.images.items() if ("kind", "user") in labels),
            "attempts": m.attempts.total(),
        }


@asynccontextmanager
async def staged(root: Path, champion: list[Raw], challenger: Raw | None) -> AsyncIterator[Stage]:
    workspace = Workspace(root)
    workspace.root.mkdir(exist_ok=True)
    config = parse(CONFIG.replace("MORE", "heartbeat_s: 5"))
    async with AsyncExitStack() as stack:
        for raw in (*champion, *([challenger] if challenger else [])):
            await stack.enter_async_context(raw.running())
        upstream = await stack.enter_async_context(client(LIMIT))
        gateway = build(workspace, config, http=upstream, clock=SystemClock())
        weight = 1.0 if challenger else 0.0
        urls = tuple(raw.url for raw in champion)
        arms = [arm("champion", OLD, urls, 1 - weight)]
        if challenger is not None:
            arms.append(arm("challenger:x", NEW, (challenger.url,), weight))
        table = RoutingTable(service_id="tiny", epoch=1, salt="s", arms=tuple(arms))
        gateway.state.apply(table)
        public = httpx.AsyncClient(
            transport=httpx.ASGITransport(gateway.public_app()), base_url="http://gateway"
        )
        try:
            async with public:
                yield Stage(workspace, gateway, public)
        finally:
            await gateway.close()
        assert gateway.state.observed().in_flight == {}
        assert gateway.copies.users_in_flight == 0


def arm(name: str, release: str, urls: tuple[str, ...], weight: float) -> Arm:
    role = ArmRole(name.partition(":")[0])
    return Arm(name=name, role=role, release=release, urls=urls, weight=weight)


def told(attempts: tuple[Attempt, ...]) -> list[tuple[str, str, Outcome]]:
    return [(a.arm, a.release, a.outcome) for a in attempts]


both = pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
wrong = pytest.mark.parametrize("wrong", WRONG, ids=lambda w: w.__name__)


# ---------------------------------------------------------------------------------- the promises


@both
@wrong
async def test_the_champion_answers_for_a_challenger(
    tmp_path: Path, wrong: Misbehaviour, stream: bool
) -> None:
    good, bad = Raw(OLD), Raw(NEW, wrong)
    async with staged(tmp_path, [good], bad) as stage:
        status, picture = await stage.ask(stream)
        assert (status, picture) == (200, good.picture(good.asked[0]))
        assert [r.seed for r in (*good.asked, *bad.asked)] == [7, 7]
        [record] = await stage.records()
        assert told(record.attempts) == [
            ("challenger:x", NEW, Outcome.ERROR),
            ("champion", OLD, Outcome.OK),
        ]
        assert record.attempts[0].error
        assert (record.status, record.served_by, record.served_arm) == (200, OLD, "champion")
        assert (record.assigned_arm, record.probability) == ("challenger:x", 1.0)
        assert record.image is not None
        stored = (stage.workspace.root / record.image).read_bytes()
        assert stored == picture
        assert stage.counted() == {"requests": 1, "failed": 0, "images": 1, "attempts": 2}
        assert stage.gateway.state.breaker(NEW).failures == 1


@both
@wrong
async def test_another_replica_answers_for_a_champion(
    tmp_path: Path, wrong: Misbehaviour, stream: bool
) -> None:
    bad, good = Raw(OLD, wrong), Raw(OLD)
    async with staged(tmp_path, [bad, good], None) as stage:
        status, picture = await stage.ask(stream)
        assert (status, picture) == (200, good.picture(good.asked[0]))
        [record] = await stage.records()
        assert told(record.attempts) == [
            ("champion", OLD, Outcome.ERROR),
            ("champion", OLD, Outcome.OK),
        ]
        assert stage.counted() == {"requests": 1, "failed": 0, "images": 1, "attempts": 2}


@both
@wrong
async def test_where_nobody_else_can_answer_the_error_is_honest(
    tmp_path: Path, wrong: Misbehaviour, stream: bool
) -> None:
    bad = Raw(OLD, wrong)
    async with staged(tmp_path, [bad], None) as stage:
        status, picture = await stage.ask(stream)
        assert status in ((502, 0) if stream else (502,))
        assert picture is None
        [record] = await stage.records()
        # One that broke off may have died, so it is tried once more; what it answers is believed.
        tries = 2 if wrong in BREAKING else 1
        assert told(record.attempts) == [("champion", OLD, Outcome.ERROR)] * tries
        assert len(bad.asked) == tries
        assert (record.status, record.served_by, record.image) == (502, None, None)
        assert stage.counted() == {"requests": 1, "failed": 1, "images": 1, "attempts": tries}
        bad.wrong = None  # it comes to its senses
        assert (await stage.ask(stream))[0] == 200


@both
async def test_a_lone_worker_that_dies_loses_nothing_that_the_next_one_can_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """It dies in the middle of a request, and another is started elsewhere only once the gateway
    has seen that nobody is there. That one makes the picture, from the same seed, and the record
    tells of every try."""
    refused = asyncio.Event()
    generate = Upstream.generate

    async def seen(*given: Any) -> Reply:
        reply = await generate(*given)
        if reply.refused:
            refused.set()
        return reply

    async def dies(raw: Raw, wanted: GenerateRequest, writer: asyncio.StreamWriter) -> None:
        assert raw.server is not None
        raw.server.close()
        await cuts_the_body(raw, wanted, writer)

    monkeypatch.setattr(Upstream, "generate", seen)
    first, after = Raw(OLD, dies), Raw(OLD)
    async with after.running(), staged(tmp_path, [first], None) as stage:
        asked = asyncio.create_task(stage.ask(stream))
        await asyncio.wait_for(refused.wait(), 20)
        champion = arm("champion", OLD, (after.url,), 1.0)
        table = RoutingTable(service_id="tiny", epoch=2, salt="s", arms=(champion,))
        stage.gateway.state.apply(table)
        status, picture = await asked
        assert (status, picture) == (200, after.picture(after.asked[0]))
        assert [r.seed for r in (*first.asked, *after.asked)] == [7, 7]
        [record] = await stage.records()
        broken, *between, made = record.attempts
        assert (broken.outcome, made.outcome) == (Outcome.ERROR, Outcome.OK)
        assert between
        assert all(a.error.startswith("ConnectError") for a in between)
        assert (record.status, record.served_by) == (200, OLD)
        tries = len(record.attempts)
        counted = {"requests": 1, "failed": 0, "images": 1, "attempts": tries}
        assert stage.counted() == counted


@both
async def test_a_request_that_ends_workers_ends_two_and_no_more(
    tmp_path: Path, stream: bool
) -> None:
    """However often they come back: here at the same address, with a replica that refuses."""
    bad, gone = Raw(OLD, closes), Raw(OLD)
    async with gone.running():
        pass  # its address, where nobody listens
    async with staged(tmp_path, [bad], None) as stage:
        urls = (gone.url, bad.url)
        champion = arm("champion", OLD, urls, 1.0)
        table = RoutingTable(service_id="tiny", epoch=2, salt="s", arms=(champion,))
        stage.gateway.state.apply(table)
        assert (await stage.ask(stream))[0] == 502
        assert len(bad.asked) == 2
        [record] = await stage.records()
        begun = [a for a in record.attempts if not a.error.startswith("ConnectError")]
        assert [a.outcome for a in begun] == [Outcome.ERROR] * 2
        assert stage.counted()["attempts"] == len(record.attempts)


async def test_who_was_at_a_worker_that_died_waits_for_room_at_the_other(tmp_path: Path) -> None:
    async def dies(raw: Raw, wanted: GenerateRequest, writer: asyncio.StreamWriter) -> None:
        assert raw.server is not None
        raw.server.close()

    async def full(raw: Raw, wanted: GenerateRequest, writer: asyncio.StreamWriter) -> None:
        if len(raw.asked) > 2:
            raw.wrong = None
        writer.write(raw.head(b"", "{}", "429 Too Many Requests"))

    dying, other = Raw(OLD, dies), Raw(OLD, full)
    async with staged(tmp_path, [dying, other], None) as stage:
        assert (await stage.ask(False))[0] == 200
        [record] = await stage.records()
        outcomes = [a.outcome for a in record.attempts]
        assert outcomes[:2] == [Outcome.ERROR, Outcome.REJECTED]
        assert outcomes.count(Outcome.REJECTED) == 3
        assert outcomes[-1] is Outcome.OK
        other.wrong, other.asked = full, []
        assert (await stage.ask(False))[0] == 429, "who was at nobody is told at once"


async def test_where_nobody_listens_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "REFUSED_S", 0.2)
    gone = Raw(OLD)
    async with staged(tmp_path, [gone], None) as stage:
        assert gone.server is not None
        gone.server.close()
        await gone.server.wait_closed()
        body = {"prompt": "p", "user": "u"}
        for more in ({}, {"stream": True}):
            answer = await stage.http.post("/v1/images/generations", json=body | more)
            assert answer.status_code == 503
            error = answer.json()["error"]
            assert (error["code"], error["type"]) == ("no_worker", "server_error")
            assert "No worker of the model can be reached" in error["message"]
            assert answer.headers["retry-after"] == "5"
        for record in await stage.records():
            assert record.status == 503
            assert {a.outcome for a in record.attempts} == {Outcome.ERROR}


@both
async def test_a_kept_connection_that_breaks_is_tried_once_more_and_told_once(
    tmp_path: Path, stream: bool
) -> None:
    """The transport's second try is of the same attempt, with the same seed: the worker is asked
    twice, the user answered once, by the champion."""
    good, bad = Raw(OLD), Raw(NEW, closes, good=1)
    async with staged(tmp_path, [good], bad) as stage:
        assert (await stage.ask(stream))[1] == bad.picture(bad.asked[0])
        assert (await stage.ask(stream))[1] == good.picture(good.asked[0])
        ids = [r.request_id for r in bad.asked if r.prompt == "for u"]
        assert len(ids) - len(set(ids)) == 1
        records = [r for r in await stage.records() if not r.probe]
        assert [told(r.attempts) for r in records] == [
            [("challenger:x", NEW, Outcome.OK)],
            [("challenger:x", NEW, Outcome.ERROR), ("champion", OLD, Outcome.OK)],
        ]


async def test_many_at_once_each_get_their_own_picture(tmp_path: Path) -> None:
    """Under load, with workers that break off every third time in turn: everybody gets a picture,
    by the release that the record names, and the sums agree."""
    number = 0

    async def sometimes(raw: Raw, wanted: GenerateRequest, writer: asyncio.StreamWriter) -> None:
        nonlocal number
        number += 1
        if number % 3 == 0:
            await WRONG[number % len(WRONG)](raw, wanted, writer)
            return
        for part in await raw.parts(wanted):
            writer.write(part)
        await writer.drain()

    good, bad = Raw(OLD), Raw(NEW, sometimes)
    async with staged(tmp_path, [good], bad) as stage:
        stage.gateway.state.breaker(NEW).limit = 10**6
        room = asyncio.Semaphore(8)

        async def user(k: int) -> tuple[int, bytes | None]:
            async with room:
                return await stage.ask(stream=k % 2 == 1, user=f"u{k}")

        answers = await asyncio.gather(*(user(k) for k in range(120)))
        assert {status for status, _ in answers} == {200}
        records = [r for r in await stage.records() if not r.probe]
        assert len({r.request_id for r in records}) == len(records) == 120
        assert len({r.key for r in await stage.records()}) == len(await stage.records())
        by_user = {r.unit: r for r in records}
        for k, (_, picture) in enumerate(answers):
            record = by_user[f"u{k}"]
            red = pixel(opened(picture))[0]
            assert red == int((record.served_by or "")[:2], 16)
            outcomes = [a.outcome for a in record.attempts]
            assert outcomes in ([Outcome.OK], [Outcome.ERROR, Outcome.OK])
        told_of = sum(len(r.attempts) for r in await stage.records())
        assert stage.counted()["attempts"] == told_of
        assert stage.counted()["requests"] == stage.counted()["images"] == 120
