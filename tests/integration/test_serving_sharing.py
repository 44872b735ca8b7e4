"""Releases over one base in one worker: the same pictures, one copy, nothing mixed."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from PIL import Image
from tests.fixtures_sharing import Made, make
from tests.fixtures_tiny import picture

from intonaco.codec import decode, encode
from intonaco.errors import ConfigError, NotFound
from intonaco.folders import ADAPTER_FILE, ADAPTERS
from intonaco.messages import (
    GENERATED_HEADER,
    PROTOCOL_HEADER,
    PROTOCOL_VERSION,
    Attestation,
    Generated,
    GenerateRequest,
    HeldRelease,
    HoldRelease,
    WorkerError,
)
from intonaco.releases import ReleaseStore, base_id
from intonaco.serving.http import bind, server
from intonaco.serving.worker.app import Worker
from intonaco.serving.worker.base import Over, SharedBase
from intonaco.serving.worker.core import Images, StepWatch
from intonaco.serving.worker.engine import Engine, load, png
from intonaco.types import Release
from intonaco.workspace import Workspace

# The libraries' own deprecations, e.g. of scheduler settings.
pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning:diffusers"
)

ASK = GenerateRequest(
    request_id="r", prompt="a two", seed=7, steps=2, guidance_scale=1.5, width=32, height=32
)
SIZE = 2


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("sharing"))


def load_release(made: Made, release: Release, **how: Any) -> Engine:
    return load(release, made.folder(release), device="cpu", threads=1, **how)


@pytest.fixture
def shared(made: Made) -> SharedBase:
    engine = load_release(made, made.a, base_only=True)
    return SharedBase(engine, ReleaseStore(made.workspace, ""))


@pytest.fixture(scope="module")
def alone(made: Made) -> dict[str, dict[int, bytes]]:
    """Pictures of each release, drawn by an engine of its own: by release and seed."""
    found = {}
    for release in made.sharing:
        engine = load_release(made, release)
        found[release.release_id] = {s: drawn(engine, s) for s in range(4)}
    return found


def drawn(engine: Any, *seeds: int) -> bytes:
    asked = [replace(ASK, seed=s) for s in seeds]
    images = engine.generate(asked, SIZE).images
    return b"".join(i.tobytes() for i in images)


# ---------------------------------------------------------------------- what shares


def test_what_may_share_a_base(made: Made) -> None:
    ids = {base_id(r.serving) for r in made.sharing}
    assert len(ids) == 1
    assert None not in ids
    assert base_id(made.fused.serving) is None
    assert base_id(replace(made.a.serving, compile=True)) is None
    assert base_id(replace(made.a.serving, generation={"steps": 9})) in ids
    for change in (
        {"environment": "e"},
        {"dtype": "bfloat16"},
        {"scheduler": "DDIMScheduler"},
        {"attention": "native"},
        {"options": ("vae_tiling",)},
        {"safety_filter": "other"},
        {"pipeline_class": "other"},
    ):
        assert base_id(replace(made.a.serving, **change)) not in ids, change
    assert base_id(made.other.serving) not in ids
    # A LoRA that training fused is plain weights: others may stand on them.
    assert base_id(replace(made.base.serving, fused=True)) in ids


def test_the_same_bits_as_in_a_worker_of_its_own(
    made: Made, shared: SharedBase, alone: dict[str, dict[int, bytes]]
) -> None:
    engines = {}
    for release in (made.a, made.base, made.b):
        engine = shared.prepare(release.release_id)().engine
        assert (engine.release_id, engine.spec) == (release.release_id, release.serving)
        engines[release.release_id] = engine
    assert len({alone[r.release_id][0] for r in made.sharing}) == 3, "they draw differently"
    for seed in range(4):
        for release in (made.b, made.base, made.a, made.base, made.b, made.a):
            rid = release.release_id
            assert drawn(engines[rid], seed) == alone[rid][seed]
    shared.remove(made.a.release_id)
    assert drawn(engines[made.b.release_id], 0) == alone[made.b.release_id][0]
    assert drawn(engines[made.base.release_id], 0) == alone[made.base.release_id][0]
    with pytest.raises(NotFound):
        drawn(engines[made.a.release_id], 0)
    again = shared.prepare(made.a.release_id)().engine
    assert drawn(again, 0) == alone[made.a.release_id][0]


def test_the_base_is_there_once(made: Made, shared: SharedBase) -> None:
    def held(engine: Engine) -> dict[int, int]:
        """Bytes by address, of all tensors of the pipelines."""
        parts = {
            id(m): m
            for stage in engine._stages.values()
            for m in stage.pipeline.components.values()
            if isinstance(m, torch.nn.Module)
        }
        tensors = [t for m in parts.values() for t in (*m.parameters(), *m.buffers())]
        return {t.data_ptr(): t.numel() * t.element_size() for t in tensors}

    before = held(shared.engine)
    for release in made.sharing:
        shared.prepare(release.release_id)()
    after = held(shared.engine)
    assert before.keys() <= after.keys(), "the base's tensors are where they were"
    files = sum(
        len(made.folder(r).joinpath(ADAPTERS, name, ADAPTER_FILE).read_bytes())
        for r, name in ((made.a, "x"), (made.b, "x"), (made.b, "y"))
    )
    more = sum(after.values()) - sum(before.values())
    assert 0 < more < files
    assert sum(after.values()) < 1.7 * sum(before.values()), "a copy each would be over 3"
    for release in made.sharing:
        shared.remove(release.release_id)
    assert held(shared.engine) == before


def test_what_stands_on_another_base_is_refused(made: Made, shared: SharedBase) -> None:
    for release, why in (
        (made.other, "stands on another base: text_encoder/model.safetensors differs"),
        (made.options, r"stands on another base: options is \['vae_slicing'\], here \[\]"),
        (made.fused, "is fused on loading or compiled"),
    ):
        with pytest.raises(ConfigError, match=why):
            shared.prepare(release.release_id)
    with pytest.raises(NotFound):
        shared.prepare("0" * 64)


def test_files_that_were_exchanged_are_refused(made: Made, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    shutil.copytree(made.workspace.releases, workspace.releases)
    folder = workspace.resolve(made.a.path)
    engine = load(made.a, folder, device="cpu", threads=1, base_only=True)
    shared = SharedBase(engine, ReleaseStore(workspace, ""))
    (folder / "unet" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="its files here make"):
        shared.prepare(made.a.release_id)


# ---------------------------------------------------------------------- the worker


@dataclass
class Spy:
    """The base's engine, its batches noted: (adapter, seeds, size)."""

    batches: list[tuple[str | None, tuple[int, ...], int]] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    inside: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = Engine.generate

        def generate(
            engine: Engine,
            requests: Sequence[GenerateRequest],
            size: int,
            watch: StepWatch | None = None,
            *,
            adapter: str | None = None,
        ) -> Images:
            self.batches.append((adapter, tuple(r.seed for r in requests), size))
            self.inside.set()
            assert self.gate.wait(20)
            return real(engine, requests, size, watch, adapter=adapter)

        monkeypatch.setattr(Engine, "generate", generate)


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spy]:
    spy = Spy()
    spy.on(monkeypatch)
    yield spy
    spy.gate.set()


