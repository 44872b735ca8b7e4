"""The HTTP transport to workers, against servers that do exactly what a test says."""

from __future__ import annotations

import asyncio
import inspect
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import uvloop

from intonaco.serving.gateway.transport import MAX_HEAD, WorkerTransport

Serve = Callable[[int, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


Test = Callable[..., Coroutine[Any, Any, None]]


def on_both_loops(test: Test) -> Callable[..., None]:
    """Run a test under asyncio's own loop and under uvloop, which the gateway uses."""

    def run(loop: Callable[[], asyncio.AbstractEventLoop], **values: Any) -> None:
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(test(**values))

    own = inspect.signature(test)
    loop = inspect.signature(run).parameters["loop"]
    # A function may have one; its type does not say so.
    run.__signature__ = own.replace(  # type: ignore[attr-defined]
        parameters=[loop, *own.parameters.values()], return_annotation=None
    )
    run.__name__ = test.__name__
    loops = [asyncio.new_event_loop, uvloop.new_event_loop]
    marked: Callable[..., None] = pytest.mark.parametrize("loop", loops, ids=["asyncio", "uvloop"])(
        run
    )
    return marked


@asynccontextmanager
async def worker(serve: Serve) -> AsyncIterator[str]:
    """Calls ``serve`` with the number of each connection; closes it when that returns."""
    numbers = itertools.count()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(next(numbers), reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@asynccontextmanager
async def client(
    limit: int = 10**6, keep_alive_s: float = 30.0
) -> AsyncIterator[httpx.AsyncClient]:
    transport = WorkerTransport(limit=limit, keep_alive_s=keep_alive_s)
    timeout = httpx.Timeout(None, connect=2.0)
    async with httpx.AsyncClient(transport=transport, timeout=timeout) as it:
        yield it


async def request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1])
        for line in head.lower().split(b"\r\n")
        if line.startswith(b"content-length")
    )
    return head + await reader.readexactly(length)


