"""Several releases in one worker, over one base: how they come, go and are found. No torch.

Every release is read, loaded, verified and warmed up while the others serve: files in a thread of
its own, what touches the pipeline on the denoise thread between two batches. One that is refused
changes nothing for the others. Its parts are put on and taken off in the order that was asked for.

Only this machine may say what is held (``/releases``), and only with the header of the protocol,
which no web page can send unasked.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from intonaco.codec import decode, encode
from intonaco.errors import ConfigError, IntonacoError, StorageError
from intonaco.messages import PROTOCOL_HEADER, PROTOCOL_VERSION, HeldRelease, HoldRelease
from intonaco.serving.faults import parse_fault
from intonaco.serving.http import BodyTooLarge, body
from intonaco.serving.worker.answers import HEADERS, Problem, error_response, not_held
from intonaco.serving.worker.batcher import MicroBatcher
from intonaco.serving.worker.held import Held, Hits, Item, Loaded, batch_key
from intonaco.serving.worker.job import Draining

log = logging.getLogger(__name__)

T = TypeVar("T")
MAX_BODY = 2**12
AGAIN_S = 60.0  # before a refused release is read again: whoever asks has to see it refused


class Base(Protocol):
    """A loaded base."""

    def prepare(self, release_id: str) -> Callable[[], Loaded]:
        """Read a release and check that this is its base; what is returned puts it on, and is to be
        called on the denoise thread. Both raise IntonacoError."""
        ...

    def remove(self, release_id: str) -> None:
        """Take it off, on the denoise thread."""
        ...


@dataclass(slots=True)
class Sharing:
    """All but ``base``, which whoever loads it sets from any thread, belongs to the event loop."""

    batcher: MicroBatcher[Item]
    warm_up: bool = True
    monotonic: Callable[[], float] = time.monotonic
    base: Future[Base] = field(default_factory=Future)
    _held: dict[str, Held] = field(default_factory=dict)
    _last: dict[str, asyncio.Task[None]] = field(default_factory=dict)  # of each release's works

    # ------------------------------------------------------------------ who is there

    def find(self, release_id: str) -> Held | Problem:
        """The release of that id that takes work; of none, the only one."""
        if not release_id and len(self._held) == 1:
            release_id = next(iter(self._held))
        held = self._held.get(release_id)
        if held is None or held.state == "refused":
            return not_held(release_id)
        if held.state == "adding":
            return Problem(503, "draining", "not ready yet", 1)
        if held.draining:
            return Problem(503, "draining", "no new work is taken", 1)
        return held

    def loaded(self) -> Sequence[Loaded]:
        """Of those that are loaded, whether they are warm or not."""
        return [held.loaded for held in self._held.values() if held.loaded is not None]

    def any_ready(self) -> bool:
        return any(isinstance(self.find(rid), Held) for rid in self._held)

    # ------------------------------------------------------------------ coming and going

    def add(self, release_id: str, fault: str = "") -> Held:
        """Begin to hold a release. One that is held takes work again; one that was refused is
        tried again after a while. Raises ConfigError for a fault that cannot be read."""
        hits = Hits(parse_fault(fault))
        held = self._held.get(release_id)
        if held is None or (
            held.state == "refused" and self.monotonic() >= held.refused_at + AGAIN_S
        ):
            held = Held(release_id=release_id, hits=hits)
            self._held[release_id] = held
            self._then(release_id, self._add(held))
            if hits.fault is not None:
                log.warning(
                    "FAULT INJECTED FOR A DRILL: %s (release %s itself is unchanged)",
                    fault,
                    release_id[:10],
                    extra={"action": "worker.fault"},
                )
        held.draining = False
        return held

    def drain(self, release_id: str, on: bool) -> bool:
        """Whether it is held."""
        held = self._held.get(release_id)
        if held is not None:
            held.draining = on
        return held is not None

    def remove(self, release_id: str) -> bool:
        """Hold it no longer: what waits of it is refused, what runs is finished. Whether it was
        held."""
        held = self._held.pop(release_id, None)
        if held is None:
            return False
        held.gone = True
        if held.loaded is not None:
            engine = held.loaded.engine
            refused = self.batcher.refuse(lambda item: item.engine is engine)
            log.info(
                "release %s leaves; %d requests refused",
                release_id[:10],
                refused,
                extra={"action": "worker.release_removed", "release": release_id},
            )
        self._then(release_id, self._take_off(held))
        return True

    def _then(self, release_id: str, work: Coroutine[None, None, None]) -> None:
        """Do it after what was begun for this release before."""
        before = self._last.get(release_id)

        async def run() -> None:
            if before is not None:
                await asyncio.wait({before})
            await work

        task = asyncio.create_task(run())
        self._last[release_id] = task
        task.add_done_callback(lambda done: self._ended(release_id, done))

    def _ended(self, release_id: str, task: asyncio.Task[None]) -> None:
        if self._last.get(release_id) is task:
            del self._last[release_id]
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, Draining):  # the worker was stopped
            log.error("a release's change failed", exc_info=error, extra={"action": "worker.share"})

    async def _add(self, held: Held) -> None:
        try:
            base = await asyncio.shield(asyncio.wrap_future(self.base))
            put_on = await asyncio.to_thread(base.prepare, held.release_id)
            if held.gone:
                return
            held.loaded = await self._between(put_on)
            if self.warm_up:
                await self._warm_up(held, held.loaded)
            held.state = "ready"
            log.info(
                "release %s is held",
                held.release_id[:10],
                extra={"action": "worker.release_added", "release": held.release_id},
            )
        except Exception as error:
            await self._take_off(held)
            held.state, held.error = "refused", f"{type(error).__name__}: {error}"
            held.refused_at = self.monotonic()
            known = isinstance(error, IntonacoError)
            log.error(
                "release %s is refused: %s",
                held.release_id[:10],
                held.error,
                exc_info=None if known else error,
                extra={"action": "worker.release_refused", "release": held.release_id},
            )

    async def _warm_up(self, held: Held, loaded: Loaded) -> None:
        """One size at a time, so that the others' batches come in between."""
        request = loaded.engine.warm_up_request()
        item, key = Item(request, loaded.engine), batch_key(loaded.engine, request)
        tried = set[int]()
        while not held.gone and await self._between(
            lambda: self.batcher.warm_up_next(item, key, tried)
        ):
            pass

    async def _take_off(self, held: Held) -> None:
        if held.loaded is not None:
            held.loaded = None
            base = self.base.result()
            await self._between(lambda: base.remove(held.release_id))

    async def _between(self, call: Callable[[], T]) -> T:
        return await asyncio.wrap_future(self.batcher.between(call))

    # ------------------------------------------------------------------ /releases

    def routes(self) -> Sequence[Route]:
        return (
            Route("/releases", self._post, methods=["POST"]),
            Route("/releases/{release_id}", self._one, methods=["GET", "DELETE"]),
        )

    async def _post(self, request: Request) -> Response:
        """Hold a release; 202, and ``GET /releases/ID`` says what becomes of it."""
        if (problem := _stranger(request)) is not None:
            return error_response(problem)
        try:
            wanted = decode(HoldRelease, await body(request, MAX_BODY))
            # It becomes the name of a folder.
            if not (len(wanted.release_id) == 64 and set(wanted.release_id) <= HEX):
                raise ConfigError("release_id must be the 64 hex digits of a release")
            held = self.add(wanted.release_id, wanted.fault)
        except BodyTooLarge:
            return error_response(Problem(400, "invalid", f"the body is over {MAX_BODY} bytes"))
        except (StorageError, ConfigError) as error:
            return error_response(Problem(400, "invalid", str(error)))
        return _said(held, 202)

    async def _one(self, request: Request) -> Response:
        if (problem := _stranger(request)) is not None:
            return error_response(problem)
        release_id = request.path_params["release_id"]
        held = self._held.get(release_id)
        if held is None:
            return error_response(Problem(404, "release", not_held(release_id).message))
        if request.method == "DELETE":
            self.remove(release_id)
            return _said(held, 202)
        return _said(held, 200)


HEX = frozenset("0123456789abcdef")


def _said(held: Held, status: int) -> Response:
    value = HeldRelease(
        release_id=held.release_id, state=held.state, draining=held.draining, error=held.error
    )
    return Response(encode(value), status, media_type="application/json", headers=HEADERS)


def _stranger(request: Request) -> Problem | None:
    theirs = request.headers.get(PROTOCOL_HEADER, "")
    if theirs.partition(".")[0] != PROTOCOL_VERSION.partition(".")[0]:
        message = f"this worker speaks {PROTOCOL_VERSION}, not {theirs!r}"
        return Problem(409, "protocol", message)
    host = request.client.host if request.client is not None else ""
    try:
        here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        here = False
    return None if here else Problem(403, "invalid", "only this machine says what is held")