@dataclass
class Stack:
    worker: Worker
    http: httpx.AsyncClient

    async def hold(self, release: Release, fault: str = "") -> HeldRelease:
        """Until it is ready or refused."""
        wanted = HoldRelease(release_id=release.release_id, fault=fault)
        answer = await self.http.post("/releases", content=encode(wanted))
        assert answer.status_code == 202
        for _ in range(6000):
            if (held := await self.held(release)).state != "adding":
                return held
            await asyncio.sleep(0.005)
        raise AssertionError("neither ready nor refused")

    async def held(self, release: Release) -> HeldRelease:
        answer = await self.http.get(f"/releases/{release.release_id}")
        assert answer.status_code == 200, answer.text
        return decode(HeldRelease, answer.content)

    async def ask(self, release: Release | None, seed: int, user: str = "") -> httpx.Response:
        which = release.release_id if release else ""
        request = replace(ASK, seed=seed, release=which, unit=user)
        return await self.http.post("/generate", content=encode(request))

    async def remove(self, release: Release) -> httpx.Response:
        return await self.http.delete(f"/releases/{release.release_id}")


async def until(good: Callable[[], bool]) -> None:
    for _ in range(6000):
        if good():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never was")


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, decode(WorkerError, answer.content).code


def own(answer: httpx.Response, release: Release) -> bytes:
    """The picture, which must be of that release."""
    assert answer.status_code == 200, answer.text
    assert decode(Generated, answer.headers[GENERATED_HEADER]).release == release.release_id
    return answer.content


