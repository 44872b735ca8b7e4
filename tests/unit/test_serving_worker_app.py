"""The worker's HTTP side on a real socket, with a pipeline played by a function."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest
from PIL import Image

from intonaco.clock import FakeClock
from intonaco.codec import decode, encode
from intonaco.messages import (
    GENERATED_HEADER,
    PROTOCOL_HEADER,
    PROTOCOL_VERSION,
    STREAM_TYPE,
    Attestation,
    Generated,
    GenerateRequest,
    StreamEvent,
    WorkerError,
)
from intonaco.serving.faults import Fault
from intonaco.serving.http import bind, server
from intonaco.serving.worker.app import Loaded, Worker
from intonaco.serving.worker.core import Aborted, Images, InvalidRequest, OutOfMemory, StepWatch
from intonaco.serving.worker.streaming import Mailbox, Partial, Progress, preview_steps
from intonaco.types import ServingSpec

RELEASE = "a" * 64
STEPS = 8
SPEC = ServingSpec(pipeline_class="P", weights={}, scheduler="S", generation={})


def ask(seed: int = 0, **fields: Any) -> GenerateRequest:
    plain = GenerateRequest(
        request_id=f"r{seed}",
        prompt="a handwritten two",
        seed=seed,
        steps=STEPS,
        guidance_scale=1.5,
        width=8,
        height=8,
    )
    return replace(plain, **fields)


@dataclass
class FakeEngine:
    """``gate`` holds it before each step. Images are one colour, the seed's."""

    spec: ServingSpec = SPEC
    release_id: str = RELEASE
    device: str = "cpu"
    load_seconds: float = 1.5
    memory: int = 64
    batches: list[tuple[list[int], int]] = field(default_factory=list)
    previewed: list[int] = field(default_factory=list)
    aborted: int = 0
    gate: threading.Event = field(default_factory=threading.Event)
    inside: threading.Event = field(default_factory=threading.Event)
    clock: FakeClock = field(default_factory=FakeClock)
    seconds: float = 0.0  # that a batch takes of the clock
    noise: bool = False  # images that no compression makes small

    def __post_init__(self) -> None:
        self.gate.set()

    def check(self, request: GenerateRequest) -> None:
        if request.width % 8:
            raise InvalidRequest("width must be a multiple of 8")

    def batch_key(self, request: GenerateRequest) -> tuple[int, int]:
        return request.steps, request.width

    def warm_up_request(self) -> GenerateRequest:
        return ask(99)

    def peak_memory_bytes(self) -> int:
        return 1000

    def generate(
        self, requests: Sequence[GenerateRequest], size: int, watch: StepWatch | None = None
    ) -> Images:
        assert watch is not None
        self.batches.append(([r.seed for r in requests], size))
        self.inside.set()
        if size > self.memory:
            raise OutOfMemory
        if any("fail" in r.prompt for r in requests):
            raise RuntimeError("a secret of the prompt")
        pictures = [self._picture(r) for r in requests]

        def preview() -> list[Image.Image]:
            self.previewed.append(step)
            return pictures

        for step in range(1, requests[0].steps + 1):
            assert self.gate.wait(10)
            try:
                watch(step, requests[0].steps, preview)
            except Aborted:
                self.aborted += 1
                raise
        self.clock.advance(self.seconds)
        return Images(
            images=pictures,
            encode_seconds=0.25,
            denoise_seconds=0.5,
            decode_seconds=0.125,
            gpu_seconds=3.0,
            peak_memory_bytes=2000,
        )

    def _picture(self, request: GenerateRequest) -> Image.Image:
        size = (request.width, request.height)
        if self.noise:
            return Image.frombytes("RGB", size, os.urandom(3 * size[0] * size[1]))
        return Image.new("RGB", size, (request.seed, 0, 0))


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, format="PNG")
    return out.getvalue()


def colour(content: bytes) -> int:
    return Image.open(io.BytesIO(content)).convert("RGB").tobytes()[0]


