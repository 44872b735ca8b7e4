"""The worker's HTTP side: ``/generate``, ``/attest``, ``/metrics``, ``/livez``, ``/readyz``,
``/drain``, and where it shares a base ``/releases`` (``sharing.py``).

Before the engine is loaded the worker lives but is not ready. This module imports no torch: the
engine is handed in once it is loaded.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from intonaco.codec import as_json, decode, encode
from intonaco.errors import StorageError
from intonaco.messages import (
    GENERATED_HEADER,
    PROTOCOL_HEADER,
    PROTOCOL_VERSION,
    Attestation,
    Generated,
    GenerateRequest,
    StreamEvent,
    WorkerError,
)
from intonaco.releases import environment_versions
from intonaco.serving.faults import Fault
from intonaco.serving.http import BodyTooLarge, body, unless_gone
from intonaco.serving.worker.answers import (
    HEADERS,
    Problem,
    error_response,
    http_error,
    not_held,
    problem_of,
    server_error,
)
from intonaco.serving.worker.batcher import MicroBatcher
from intonaco.serving.worker.core import Images, InvalidRequest, StepWatch
from intonaco.serving.worker.held import Engine, Held, Hits, Item, Loaded, batch_key
from intonaco.serving.worker.job import (
    DeadlinePassed,
    DeadlineUnmeetable,
    Done,
    Draining,
    Job,
    QueueFull,
)
from intonaco.serving.worker.machine import machine, memory_bytes
from intonaco.serving.worker.metrics import CONTENT_TYPE, WorkerMetrics
from intonaco.serving.worker.sharing import Sharing
from intonaco.serving.worker.streaming import LineStream, Mailbox, Progress

__all__ = ["Engine", "Item", "Loaded", "Worker"]

if TYPE_CHECKING:
    from intonaco.serving.worker.spans import WorkerTracing

log = logging.getLogger(__name__)

MAX_BODY = 2**27  # a picture and its mask, as base64
LONG_BODY = 2**18  # read by a thread of its own
MAX_PARTIAL_IMAGES = 16
NO_LONGER_THERE = 499


@dataclass(slots=True)
class Worker:
    """``loaded`` is set once the release is loaded, ``ready`` once it is warm; with ``share``
    neither: ``sharing`` says what it holds. ``now``: epoch seconds, of deadlines; ``monotonic``:
    of everything else."""

    sizes: Sequence[int]
    wait_s: float
    queue_limit: int
    strict: bool = False
    fault: Fault | None = None
    share: bool = False
    now: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    loaded: Loaded | None = None
    ready: bool = False
    tracing: WorkerTracing | None = None
    batcher: MicroBatcher[Item] = field(init=False)
    metrics: WorkerMetrics = field(init=False)
    sharing: Sharing | None = field(init=False, default=None)
    _hits: Hits = field(init=False)

    def __post_init__(self) -> None:
        self.batcher = MicroBatcher(
            self._run,
            sizes=self.sizes,
            wait_s=self.wait_s,
            limit=self.queue_limit,
            strict=self.strict,
            now=self.now,
            monotonic=self.monotonic,
        )
        self._hits = Hits(self.fault)
        if self.share:
            self.sharing = Sharing(self.batcher, monotonic=self.monotonic)
        self.metrics = WorkerMetrics(
            self.batcher,
            releases=lambda: [one.engine.release_id for one in self._all()],
            gpu=lambda: next((one.gpu for one in self._all()), None),
        )

    def warm_up(self) -> None:
        """One batch of each size with the release's own generation defaults, on the thread that
        serves. Raises OutOfMemory, and what the pipeline raises."""
        assert self.loaded is not None
        request = self.loaded.engine.warm_up_request()
        engine = self.loaded.engine
        self.batcher.warm_up(Item(request, engine), batch_key(engine, request))

    def _run(self, items: Sequence[Item], size: int, watch: StepWatch) -> Images:
        slow = max(i.slow for i in items)
        if slow:  # an injected fault, said at the start of the log
            time.sleep(slow)
        (engine,) = {id(i.engine): i.engine for i in items}.values()
        return engine.generate([i.request for i in items], size, watch)

    # ------------------------------------------------------------------ what it holds

    def _all(self) -> Sequence[Loaded]:
        if self.sharing is not None:
            return self.sharing.loaded()
        return [self.loaded] if self.loaded is not None else []

    def _find(self, release_id: str) -> Held | Problem:
        """The release of that id that takes work; of none, the only one."""
        if self.sharing is not None:
            return self.sharing.find(release_id)
        if self.loaded is None or not self.ready:
            return Problem(503, "draining", "not ready yet", 1)
        own = self.loaded.engine.release_id
        if release_id not in ("", own):
            return not_held(release_id)
        return Held(release_id=own, loaded=self.loaded, hits=self._hits, state="ready")

    # ------------------------------------------------------------------ POST /generate

    async def generate(self, request: Request) -> Response:
        """One image: a PNG with its facts in a header, or a stream of events."""
        theirs = request.headers.get(PROTOCOL_HEADER, "")
        if theirs.partition(".")[0] != PROTOCOL_VERSION.partition(".")[0]:
            message = f"this worker speaks {PROTOCOL_VERSION}, not {theirs!r}"
            return self._answer(Problem(409, "protocol", message))
        try:
            wanted = await _read(request)
        except (StorageError, InvalidRequest) as error:
            return self._answer(Problem(400, "invalid", str(error)))
        except ClientDisconnect:
            return error_response(Problem(NO_LONGER_THERE, "internal", "the client hung up"))
        held = self._find(wanted.release)
        if isinstance(held, Problem):
            return self._answer(held)
        loaded = held.loaded
        assert loaded is not None  # it takes work
        try:
            if wanted.image is None:
                loaded.engine.check(wanted)
            else:  # it may have to look at the picture
                await asyncio.to_thread(loaded.engine.check, wanted)
        except InvalidRequest as error:
            return self._answer(Problem(400, "invalid", str(error)))
        if held.gone:  # while the picture was looked at
            return self._answer(not_held(held.release_id))
        hit = held.hits.next()
        if hit and hit.kind == "errors":
            return self._answer(Problem(500, "internal", "injected fault"))
        mailbox = Mailbox(wanted.partial_images) if wanted.stream else None
        try:
            job = self.batcher.submit(
                Item(wanted, loaded.engine, hit.seconds if hit else 0.0),
                batch_key(loaded.engine, wanted),
                unit=wanted.unit,
                deadline=wanted.deadline,
                listener=mailbox,
            )
        except (QueueFull, Draining, DeadlinePassed, DeadlineUnmeetable) as error:
            return self._answer(problem_of(error))
        if mailbox is None:
            return await self._one(request, job, loaded)
        return LineStream(
            request, self._lines(job, mailbox, loaded), headers=HEADERS, ended=self._ending(job)
        )

    async def _one(self, request: Request, job: Job[Item], loaded: Loaded) -> Response:
        ended = self._ending(job)
        try:
            done = await unless_gone(request, _result(job))
        except ClientDisconnect:
            return error_response(Problem(NO_LONGER_THERE, "internal", "the client hung up"))
        except Exception as error:  # whatever the pipeline raised; the batcher logged it
            return self._answer(problem_of(error))
        finally:
            ended()
        headers = HEADERS | {GENERATED_HEADER: encode(self._generated(job, done, loaded))}
        return Response(await _png(loaded, done.image), media_type="image/png", headers=headers)

    async def _lines(
        self, job: Job[Item], mailbox: Mailbox, loaded: Loaded
    ) -> AsyncIterator[bytes]:
        """What becomes of a job, one event a line. The last one is "completed" or "error"."""
        try:
            async for news in mailbox.until(job.future):
                if isinstance(news, Progress):
                    event = StreamEvent(kind="progress", step=news.step, steps=news.steps)
                else:
                    event = StreamEvent(
                        kind="partial",
                        step=news.step,
                        steps=news.steps,
                        index=news.index,
                        png=_text(await _png(loaded, news.image)),
                    )
                yield _line(event)
            done = job.future.result()
            png = _text(await _png(loaded, done.image))
            generated = self._generated(job, done, loaded)
            yield _line(StreamEvent(kind="completed", png=png, generated=generated))
        except Exception as error:
            if not job.future.done() or error is not job.future.exception():
                log.exception("a stream broke off", extra={"action": "worker.stream_failed"})
            problem = self._note(problem_of(error))
            yield _line(
                StreamEvent(
                    kind="error",
                    error=WorkerError(code=problem.code, message=problem.message),
                    status=problem.status,
                )
            )

    def _ending(self, job: Job[Item]) -> Callable[[], None]:
        """To be called once nobody waits for the job any more. Until then its deadline is
        watched."""
        timer: asyncio.TimerHandle | None = None
        if job.deadline is not None:
            left = max(0.0, job.deadline - self.now())
            timer = asyncio.get_running_loop().call_later(left, self.batcher.expire, job)

        def ended() -> None:
            if timer is not None:
                timer.cancel()
            if job.future.cancelled() or not job.future.done():
                self.metrics.hung_up += 1
            self.batcher.abandon(job)

        return ended

    # ------------------------------------------------------------------ the other endpoints

    async def attest(self, request: Request) -> Response:
        """Of the release that ``?release=ID`` names, or of the only one."""
        wanted = request.query_params.get("release", "")
        there = self._all()
        if not there and self.sharing is None:
            return self._answer(Problem(503, "draining", "still loading", 1))
        asked = [one for one in there if wanted in ("", one.engine.release_id)]
        if len(asked) != 1:
            return self._answer(not_held(wanted))
        engine = asked[0].engine
        value = Attestation(
            release_id=engine.release_id,
            protocol=PROTOCOL_VERSION,
            pid=os.getpid(),
            serving=as_json(engine.spec),
            versions=environment_versions(),
            load_seconds=engine.load_seconds,
            peak_memory_bytes=engine.peak_memory_bytes(),
            device=machine(engine.device),
            weights_bytes=asked[0].weights_bytes,
            idle_bytes=asked[0].idle_bytes,
            device_bytes=memory_bytes(engine.device),
        )
        return Response(encode(value), media_type="application/json", headers=HEADERS)

    async def prometheus(self, request: Request) -> Response:
        return Response(self.metrics.text(), headers={**HEADERS, "content-type": CONTENT_TYPE})

    async def livez(self, request: Request) -> Response:
        return JSONResponse({"live": True}, headers=HEADERS)

    async def readyz(self, request: Request) -> Response:
        """Whether the release that ``?release=ID`` names takes work; without it, any does."""
        wanted = request.query_params.get("release", "")
        if self.sharing is not None and not wanted:
            takes = self.sharing.any_ready()
        else:
            takes = isinstance(self._find(wanted), Held)
        serving = takes and not self.batcher.draining
        there = [one.engine.release_id for one in self._all()]
        state = {
            "ready": serving,
            "draining": self.batcher.draining,
            "in_flight": self.batcher.in_flight,
            "release_id": there[0] if len(there) == 1 else None,
            "releases": there,
        }
        return JSONResponse(state, 200 if serving else 503, headers=HEADERS)

    async def drain(self, request: Request) -> Response:
        """Take no new work, of the release that ``?release=ID`` names or of any; ``?off=1`` takes
        it again."""
        on = "off" not in request.query_params
        wanted = request.query_params.get("release", "")
        if wanted and self.sharing is not None:
            if not self.sharing.drain(wanted, on):
                return self._answer(not_held(wanted))
        else:
            self.batcher.drain(on)
        log.info("draining=%s", on, extra={"action": "worker.drain", "release": wanted})
        state = {"draining": on, "in_flight": self.batcher.in_flight}
        return JSONResponse(state, headers=HEADERS)

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/generate", self.generate, methods=["POST"]),
                Route("/attest", self.attest),
                Route("/metrics", self.prometheus),
                Route("/livez", self.livez),
                Route("/readyz", self.readyz),
                Route("/drain", self.drain, methods=["POST"]),
                *(self.sharing.routes() if self.sharing is not None else ()),
            ],
            middleware=[] if self.tracing is None else [self.tracing.middleware()],
            exception_handlers={HTTPException: http_error, Exception: server_error},
        )

    # ------------------------------------------------------------------ answers

    def _note(self, problem: Problem) -> Problem:
        if problem.refusal:
            self.metrics.refused[problem.code] += 1
        if self.tracing is not None:
            self.tracing.failed(problem.code)
        return problem

    def _generated(self, job: Job[Item], done: Done, loaded: Loaded) -> Generated:
        request = job.item.request
        if self.tracing is not None:
            self.tracing.made(job, request, done, loaded.engine.release_id)
        return Generated(
            request_id=request.request_id,
            release=loaded.engine.release_id,
            queue_seconds=done.queue_seconds,
            service_seconds=done.service_seconds,
            encode_seconds=done.cost.encode_seconds,
            denoise_seconds=done.cost.denoise_seconds,
            decode_seconds=done.cost.decode_seconds,
            batch_size=done.batch_size,
            padded_size=done.padded_size,
            gpu_seconds=done.gpu_seconds,
            peak_memory_bytes=done.cost.peak_memory_bytes,
            cpu_seconds=done.cost.cpu_seconds / done.batch_size,
        )

    def _answer(self, problem: Problem) -> Response:
        return error_response(self._note(problem))


async def _read(request: Request) -> GenerateRequest:
    """Raises StorageError, InvalidRequest, ClientDisconnect."""
    try:
        content = await body(request, MAX_BODY)
    except BodyTooLarge:
        raise InvalidRequest(f"the body is over {MAX_BODY} bytes") from None
    if len(content) > LONG_BODY:
        wanted = await asyncio.to_thread(decode, GenerateRequest, content)
    else:
        wanted = decode(GenerateRequest, content)
    if not 0 <= wanted.partial_images <= MAX_PARTIAL_IMAGES:
        raise InvalidRequest(f"partial_images must be between 0 and {MAX_PARTIAL_IMAGES}")
    return wanted


async def _result(job: Job[Item]) -> Done:
    return await asyncio.wrap_future(job.future)


async def _png(loaded: Loaded, image: Any) -> bytes:
    # Small images are encoded faster than a thread is handed the work.
    if image.width * image.height <= 256 * 256:
        return loaded.png(image)
    return await asyncio.to_thread(loaded.png, image)


def _line(event: StreamEvent) -> bytes:
    return encode(event).encode() + b"\n"


def _text(png: bytes) -> str:
    return base64.b64encode(png).decode()