@asynccontextmanager
async def serving(base: SharedBase, *, warm_up: bool = False) -> AsyncIterator[Stack]:
    worker = Worker(sizes=(SIZE,), wait_s=0.02, queue_limit=64, share=True)
    assert worker.sharing is not None
    worker.sharing.warm_up = warm_up
    worker.sharing.base.set_result(base)
    sock, url = bind("127.0.0.1", 0, what="test")
    http = server(worker.app(), keep_alive_s=5, grace_s=5)
    denoise = threading.Thread(target=worker.batcher.serve)
    denoise.start()
    serve = asyncio.create_task(http.serve(sockets=[sock]))
    try:
        await until(lambda: http.started)
        async with httpx.AsyncClient(
            base_url=url,
            headers={PROTOCOL_HEADER: PROTOCOL_VERSION},
            timeout=30,
            trust_env=False,
        ) as client:
            yield Stack(worker, client)
    finally:
        http.should_exit = True
        await asyncio.wait_for(serve, 10)
        worker.batcher.stop()
        await asyncio.to_thread(denoise.join, 10)
        assert not denoise.is_alive()


def pictures(made: Made, alone: dict[str, dict[int, bytes]], release: Release, seed: int) -> bytes:
    raw = alone[release.release_id][seed]
    return png(Image.frombytes("RGB", (32, 32), raw))


async def test_mixed_load_is_never_mixed_in_a_batch(
    made: Made, shared: SharedBase, alone: dict[str, dict[int, bytes]], spy: Spy
) -> None:
    async with serving(shared) as stack:
        for release in made.sharing:
            assert (await stack.hold(release)).state == "ready"
        asked = [(release, seed) for seed in range(4) for release in made.sharing]
        answers = await asyncio.gather(*(stack.ask(r, s) for r, s in asked))
        for (release, seed), answer in zip(asked, answers, strict=True):
            assert own(answer, release) == pictures(made, alone, release, seed)
    by_release: dict[str | None, list[int]] = {}
    for adapter, seeds, _ in spy.batches:
        by_release.setdefault(adapter, []).extend(seeds)
    assert len(by_release) == 3
    # A batch names one release to the engine; each release got its own requests, once.
    assert all(sorted(seeds) == [0, 1, 2, 3] for seeds in by_release.values())
    assert max(len(seeds) for _, seeds, _ in spy.batches) == SIZE, "some shared a batch"


async def test_a_release_is_named_attested_and_drained_by_itself(
    made: Made, shared: SharedBase, spy: Spy
) -> None:
    async with serving(shared, warm_up=True) as stack:
        assert code(await stack.ask(None, 1)) == (409, "release")
        assert (await stack.http.get("/readyz")).status_code == 503
        await stack.hold(made.a)
        ((adapter, _, size),) = spy.batches
        assert (adapter, size) == (f"r{made.a.release_id[:16]}", SIZE), "warm before it is ready"
        own(await stack.ask(None, 1), made.a)  # the only one
        assert code(await stack.ask(made.b, 1)) == (409, "release")
        await stack.hold(made.b, fault="errors:after=1")
        assert code(await stack.ask(None, 1)) == (409, "release")
        for release in (made.a, made.b):
            answer = await stack.http.get(f"/attest?release={release.release_id}")
            said = decode(Attestation, answer.content)
            assert said.release_id == release.release_id
            assert said.serving["adapters"] == list(release.serving.adapters)
        assert code(await stack.http.get("/attest")) == (409, "release")
        assert code(await stack.http.get(f"/attest?release={made.base.release_id}"))[0] == 409

        # The fault is b's alone.
        own(await stack.ask(made.b, 1), made.b)
        assert code(await stack.ask(made.b, 1)) == (500, "internal")
        own(await stack.ask(made.a, 1), made.a)

        await stack.http.post(f"/drain?release={made.b.release_id}")
        assert code(await stack.ask(made.b, 1)) == (503, "draining")
        assert (await stack.http.get(f"/readyz?release={made.b.release_id}")).status_code == 503
        assert (await stack.http.get(f"/readyz?release={made.a.release_id}")).status_code == 200
        own(await stack.ask(made.a, 1), made.a)
        assert (await stack.held(made.b)).draining
        assert not (await stack.hold(made.b)).draining, "held again, it takes work"
        metrics = (await stack.http.get("/metrics")).text
        for release in (made.a, made.b):
            assert f'intonaco_worker_release{{release="{release.short}"}} 1.0' in metrics


