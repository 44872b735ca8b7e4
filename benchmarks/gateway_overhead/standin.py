"""Stands in for a worker: answers every ``POST /generate`` at once with one ready picture.

``python standin.py FILE RELEASE``: the answer's body, and which release it says it is of. Prints
its URL. As little of its own between the sockets as there can be.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
from pathlib import Path

from intonaco.messages import GENERATED_HEADER, PROTOCOL_HEADER, PROTOCOL_VERSION

GENERATED = {
    "request_id": "ID",
    "queue_seconds": 0.0,
    "service_seconds": 0.0,
    "batch_size": 1,
    "padded_size": 1,
}


def _answer(png: bytes, release: str) -> tuple[bytes, bytes]:
    """Before and behind the request's id."""
    about = json.dumps({**GENERATED, "release": release})
    lines = (
        "HTTP/1.1 200 OK",
        "content-type: image/png",
        f"content-length: {len(png)}",
        f"{PROTOCOL_HEADER}: {PROTOCOL_VERSION}",
        f"{GENERATED_HEADER}: {about}",
    )
    before, _, behind = "\r\n".join([*lines, "", ""]).encode().partition(b"ID")
    return before, behind + png


def _request_id(body: bytes) -> bytes:
    """Of a worker's request; of any other there is none, and nobody looks."""
    return body.partition(b'"request_id":"')[2].partition(b'"')[0]


async def _serve(sock: socket.socket, answer: tuple[bytes, bytes]) -> None:
    loop = asyncio.get_running_loop()
    got = b""
    with sock:
        while True:
            while b"\r\n\r\n" not in got:
                more = await loop.sock_recv(sock, 65536)
                if not more:
                    return
                got += more
            head, _, rest = got.partition(b"\r\n\r\n")
            length = 0
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    length = int(line[15:])
            while len(rest) < length:
                more = await loop.sock_recv(sock, 65536)
                if not more:
                    return
                rest += more
            got = rest[length:]
            before, behind = answer
            await loop.sock_sendall(sock, before + _request_id(rest[:length]))
            await loop.sock_sendall(sock, behind)


async def main(answer: tuple[bytes, bytes]) -> None:
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()
    with socket.create_server(("127.0.0.1", 0), backlog=512) as server:
        server.setblocking(False)
        print(f"http://127.0.0.1:{server.getsockname()[1]}", flush=True)
        while True:
            sock, _ = await loop.sock_accept(server)
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = asyncio.create_task(_quietly(sock, answer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)


async def _quietly(sock: socket.socket, answer: tuple[bytes, bytes]) -> None:
    with contextlib.suppress(ConnectionError):  # the other side went away between two requests
        await _serve(sock, answer)


if __name__ == "__main__":
    asyncio.run(main(_answer(Path(sys.argv[1]).read_bytes(), sys.argv[2])))