@dataclass
class Stack:
    worker: Worker
    engine: FakeEngine
    http: httpx.AsyncClient
    port: int

    async def post(self, request: GenerateRequest, **how: Any) -> httpx.Response:
        return await self.http.post("/generate", content=encode(request), **how)

    def later(self, request: GenerateRequest) -> asyncio.Task[httpx.Response]:
        return asyncio.create_task(self.post(request))

    async def hold(self) -> asyncio.Task[httpx.Response]:
        """A request whose batch is held before its first step."""
        self.engine.gate.clear()
        self.engine.inside.clear()
        task = self.later(ask(200, width=64))
        await until(self.engine.inside.is_set)
        return task

    async def queued(self, count: int) -> None:
        await until(lambda: self.worker.batcher.waiting == count)

    async def connect(self, request: GenerateRequest) -> socket.socket:
        """A client of its own that does not read."""
        content = encode(request).encode()
        head = (
            f"POST /generate HTTP/1.1\r\nhost: x\r\n{PROTOCOL_HEADER}: {PROTOCOL_VERSION}\r\n"
            f"content-length: {len(content)}\r\n\r\n"
        )
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, ("127.0.0.1", self.port))
        await loop.sock_sendall(sock, head.encode() + content)
        return sock


async def until(good: Callable[[], bool]) -> None:
    for _ in range(5000):
        if good():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("it never was")


@asynccontextmanager
async def serving(
    *,
    sizes: Sequence[int] = (1, 2, 4),
    wait_s: float = 0.0,
    limit: int = 64,
    fault: Fault | None = None,
    clock: FakeClock | None = None,
    ready: bool = True,
) -> AsyncIterator[Stack]:
    engine = FakeEngine(clock=clock or FakeClock())
    worker = Worker(
        sizes=sizes,
        wait_s=wait_s,
        queue_limit=limit,
        fault=fault,
        now=clock.now if clock else time.time,
        monotonic=clock.now if clock else time.monotonic,
    )
    if ready:
        worker.loaded = Loaded(engine=engine, png=png)
        worker.ready = True
    sock, url = bind("127.0.0.1", 0, what="test")
    http = server(worker.app(), keep_alive_s=5, grace_s=5)
    denoise = threading.Thread(target=worker.batcher.serve)
    denoise.start()
    serve = asyncio.create_task(http.serve(sockets=[sock]))
    headers = {PROTOCOL_HEADER: PROTOCOL_VERSION}
    try:
        await until(lambda: http.started)
        async with httpx.AsyncClient(
            base_url=url, headers=headers, timeout=10, trust_env=False
        ) as client:
            yield Stack(worker, engine, client, int(url.rpartition(":")[2]))
    finally:
        engine.gate.set()
        http.should_exit = True
        await asyncio.wait_for(serve, 10)
        worker.batcher.stop()
        await asyncio.to_thread(denoise.join, 10)
        assert not denoise.is_alive()


def events(response: httpx.Response) -> list[StreamEvent]:
    assert response.status_code == 200
    assert response.headers["content-type"] == STREAM_TYPE
    assert response.headers[PROTOCOL_HEADER] == PROTOCOL_VERSION
    return [decode(StreamEvent, line) for line in response.text.splitlines()]