async def test_what_waits_when_a_release_leaves_is_refused(
    made: Made, shared: SharedBase, alone: dict[str, dict[int, bytes]], spy: Spy
) -> None:
    async with serving(shared) as stack:
        await stack.hold(made.a)
        await stack.hold(made.b)
        spy.gate.clear()
        spy.inside.clear()
        running = asyncio.create_task(stack.ask(made.a, 0))
        await asyncio.to_thread(spy.inside.wait, 20)
        waiting = [asyncio.create_task(stack.ask(made.a, s)) for s in (1, 2)]
        others = [asyncio.create_task(stack.ask(made.b, s)) for s in (1, 2)]
        await until(lambda: stack.worker.batcher.waiting == 4)
        assert (await stack.remove(made.a)).status_code == 202
        # At once, although a batch runs.
        assert [code(await w) for w in waiting] == [(503, "draining")] * 2
        assert code(await stack.ask(made.a, 3)) == (409, "release")
        again = asyncio.create_task(stack.hold(made.a))  # while the old one has yet to leave
        spy.gate.set()
        assert own(await running, made.a) == pictures(made, alone, made.a, 0)
        for seed, other in zip((1, 2), others, strict=True):
            assert own(await other, made.b) == pictures(made, alone, made.b, seed)
        assert (await again).state == "ready"
        assert own(await stack.ask(made.a, 3), made.a) == pictures(made, alone, made.a, 3)
        assert code(await stack.remove(made.base)) == (404, "release")


async def test_a_release_that_leaves_while_a_picture_is_looked_at_takes_no_work(
    made: Made, shared: SharedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking, seen = threading.Event(), threading.Event()

    def look(engine: Over, request: GenerateRequest) -> None:
        if request.image is not None:
            looking.set()
            assert seen.wait(20)

    monkeypatch.setattr(Over, "check", look)
    async with serving(shared) as stack:
        for release in (made.a, made.b):
            await stack.hold(release)
        request = replace(ASK, image=picture(), release=made.a.release_id)
        task = asyncio.create_task(stack.http.post("/generate", content=encode(request)))
        await asyncio.to_thread(looking.wait, 20)
        await stack.remove(made.a)
        await stack.hold(made.a)  # another stay of the same release is none of its business
        seen.set()
        assert code(await task) == (409, "release")


async def test_a_bad_adapter_is_refused_and_the_others_serve_on(
    made: Made, shared: SharedBase, alone: dict[str, dict[int, bytes]]
) -> None:
    async with serving(shared) as stack:
        await stack.hold(made.a)
        stop = asyncio.Event()

        async def user() -> int:
            served = 0
            while not stop.is_set() or not served:
                picture = own(await stack.ask(made.a, served % 4), made.a)
                assert picture == pictures(made, alone, made.a, served % 4)
                served += 1
            return served

        load = asyncio.create_task(user())
        for release, why in (
            (made.bad, "ConfigError: adapter"),
            (made.other, "stands on another base"),
        ):
            held = await stack.hold(release)
            assert held.state == "refused"
            assert why in held.error
            assert code(await stack.ask(release, 1)) == (409, "release")
            ready = await stack.http.get(f"/readyz?release={release.release_id}")
            assert ready.status_code == 503
        assert (await stack.hold(made.bad)).state == "refused", "not read again at once"
        stop.set()
        assert await load > 0
        assert (await stack.http.get("/readyz")).status_code == 200


async def test_who_may_say_what_is_held(made: Made, shared: SharedBase) -> None:
    wanted = encode(HoldRelease(release_id=made.a.release_id))
    async with serving(shared) as stack:
        plain = await stack.http.post("/releases", content=wanted, headers={PROTOCOL_HEADER: ""})
        assert code(plain) == (409, "protocol")
        for body in (
            b"{",
            encode(HoldRelease(release_id="../../etc")),
            encode(HoldRelease(release_id=made.a.release_id, fault="nonsense")),
            b" " * 5000,
        ):
            assert code(await stack.http.post("/releases", content=body)) == (400, "invalid")
        assert code(await stack.http.get(f"/releases/{made.a.release_id}")) == (404, "release")
        strange = httpx.ASGITransport(app=stack.worker.app(), client=("192.0.2.7", 1))
        async with httpx.AsyncClient(
            transport=strange,
            base_url="http://w",
            headers={PROTOCOL_HEADER: PROTOCOL_VERSION},
        ) as stranger:
            assert (await stranger.post("/releases", content=wanted)).status_code == 403
            assert (await stranger.delete(f"/releases/{made.a.release_id}")).status_code == 403
