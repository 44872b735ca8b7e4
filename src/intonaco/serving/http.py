"""What gateway and worker share as HTTP servers."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from intonaco.errors import ConfigError

T = TypeVar("T")

MAX_HEAD = 2**16

# A worker keeps idle connections longer than the gateway does, or a request could be sent into a
# connection that is just being closed and look like a failure of the release.
WORKER_KEEP_ALIVE_S = 75
GATEWAY_KEEP_ALIVE_S = 30


class BodyTooLarge(Exception):
    """The request's body is over the limit."""


class Server(uvicorn.Server):
    """A uvicorn server that leaves signals to its process: several may share one loop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class BoundedHead(HttpToolsProtocol):
    """uvicorn's fast protocol, which itself takes request lines and headers of any size."""

    _head_bytes = 0  # of a head that is not whole yet

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._head_bytes >= 0:  # what ended the last message and began this one counts too
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD and not self.transport.is_closing():
                self.send_400_response(f"The headers are over {MAX_HEAD} bytes.")

    def on_message_begin(self) -> None:
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._head_bytes = -1
        super().on_headers_complete()


def server(app: ASGIApp, *, keep_alive_s: int, grace_s: int) -> Server:
    """A quiet HTTP/1.1 server. ``grace_s``: how long a stop waits for requests in flight."""
    return Server(
        uvicorn.Config(
            app,
            http=BoundedHead,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_keep_alive=keep_alive_s,
            timeout_graceful_shutdown=grace_s,
        )
    )


def bind(host: str, port: int, *, what: str, shared: bool = False) -> tuple[socket.socket, str]:
    """A listening socket (port 0: any free one) and its URL. ``shared``: others that say so too
    may listen at the same port, and the system deals them the connections. Raises ConfigError in
    one line."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
        sock.listen(512)
    except OSError as error:
        raise ConfigError(
            f"{what}: cannot listen on {host}:{port}: {error.strerror or error}",
            hint="choose another port, or 0 for any free one",
        ) from error
    shown = f"[{host}]" if ":" in host else host
    return sock, f"http://{shown}:{sock.getsockname()[1]}"


def on_stop(*servers: uvicorn.Server, then: Callable[[], object] | None = None) -> None:
    """SIGTERM and SIGINT ask the servers of the running loop to finish and exit, and call
    ``then``."""

    def stop() -> None:
        if then is not None:
            then()
        for each in servers:
            each.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)


async def body(request: Request, limit: int, take: Callable[[int], None] | None = None) -> bytes:
    """The request's body. ``take`` is told how many bytes came, before they are kept; it may raise.
    Raises BodyTooLarge, ClientDisconnect."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise BodyTooLarge
        if take is not None:
            take(len(chunk))
        chunks.append(chunk)
    return b"".join(chunks)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Result of ``work``, cancelled when the client hangs up. Call after the body was read. Raises
    ClientDisconnect."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        watch.cancel()
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
