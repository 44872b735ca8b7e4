"""Sends one request again and again over N keep-alive connections; prints what it saw as JSON.

``python load.py`` with one JSON object on standard input: url, path, body, headers, concurrency,
seconds, expect (bytes that the start of a body must hold). A connection asks
again as soon as it was answered. Cheap on purpose, so that it does not hide what it measures: one
loop, one buffer, no parsing beyond status and content-length.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

GRACE_S = 30.0  # for the answers under way at the end


@dataclass(slots=True)
class Run:
    message: bytes
    expect: bytes
    until: float  # of time.perf_counter
    seconds: list[float] = field(default_factory=list)
    failed: int = 0
    open: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def over(self) -> bool:
        return time.perf_counter() >= self.until


class Connection(asyncio.BufferedProtocol):
    buffer = memoryview(bytearray(2**20))  # shared: what arrived is looked at at once

    def __init__(self, run: Run) -> None:
        self.run = run
        self.transport: asyncio.Transport | None = None
        self.began = 0.0
        self.head = b""
        self.left = -1  # bytes of the body still to come, -1: the head is not whole yet
        self.checked = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.run.open += 1
        self.ask()

    def ask(self) -> None:
        assert self.transport is not None
        if self.run.over:
            self.transport.close()
            return
        self.head, self.left, self.checked = b"", -1, False
        self.began = time.perf_counter()
        self.transport.write(self.run.message)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.buffer

    def buffer_updated(self, n: int) -> None:
        if self.left < 0:
            self.head += bytes(self.buffer[:n])
            head, mark, rest = self.head.partition(b"\r\n\r\n")
            if not mark:
                return
            self.left = _length(head) - len(rest)
            self.checked = head.startswith(b"HTTP/1.1 200") and self.run.expect in rest[:1000]
            if not rest:
                self.checked = head.startswith(b"HTTP/1.1 200")
        else:
            self.left -= n
        if self.left <= 0:
            self.run.seconds.append(time.perf_counter() - self.began)
            self.run.failed += not self.checked
            self.ask()

    def connection_lost(self, error: Exception | None) -> None:
        self.run.open -= 1
        if error is not None:
            self.run.failed += 1
        if not self.run.open:
            self.run.ended.set()


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line[15:])
    raise ValueError(f"no content-length: {head[:200]!r}")


async def drive(task: dict[str, Any]) -> dict[str, Any]:
    url = urlsplit(task["url"])
    body = json.dumps(task["body"]).encode()
    headers = {
        "host": url.netloc,
        "content-type": "application/json",
        "content-length": str(len(body)),
        **task["headers"],
    }
    lines = [f"POST {task['path']} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items())]
    run = Run(
        message="\r\n".join([*lines, "", ""]).encode() + body,
        expect=task["expect"].encode("latin-1"),
        until=time.perf_counter() + task["seconds"],
    )
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    for _ in range(task["concurrency"]):
        await loop.create_connection(lambda: Connection(run), url.hostname, url.port)
    async with asyncio.timeout(task["seconds"] + GRACE_S):
        await run.ended.wait()
    return {
        "seconds": run.seconds,
        "failed": run.failed,
        "wall": time.perf_counter() - began,
    }


if __name__ == "__main__":
    json.dump(asyncio.run(drive(json.load(sys.stdin))), sys.stdout)