async def answers(n: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        await request(reader)
        writer.write(OK)


@on_both_loops
async def test_a_connection_is_used_again_and_the_request_arrives_whole() -> None:
    seen: list[tuple[int, bytes]] = []

    async def serve(n: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            seen.append((n, await request(reader)))
            writer.write(OK)

    async with worker(serve) as url, client() as http:
        for body in ("one", "two"):
            answer = await http.post(f"{url}/generate?x=1", content=body, headers={"x-a": "b"})
            assert (answer.status_code, answer.content) == (200, b"ok")
    assert [n for n, _ in seen] == [0, 0]
    assert seen[1][1].startswith(b"POST /generate?x=1 HTTP/1.1\r\n")
    assert b"x-a: b\r\n" in seen[1][1]
    assert seen[1][1].endswith(b"\r\n\r\ntwo")


@on_both_loops
async def test_requests_at_the_same_time_have_a_connection_each() -> None:
    both = asyncio.Barrier(2)

    async def serve(n: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        await both.wait()
        writer.write(OK)
        await reader.read()

    async with worker(serve) as url, client() as http:
        async with asyncio.timeout(10):
            found = await asyncio.gather(*(http.post(url, content=b"x") for _ in range(2)))
    assert [f.content for f in found] == [b"ok", b"ok"]


@on_both_loops
async def test_a_large_answer_comes_whole() -> None:
    body = bytes(range(256)) * 8000  # 2 MB, more than one buffer

    async def serve(n: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        await reader.read()

    async with worker(serve) as url, client(limit=len(body)) as http:
        assert (await http.post(url, content=b"x")).content == body


@on_both_loops
async def test_a_keep_alive_race_is_tried_again_on_a_connection_of_its_own() -> None:
    async def serve(n: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(OK)
        if n == 0:
            await request(reader)  # and closes: it was just being closed
            return
        await reader.read()

    async with worker(serve) as url, client() as http:
        for _ in range(2):
            assert (await http.post(url, content=b"x")).content == b"ok"


@on_both_loops
async def test_what_broke_on_a_fresh_connection_is_told_once() -> None:
    connections: list[int] = []

    async def serve(n: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(n)
        await request(reader)

    async with worker(serve) as url, client() as http:
        with pytest.raises(httpx.ReadError):
            await http.post(url, content=b"x")
    assert connections == [0]


@on_both_loops
async def test_a_break_after_the_first_byte_is_not_tried_again() -> None:
    connections: list[int] = []

    async def serve(n: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(n)
        await request(reader)
        writer.write(OK)
        await request(reader)
        writer.write(OK[:20])
        await writer.drain()

    async with worker(serve) as url, client() as http:
        await http.post(url, content=b"x")
        with pytest.raises(httpx.ReadError):
            await http.post(url, content=b"x")
    assert connections == [0]


@on_both_loops
async def test_a_request_that_ends_its_worker_is_no_refusal() -> None:
    """Else one poisonous request would be passed on to every replica."""
    stop = asyncio.Event()

    async def serve(n: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(OK)
        await stop.wait()

    async with client() as http:
        async with worker(serve) as url:
            await http.post(url, content=b"x")
        # Nobody listens now; the connection of before lives until the next request is on its way.
        asking = asyncio.create_task(http.post(url, content=b"x"))
        await asyncio.sleep(0)
        stop.set()
        with pytest.raises(httpx.ReadError):
            await asking
        with pytest.raises(httpx.ConnectError):
            await http.post(url, content=b"x")


@on_both_loops
async def test_parts_of_a_stream_are_handed_on_as_they_come() -> None:
    go_on = asyncio.Event()

    async def serve(n: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(CHUNKED + b"3\r\none\r\n")
        await go_on.wait()
        writer.write(b"3\r\ntwo\r\n0\r\n\r\n")
        await request(reader)
        writer.write(OK)
        await reader.read()

    async with worker(serve) as url, client() as http:
        async with asyncio.timeout(10):
            async with http.stream("POST", url, content=b"x") as answer:
                parts = answer.aiter_raw()
                assert await anext(parts) == b"one"
                go_on.set()
                assert [p async for p in parts] == [b"two"]
            assert (await http.post(url, content=b"x")).content == b"ok"  # the same connection


@on_both_loops
async def test_who_goes_away_closes_the_connection() -> None:
    gone = asyncio.Event()

    async def serve(n: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        try:
            await reader.read()
        finally:
            gone.set()

    async with worker(serve) as url, client() as http:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await http.post(url, content=b"x")
        async with asyncio.timeout(10):
            await gone.wait()


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 101\r\n\r\n" + b"x" * 101, "over 100 bytes"),
        (CHUNKED + b"65\r\n" + b"x" * 101 + b"\r\n", "over 100 bytes"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * MAX_HEAD, f"headers over {MAX_HEAD}"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nshort", "connection broke"),
        (CHUNKED + b"3\r\none\r\n", "connection broke"),
    ],
)
@on_both_loops
async def test_answers_that_are_none(answer: bytes, text: str) -> None:
    async def serve(n: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(answer)
        await writer.drain()

    async with worker(serve) as url, client(limit=100) as http:
        with pytest.raises(httpx.HTTPError, match=text):
            await http.post(url, content=b"x")


@on_both_loops
async def test_a_second_answer_to_one_request_is_never_taken_for_the_next() -> None:
    connections: list[int] = []

    async def serve(n: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(n)
        await request(reader)
        writer.write(OK + OK.replace(b"ok", b"no"))
        await reader.read()

    async with worker(serve) as url, client() as http:
        for _ in range(2):
            assert (await http.post(url, content=b"x")).content == b"ok"
    assert connections == [0, 1]


@on_both_loops
async def test_connections_that_were_idle_too_long_are_not_used() -> None:
    async with worker(answers) as url, client(keep_alive_s=0.0) as http:
        for _ in range(2):
            assert (await http.post(url, content=b"x")).content == b"ok"


@on_both_loops
async def test_https_is_refused_in_words() -> None:
    async with client() as http:
        with pytest.raises(httpx.UnsupportedProtocol, match="plain http"):
            await http.get("https://127.0.0.1:1/readyz")
