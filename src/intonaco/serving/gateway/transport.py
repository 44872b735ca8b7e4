"""HTTP/1.1 to workers, as a transport for httpx.

A picture of some megabytes is one answer. Here it is read into one large buffer and parsed by
llhttp (``httptools``), a few system calls in all; httpx's own transport takes it in pieces of
64 KiB through a parser in Python and spends about ten times the time
(docs/decisions/0006-gateway-transport.md). Plain HTTP only: workers are on this machine or in a
private network.

Connections are kept and used again, the last one used first. One that the worker closed while the
request was on its way (keep-alive race) is tried again on a connection of its own: no byte of an
answer had come, and the seed makes the request idempotent. If nobody listens there any more, the
first error stands: the request may have been what ended the worker.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import cast

import httptools
import httpx

BUFFER_BYTES = 2**18
MAX_HEAD = 2**16

_Address = tuple[str, int]


class _Connection(asyncio.BufferedProtocol):
    """One connection; one answer at a time."""

    def __init__(self, buffer: memoryview, limit: int) -> None:
        self._buffer = buffer  # shared by all: what arrives is parsed at once
        self._limit = limit
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.idle_since = 0.0
        self._new_answer()

    def _new_answer(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self.headers: list[tuple[bytes, bytes]] = []
        self.status = 0
        self.answering = False  # a byte of an answer has come
        self.whole = False
        self._stray = False
        self._head_bytes = 0
        self._keep_alive = False
        self._known_length = False
        self._parts: list[bytes] = []
        self._size = 0
        self._error: Exception | None = None

    # ------------------------------------------------------------------ for the transport

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    @property
    def reusable(self) -> bool:
        return self.open and self.whole and not self._stray and self._keep_alive

    def send(self, message: bytes) -> None:
        self._new_answer()
        if not self.open:
            self._error = httpx.ReadError("the connection was closed")
            return
        assert self._transport is not None
        self._transport.write(message)

    async def head(self) -> None:
        """Wait for status and headers. Raises httpx.HTTPError."""
        while not self.status:
            await self._news()

    async def part(self) -> bytes:
        """More of the body, b"" at its end. One of known length comes whole. Raises
        httpx.HTTPError."""
        while not self.whole and (self._known_length or not self._parts):
            await self._news()
        if self._error is not None:
            raise self._error
        parts, self._parts = self._parts, []
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _news(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # ------------------------------------------------------------------ asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._error is not None:
            return
        if self.whole:  # nobody asked
            self.abort()
            return
        self.answering = True
        try:
            self._parser.feed_data(self._buffer[:nbytes])
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as problem:
            self._fail(httpx.RemoteProtocolError(f"no HTTP: {problem}"))
            return
        if not self.status:
            self._head_bytes += nbytes
            if self._head_bytes > MAX_HEAD:
                self._fail(httpx.RemoteProtocolError(f"headers over {MAX_HEAD} bytes"))
        elif self._size > self._limit:
            self._fail(httpx.RemoteProtocolError(f"an answer over {self._limit} bytes"))
        if self.whole or (self.status and not self._known_length):
            self._wake()

    def eof_received(self) -> bool:
        return False  # close: a worker never half-closes

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.whole:
            self._fail(httpx.ReadError(f"the connection broke: {exc or 'closed by the worker'}"))

    def _fail(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
        self._parts = []
        self.abort()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # ------------------------------------------------------------------ httptools

    def on_message_begin(self) -> None:
        self._stray = self.whole  # a second answer to one request

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._stray:
            self.headers.append((name, value))
        self._known_length = self._known_length or name.lower() == b"content-length"

    def on_headers_complete(self) -> None:
        if not self._stray:
            self.status = self._parser.get_status_code()
            self._wake()

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size <= self._limit and not self._stray:
            self._parts.append(body)

    def on_message_complete(self) -> None:
        if not self._stray:
            self.whole = True
            self._keep_alive = bool(self._parser.should_keep_alive())


@dataclass(slots=True)
class _Body(httpx.AsyncByteStream):
    pool: WorkerTransport
    address: _Address
    connection: _Connection

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while part := await self.connection.part():
            yield part

    async def aclose(self) -> None:
        self.pool.give_back(self.address, self.connection)


@dataclass(slots=True)
class WorkerTransport(httpx.AsyncBaseTransport):
    """``limit``: most bytes of an answer that are taken. Belongs to one event loop."""

    limit: int
    keep_alive_s: float
    _idle: dict[_Address, list[_Connection]] = field(default_factory=dict)
    _buffer: memoryview = field(default_factory=lambda: memoryview(bytearray(BUFFER_BYTES)))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Raises httpx.ConnectError, ConnectTimeout: nothing was sent; UnsupportedProtocol,
        ReadError, RemoteProtocolError."""
        if request.url.scheme != "http":
            raise httpx.UnsupportedProtocol(f"workers speak plain http, not {request.url.scheme}")
        address = (request.url.host, request.url.port or 80)
        message = _message(request, await request.aread())
        used = self._take(address)
        if used is not None:
            try:
                return await self._exchange(used, address, message)
            except httpx.ReadError as error:
                if used.answering:
                    raise
                try:
                    fresh = await self._connect(address, request)
                except (httpx.ConnectError, httpx.ConnectTimeout):
                    raise error from None
        else:
            fresh = await self._connect(address, request)
        return await self._exchange(fresh, address, message)

    async def _exchange(
        self, connection: _Connection, address: _Address, message: bytes
    ) -> httpx.Response:
        try:
            connection.send(message)
            await connection.head()
        except BaseException:
            connection.abort()
            raise
        stream = _Body(self, address, connection)
        return httpx.Response(connection.status, headers=connection.headers, stream=stream)

    async def _connect(self, address: _Address, request: httpx.Request) -> _Connection:
        for gone in [a for a, idle in self._idle.items() if not any(c.open for c in idle)]:
            del self._idle[gone]  # its worker may never come back
        loop = asyncio.get_running_loop()
        patience = request.extensions.get("timeout", {}).get("connect")
        try:
            async with asyncio.timeout(patience):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self._buffer, self.limit), *address
                )
        except TimeoutError as error:
            raise httpx.ConnectTimeout(f"no connection within {patience} s") from error
        except OSError as error:
            raise httpx.ConnectError(error.strerror or str(error)) from error
        return connection

    def _take(self, address: _Address) -> _Connection | None:
        idle = self._idle.get(address, [])
        oldest = time.monotonic() - self.keep_alive_s
        while idle:
            connection = idle.pop()
            if connection.open and connection.idle_since > oldest:
                return connection
            connection.abort()
        return None

    def give_back(self, address: _Address, connection: _Connection) -> None:
        """Keep a connection whose answer was read to its end; end any other, so that its worker
        hears that nobody waits."""
        if not connection.reusable:
            connection.abort()
            return
        connection.idle_since = time.monotonic()
        idle = self._idle.setdefault(address, [])
        idle.append(connection)
        while idle and not idle[0].open:
            idle.pop(0)

    async def aclose(self) -> None:
        for idle in self._idle.values():
            for connection in idle:
                connection.abort()
        self._idle.clear()


def _message(request: httpx.Request, body: bytes) -> bytes:
    lines = [b"%s %s HTTP/1.1" % (request.method.encode(), request.url.raw_path)]
    lines += [b"%s: %s" % pair for pair in request.headers.raw]
    return b"\r\n".join([*lines, b"", b""]) + body