def refusal(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, decode(WorkerError, response.content).code


# ---------------------------------------------------------------------- plain answers


async def test_an_image_and_its_facts() -> None:
    async with serving() as stack:
        first = await stack.hold()
        tasks = [stack.later(ask(seed)) for seed in (1, 2, 3)]
        await stack.queued(3)
        stack.engine.gate.set()
        answers = await asyncio.gather(*tasks)
        assert (await first).status_code == 200
    assert stack.engine.batches[1] == ([1, 2, 3], 4)
    for seed, answer in zip((1, 2, 3), answers, strict=True):
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
        assert colour(answer.content) == seed
        facts = decode(Generated, answer.headers[GENERATED_HEADER])
        assert (facts.request_id, facts.release) == (f"r{seed}", RELEASE)
        assert (facts.batch_size, facts.padded_size, facts.gpu_seconds) == (3, 4, 1.0)
        assert (facts.encode_seconds, facts.denoise_seconds) == (0.25, 0.5)
        assert (facts.decode_seconds, facts.peak_memory_bytes) == (0.125, 2000)
        assert facts.queue_seconds > 0
        assert facts.service_seconds > 0


async def test_what_is_refused_before_it_is_queued() -> None:
    async with serving() as stack:
        other = await stack.post(ask(), headers={PROTOCOL_HEADER: "1"})
        assert refusal(other) == (409, "protocol")
        garbage = await stack.http.post("/generate", content=b"{")
        assert refusal(garbage) == (400, "invalid")
        cannot = await stack.post(ask(width=9))
        assert refusal(cannot) == (400, "invalid")
        assert "multiple of 8" in cannot.text
        with_picture = await stack.post(ask(width=9, image="aGk="))
        assert refusal(with_picture) == (400, "invalid")
        assert refusal(await stack.post(ask(partial_images=17))) == (400, "invalid")
        assert refusal(await stack.post(ask(partial_images=-1))) == (400, "invalid")
        assert (await stack.http.get("/nothing")).status_code == 404
    assert stack.engine.batches == []


async def test_a_worker_that_is_not_ready_lives_and_takes_nothing() -> None:
    async with serving(ready=False) as stack:
        assert (await stack.http.get("/livez")).status_code == 200
        assert (await stack.http.get("/readyz")).status_code == 503
        assert refusal(await stack.http.get("/attest")) == (503, "draining")
        assert refusal(await stack.post(ask())) == (503, "draining")
        assert "intonaco_worker_release" not in (await stack.http.get("/metrics")).text
        stack.worker.loaded = Loaded(engine=stack.engine, png=png)
        assert (await stack.http.get("/readyz")).status_code == 503, "loaded, but not warm"
        attested = await stack.http.get("/attest")
        assert decode(Attestation, attested.content).release_id == RELEASE


async def test_full_draining_and_late() -> None:
    clock = FakeClock()
    async with serving(limit=2, clock=clock) as stack:
        held = await stack.hold()
        waiting = [stack.later(ask(seed)) for seed in (1, 2)]
        await stack.queued(2)
        full = await stack.post(ask(3))
        assert refusal(full) == (429, "full")
        assert int(full.headers["retry-after"]) >= 1
        await stack.http.post("/drain")
        draining = await stack.post(ask(3))
        assert refusal(draining) == (503, "draining")
        assert (await stack.http.get("/readyz")).status_code == 503
        stack.engine.gate.set()
        assert [(await t).status_code for t in (held, *waiting)] == [200] * 3, "what was taken"
        await stack.http.post("/drain?off=1")
        assert refusal(await stack.post(ask(4, deadline=clock.now()))) == (504, "deadline")


async def test_a_deadline_that_cannot_be_met_is_refused_at_once() -> None:
    clock = FakeClock()
    async with serving(clock=clock) as stack:
        stack.engine.seconds = 100.0
        assert (await stack.post(ask(1))).status_code == 200
        held = await stack.hold()
        late = await stack.post(ask(2, deadline=clock.now() + 90.0))
        assert refusal(late) == (503, "deadline_unmeetable")
        assert late.headers["retry-after"] == "10"
        assert "10.0 s too late" in late.text
        stack.engine.gate.set()
        assert (await held).status_code == 200


async def test_a_deadline_that_passes_in_the_queue_is_answered_though_a_batch_runs() -> None:
    async with serving() as stack:
        held = await stack.hold()
        plain = await stack.post(ask(1, deadline=stack.worker.now() + 0.05))
        assert refusal(plain) == (504, "deadline")
        streamed = events(await stack.post(ask(2, deadline=stack.worker.now() + 0.05, stream=True)))
        assert [(e.kind, e.status) for e in streamed] == [("error", 504)]
        stack.engine.gate.set()
        assert (await held).status_code == 200
    assert [seeds for seeds, _ in stack.engine.batches] == [[200]]


async def test_a_failure_of_the_pipeline_is_500_and_tells_no_secret() -> None:
    async with serving() as stack:
        answer = await stack.post(ask(1, prompt="please fail"))
        assert refusal(answer) == (500, "internal")
        assert "secret" not in answer.text
        stack.engine.memory = 0
        assert "too little memory" in (await stack.post(ask(2))).text
        stack.engine.memory = 64
        assert (await stack.post(ask(3))).status_code == 200


async def test_an_image_that_cannot_be_encoded_is_500_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(image: Image.Image) -> bytes:
        raise ValueError("no PNG")

    async with serving() as stack:
        stack.worker.loaded = Loaded(engine=stack.engine, png=broken)
        assert refusal(await stack.post(ask(1))) == (500, "internal")
        assert "no PNG" in caplog.text
        caplog.clear()
        streamed = events(await stack.post(ask(2, stream=True)))
        assert (streamed[-1].kind, streamed[-1].status) == ("error", 500)
        assert "a stream broke off" in caplog.text


async def test_injected_faults() -> None:
    async with serving(fault=Fault(kind="errors", after=1, count=1)) as stack:
        codes = [(await stack.post(ask(i))).status_code for i in range(3)]
    assert codes == [200, 500, 200]


def test_warm_up_runs_every_size() -> None:
    engine = FakeEngine()
    worker = Worker(sizes=(1, 2, 4), wait_s=0, queue_limit=1)
    worker.loaded = Loaded(engine=engine, png=png)
    worker.warm_up()
    assert engine.batches == [([99], 1), ([99], 2), ([99], 4)]


# ---------------------------------------------------------------------- streams


def test_previews_are_spread_over_the_steps() -> None:
    assert preview_steps(28, 3) == (7, 14, 21)
    assert preview_steps(8, 2) == (2, 5)
    assert preview_steps(3, 9) == (1, 2)
    assert preview_steps(1, 3) == preview_steps(5, 0) == ()


async def test_a_stream_tells_steps_shows_previews_and_ends_with_the_image() -> None:
    async with serving() as stack:
        held = await stack.hold()
        plain = stack.later(ask(1))
        streamed = stack.later(ask(2, stream=True, partial_images=2))
        quiet = stack.later(ask(3, stream=True))
        await stack.queued(3)
        stack.engine.gate.set()
        assert (await held).status_code == (await plain).status_code == 200
        told, quietly = events(await streamed), events(await quiet)
    assert stack.engine.batches[1] == ([1, 2, 3], 4), "plain and streamed in one batch"
    assert stack.engine.previewed == [2, 5], "decoded only where somebody looks"
    partials = [e for e in told if e.kind == "partial"]
    assert [(e.index, e.step, e.steps) for e in partials] == [(0, 2, 8), (1, 5, 8)]
    assert all(colour(base64.b64decode(e.png or "")) == 2 for e in partials)
    for answer, seed in ((told, 2), (quietly, 3)):
        assert answer[-1].kind == "completed"
        assert colour(base64.b64decode(answer[-1].png or "")) == seed
        assert answer[-1].generated is not None
        assert (answer[-1].generated.batch_size, answer[-1].generated.request_id) == (3, f"r{seed}")
        steps = [e.step for e in answer if e.kind == "progress"]
        assert steps == sorted(set(steps))
        assert steps[-1] == 8
    assert {e.kind for e in quietly} == {"progress", "completed"}


async def test_a_stream_that_fails_ends_with_what_a_plain_answer_would_have_said() -> None:
    async with serving(limit=1) as stack:
        failed = events(await stack.post(ask(1, prompt="please fail", stream=True)))
        assert [(e.kind, e.status) for e in failed] == [("error", 500)]
        assert failed[0].error is not None
        assert (failed[0].error.code, failed[0].error.message) == ("internal", "RuntimeError")
        held = await stack.hold()
        waits = stack.later(ask(2, stream=True))
        await stack.queued(1)
        full = await stack.post(ask(3, stream=True))
        assert refusal(full) == (429, "full"), "refused before it is a stream"
        stack.engine.gate.set()
        assert (await held).status_code == 200
        assert events(await waits)[-1].kind == "completed"


async def test_memory_that_runs_out_tells_no_step_twice() -> None:
    async with serving() as stack:
        stack.engine.memory = 1
        held = await stack.hold()
        streams = [stack.later(ask(i, stream=True, partial_images=1)) for i in range(3)]
        await stack.queued(3)
        stack.engine.gate.set()
        await held
        for seed, stream in enumerate(streams):
            told = events(await stream)
            assert [e.index for e in told if e.kind == "partial"] == [0]
            assert told[-1].generated is not None
            assert told[-1].generated.padded_size == 1
            assert colour(base64.b64decode(told[-1].png or "")) == seed


async def test_a_reader_that_is_late_finds_the_previews_and_the_newest_progress() -> None:
    mailbox = Mailbox(partial_images=2)
    for step in range(1, 9):
        if mailbox.step(step, 8):
            mailbox.partial(f"picture of {step}")
    assert not mailbox.step(5, 8), "told before a retry"
    future: Future[int] = Future()
    future.set_result(1)
    news = [each async for each in mailbox.until(future)]
    assert news == [
        Partial(2, 8, 0, "picture of 2"),
        Partial(5, 8, 1, "picture of 5"),
        Progress(8, 8),
    ]


async def test_a_client_that_does_not_read_holds_up_nobody() -> None:
    async with serving() as stack:
        stack.engine.noise = True
        sock = await stack.connect(
            ask(1, stream=True, partial_images=7, width=800, height=800)  # 2.5 MB each
        )
        await until(lambda: len(stack.engine.batches) == 1)
        assert (await stack.post(ask(2))).status_code == 200, "its batch ended all the same"
        assert stack.engine.previewed == list(range(1, 8))
        sock.close()


# ---------------------------------------------------------------------- clients that hang up


@pytest.mark.parametrize("stream", [False, True])
async def test_hanging_up_in_the_queue_takes_the_request_out(stream: bool) -> None:
    async with serving() as stack:
        held = await stack.hold()
        sock = await stack.connect(ask(1, stream=stream))
        await stack.queued(1)
        sock.close()
        await stack.queued(0)
        stack.engine.gate.set()
        assert (await held).status_code == 200
        await until(lambda: stack.worker.metrics.hung_up == 1)
    assert [seeds for seeds, _ in stack.engine.batches] == [[200]]


@pytest.mark.parametrize("stream", [False, True])
async def test_hanging_up_while_it_runs_ends_the_batch_and_the_worker_goes_on(
    stream: bool,
) -> None:
    async with serving() as stack:
        stack.engine.gate.clear()
        sock = await stack.connect(ask(1, stream=stream))
        await until(stack.engine.inside.is_set)
        sock.close()
        await until(lambda: stack.worker.metrics.hung_up == 1)
        stack.engine.gate.set()
        assert colour((await stack.post(ask(2))).content) == 2
    assert stack.engine.aborted == 1
    assert stack.worker.batcher.counts.aborted == 1


async def test_one_that_hangs_up_beside_another_changes_nothing_for_it() -> None:
    async with serving(sizes=(2,), wait_s=30) as stack:  # a batch begins when it is full
        stack.engine.gate.clear()
        stays = stack.later(ask(1))
        await stack.queued(1)
        sock = await stack.connect(ask(2))
        await until(stack.engine.inside.is_set)
        sock.close()
        await until(lambda: stack.worker.metrics.hung_up == 1)
        stack.engine.gate.set()
        assert colour((await stays).content) == 1
    assert stack.engine.batches == [([1, 2], 2)]
    assert stack.engine.aborted == 0


# ---------------------------------------------------------------------- metrics


async def test_metrics() -> None:
    async with serving(limit=2) as stack:
        held = await stack.hold()
        waiting = [stack.later(ask(seed)) for seed in (1, 2)]
        await stack.queued(2)
        await stack.post(ask(3))
        await stack.post(ask(width=9))
        during = (await stack.http.get("/metrics")).text
        stack.engine.gate.set()
        await asyncio.gather(held, *waiting)
        await stack.post(ask(1, prompt="please fail"))
        await until(lambda: not stack.worker.batcher.running)
        response = await stack.http.get("/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    values = dict(
        line.rsplit(" ", 1) for line in response.text.splitlines() if not line.startswith("#")
    )
    assert "intonaco_worker_queue_length 2.0" in during
    assert "intonaco_worker_running 1.0" in during
    assert float(values.pop("intonaco_worker_busy_seconds_total")) > 0
    assert values == {
        'intonaco_worker_release{release="aaaaaaaaaa"}': "1.0",
        "intonaco_worker_queue_length": "0.0",
        "intonaco_worker_running": "0.0",
        "intonaco_worker_draining": "0.0",
        'intonaco_worker_batches_total{padded_size="1"}': "1.0",
        'intonaco_worker_batches_total{padded_size="2"}': "1.0",
        "intonaco_worker_images_total": "3.0",
        'intonaco_worker_refused_total{reason="full"}': "1.0",
        'intonaco_worker_refused_total{reason="invalid"}': "1.0",
        "intonaco_worker_failed_total": "1.0",
        "intonaco_worker_hung_up_total": "0.0",
        "intonaco_worker_batches_aborted_total": "0.0",
    }
    assert "gpu" not in response.text, "absent, not zero"
