"""Streamed answers: what happens to a job on the denoise thread, as lines to a client.

The denoise thread only leaves things in a mailbox. A client that reads slowly finds the newest
progress there, not all of it, and the few previews it asked for; it holds up nobody.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from intonaco.messages import STREAM_TYPE
from intonaco.serving.http import unless_gone


def preview_steps(steps: int, partial_images: int) -> tuple[int, ...]:
    """After which steps (from 1) an unfinished picture is shown: spread evenly, none after the
    last step, fewer where there are not enough steps."""
    count = min(partial_images, steps - 1)
    return tuple((i + 1) * steps // (count + 1) for i in range(count))


@dataclass(frozen=True, slots=True)
class Progress:
    step: int
    steps: int


@dataclass(frozen=True, slots=True)
class Partial:
    step: int
    steps: int
    index: int  # from 0
    image: Any


class Mailbox:
    """A job's listener. Make it on the loop that reads it."""

    def __init__(self, partial_images: int) -> None:
        self._partial_images = partial_images
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._lock = threading.Lock()
        self._progress: Progress | None = None
        self._partials: list[Partial] = []
        self._at = Progress(0, 0)
        self._shown = 0

    # ------------------------------------------------------------------ the denoise thread

    def step(self, done: int, steps: int) -> bool:
        """Notes a step; whether its picture is wanted. A batch that ran out of memory begins anew:
        steps that were told already are not told again."""
        if done <= self._at.step:
            return False
        self._at = Progress(done, steps)
        with self._lock:
            self._progress = self._at
        self._wake()
        return done in preview_steps(steps, self._partial_images)

    def partial(self, image: Any) -> None:
        """The picture of the step just noted."""
        with self._lock:
            self._partials.append(Partial(self._at.step, self._at.steps, self._shown, image))
        self._shown += 1
        self._wake()

    def _wake(self) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody reads any more
            self._loop.call_soon_threadsafe(self._news.set)

    # ------------------------------------------------------------------ the loop

    async def until(self, future: Future[Any]) -> AsyncIterator[Progress | Partial]:
        """What is left in the mailbox, until ``future`` is done and the mailbox empty."""
        future.add_done_callback(lambda _: self._wake())
        while True:
            await self._news.wait()
            self._news.clear()
            ended = future.done()  # read first: nothing comes after the end
            for each in self._empty():
                yield each
            if ended:
                return

    def _empty(self) -> list[Progress | Partial]:
        with self._lock:
            partials, self._partials = self._partials, []
            progress, self._progress = self._progress, None
        return [*partials, *([progress] if progress else [])]


class LineStream(StreamingResponse):
    """Sends lines as they come. When the client hangs up, ``lines`` is cancelled where it waits;
    ``ended`` is called at the end, however it came."""

    def __init__(
        self,
        request: Request,
        lines: AsyncIterator[bytes],
        *,
        headers: Mapping[str, str],
        ended: Callable[[], None],
    ) -> None:
        super().__init__(lines, headers=headers, media_type=STREAM_TYPE)
        self._request = request
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with suppress(ClientDisconnect):
                await unless_gone(self._request, self.stream_response(send))
        finally:
            self._ended()
