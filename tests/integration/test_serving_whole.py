"""The whole of serving, with nothing played: real gateway, real workers of a tiny diffusion model,
the unmodified ``openai`` client, hostile bodies, a controller that is killed."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from openai.types import ImageEditCompletedEvent, ImageGenCompletedEvent, ImageGenPartialImageEvent
from tests import fixtures_tiny
from tests.fixtures_gateway import claim, opened
from tests.fixtures_serving import gateway_process, until
from tests.fixtures_tiny import SIZE, picture
from tests.integration.test_serving_gateways import Load
from tests.integration.test_serving_weights import post

from intonaco.codec import as_json, decode, encode
from intonaco.config import Serving
from intonaco.forkserver import spawn
from intonaco.ledger import Ledger
from intonaco.messages import PROTOCOL_HEADER, PROTOCOL_VERSION, GenerateRequest
from intonaco.segment_log import SegmentReader
from intonaco.serving.client import GatewayRouter
from intonaco.serving.local import LocalServingBackend
from intonaco.serving.worker_processes import WORKER
from intonaco.types import Arm, ArmRole, Json, Outcome, Record, Release, RoutingTable
from intonaco.workspace import Workspace

CONFIG = """
service: tiny
model: {name: tiny, generation: {steps: 2, guidance_scale: 1.5, width: 32, height: 32}}
serving: {replicas: 2, gateway: {port: 0}}
monitoring: {signals: {errors: {of: errors}}}
registry: {type: none}
tracker: {type: none}
"""
STEPS = 6


@dataclass
class Stack:
    workspace: Workspace
    release: Release
    replicas: tuple[str, ...]
    strict: str  # a worker of one batch size
    patient: str  # a worker that waits for company
    router: GatewayRouter
    url: str

    def route(self, *urls: str) -> None:
        arm = Arm(
            name="champion",
            role=ArmRole.CHAMPION,
            release=self.release.release_id,
            urls=urls or self.replicas,
            weight=1.0,
        )
        epoch = self.router.observed().epoch + 1
        self.router.apply(RoutingTable(service_id="tiny", epoch=epoch, salt="s", arms=(arm,)))

    def records(self) -> list[Record]:
        return [decode(Record, t) for t in SegmentReader(self.workspace.records).read(10**6)]

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(api_key="any", base_url=f"{self.url}/v1", max_retries=0)


@contextmanager
def process(
    workspace: Workspace, module: str, *arguments: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A process of ours, ended at the end."""
    command = [sys.executable, "-m", module, "--workspace", str(workspace.root), *arguments]
    log = workspace.logs / f"{module}-{len(arguments)}.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("ab") as out:
        child = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait(20)


def ready(workspace: Workspace, name: str) -> str:
    """URL of a worker, once it is ready."""
    info = until(
        lambda: workspace.process(name), lambda p: p is not None and bool(p.facts.get("ready"))
    )
    assert info is not None
    return str(info.url)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    root = tmp_path_factory.mktemp("whole")
    workspace = Workspace(root / "w")
    workspace.root.mkdir()
    workspace.config_file.write_text(CONFIG)
    release = fixtures_tiny.add_release(workspace, fixtures_tiny.save(root / "p"))
    backend = LocalServingBackend(workspace, Serving(replicas=2))
    own = ("--device", "cpu", "--release", release.release_id)
    # One process imports torch, the others are forked from it.
    with process(workspace, "intonaco.forkserver") as server:
        until(lambda: (server.poll(), workspace.process("forkserver")), lambda s: any(s))
        alone = {
            "strict": ("--strict", "--batch-sizes", "4", "--batch-wait-ms", "100"),
            "patient": ("--batch-sizes", "1,2,4", "--batch-wait-ms", "100"),
        }
        pids = []
        for name, how in alone.items():
            pid = spawn(
                workspace,
                WORKER,
                ["--workspace", str(workspace.root), "--name", name, *own, *how],
                log_file=workspace.logs / f"{name}.log",
                folder=root,
                environment={"OMP_NUM_THREADS": "1"},
            )
            assert pid is not None
            pids.append(pid)
        try:
            backend.deploy(release)
            seen = until(
                lambda: backend.status(release.release_id), lambda s: s.ready or bool(s.error)
            )
            assert seen.ready, seen.error
            strict, patient = (ready(workspace, name) for name in alone)
            router = GatewayRouter(workspace)
            with gateway_process(workspace) as info:
                yield Stack(
                    workspace,
                    release,
                    seen.urls,
                    strict,
                    patient,
                    router=router,
                    url=str(info.url),
                )
            router.close()
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGTERM)
            backend.retire(release.release_id)
            backend.close()


def bits(image: Any) -> bytes:
    return np.asarray(opened(image)).tobytes()


def pixels(image: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.asarray(opened(image).convert("RGB"), dtype=np.int64)


# ---------------------------------------------------------------------------------- the controller


def test_traffic_goes_on_when_the_controller_is_killed(stack: Stack) -> None:
    """It alone gives the gateway its table; killed under load it is missed by nobody, and the
    gateway goes on with that table."""
    ledger = Ledger.open(stack.workspace.ledger, "tiny")
    with ledger.begin() as tx:
        tx.crown(stack.release.release_id, 1.0, "test")
    with process(stack.workspace, "intonaco.cli.run_controller") as controller:
        seen = until(
            lambda: (controller.poll(), stack.router.observed()),
            lambda s: s[0] is not None or s[1].epoch >= 1,
        )[1]
        assert controller.poll() is None
        assert seen.weights == {"champion": 1.0}
        latest = ledger.latest_routing()
        assert latest is not None
        assert set(latest.champion().urls) == set(stack.replicas), "adopted, not started anew"
        with Load(stack.url).running() as load:
            load.more(20)
            os.kill(controller.pid, signal.SIGKILL)
            controller.wait(20)
            load.more(40)
    assert (load.wrong, load.reconnected) == ([], 0)
    after = stack.router.observed()
    assert (after.epoch, after.weights, after.failed) == (seen.epoch, seen.weights, 0)
    ledger.close()


# ---------------------------------------------------------------------------------- the client


def test_generate(stack: Stack) -> None:
    stack.route()
    with stack.client() as api:
        for size in ("32x32", "64x32"):
            answer = api.images.generate(
                prompt="a handwritten two",
                model="tiny",
                n=3,
                size=size,
                user="someone",
                extra_body={"seed": 5, "steps": STEPS, "negative_prompt": "a three"},
            )
            assert answer.data is not None
            assert [i.model_extra["seed"] for i in answer.data if i.model_extra] == [5, 6, 7]
            assert len({bits(i.b64_json) for i in answer.data}) == 3
            assert {opened(i.b64_json).size for i in answer.data} == {
                tuple(map(int, size.split("x")))
            }
        with pytest.raises(openai.BadRequestError, match="multiples of 8"):
            api.images.generate(prompt="x", size="36x32")
        body = {"negative_prompt": "x", "guidance_scale": 1.0}
        with pytest.raises(openai.BadRequestError, match="guidance_scale"):
            api.images.generate(prompt="x", extra_body=body)  # said by the worker


async def test_generate_async(stack: Stack) -> None:
    stack.route()
    options: dict[str, Any] = {"api_key": "any", "base_url": f"{stack.url}/v1", "max_retries": 0}
    async with openai.AsyncOpenAI(**options) as api:
        many = await asyncio.gather(
            *(
                api.images.generate(
                    prompt="a handwritten one",
                    user=f"u{k}",
                    output_format="webp",
                    extra_body={"seed": k},
                )
                for k in range(12)
            )
        )
        formats = {opened(m.data[0].b64_json).format for m in many if m.data}
        assert formats == {"WEBP"}
        assert len({m.data[0].b64_json for m in many if m.data}) == 12
        stream = await api.images.generate(
            prompt="a handwritten one", stream=True, partial_images=1, extra_body={"steps": STEPS}
        )
        kinds = [e.type async for e in stream]
    assert kinds == ["image_generation.partial_image", "image_generation.completed"]


def test_a_stream_of_real_partial_images(stack: Stack) -> None:
    """Unfinished pictures are what the model saw on its way, and being watched moves no bit."""
    stack.route(stack.replicas[0])
    body = {"seed": 11, "steps": STEPS}
    with stack.client() as api:
        plain = api.images.generate(prompt="a handwritten two", extra_body=body)
        events = list(
            api.images.generate(
                prompt="a handwritten two", stream=True, partial_images=3, extra_body=body
            )
        )
    assert plain.data is not None
    *partial, last = events
    assert [e.type for e in partial] == ["image_generation.partial_image"] * 3
    shown = []
    for index, event in enumerate(partial):
        assert isinstance(event, ImageGenPartialImageEvent)
        assert event.partial_image_index == index
        assert opened(event.b64_json).size == (SIZE, SIZE)
        shown.append(pixels(event.b64_json))
    assert isinstance(last, ImageGenCompletedEvent)
    ImageGenCompletedEvent.model_validate(last.to_dict(), strict=True)
    assert bits(last.b64_json) == bits(plain.data[0].b64_json)
    final = pixels(last.b64_json)
    away = [float(np.abs(s - final).mean()) for s in shown]
    assert away == sorted(away, reverse=True), "it comes closer"
    assert away[0] > away[-1] > 0
    record = stack.records()[-1]
    assert [a.padded_size for a in record.attempts] == [1]
    assert last.model_extra is not None
    assert last.model_extra["release"] == stack.release.release_id


def _file(name: str, text: str) -> tuple[str, bytes]:
    return name, base64.b64decode(text)


def half_clear(size: tuple[int, int]) -> str:
    """A mask as clients send it: the right half is to be painted."""
    mask = opened(picture("RGBA", size=size))
    mask.paste((0, 0, 0, 0), (size[0] // 2, 0, *size))
    raw = io.BytesIO()
    mask.save(raw, format="PNG")
    return base64.b64encode(raw.getvalue()).decode()


def test_edit(stack: Stack) -> None:
    """Image to image: the picture decides, more so the weaker the noise; the same again is the
    same; without a picture it is another."""
    stack.route(stack.replicas[0])
    start = picture(seed=1)

    def edit(api: openai.OpenAI, image: str, strength: float) -> Any:
        answer = api.images.edit(
            image=_file("start.png", image),
            prompt="a handwritten two",
            extra_body={"seed": 3, "steps": STEPS, "strength": strength},
        )
        assert answer.data is not None
        return pixels(answer.data[0].b64_json)

    with stack.client() as api:
        weak, strong = edit(api, start, 0.34), edit(api, start, 1.0)
        assert np.array_equal(edit(api, start, 0.34), weak)
        other = edit(api, picture(seed=2), 0.34)
        far = edit(api, picture(seed=2), 1.0)
    apart = [float(np.abs(a - b).mean()) for a, b in ((weak, other), (strong, far))]
    assert apart[0] > apart[1], "less of the picture is left under more noise"
    assert not np.array_equal(weak, strong)
    record = stack.records()[-1]
    assert (record.task, record.status) == ("edit", 200)


def test_edit_within_a_mask_streamed(stack: Stack) -> None:
    """Inpainting: what is asked for shows where it is painted, hardly where the picture is kept.
    (The seed is the same, since it also decides which of its latents the picture is given; and only
    the outer quarters are compared, as the tiny VAE blurs over the edge.)"""
    wide = (4 * SIZE, SIZE)
    stack.route(stack.replicas[0])
    made = []
    with stack.client() as api:
        for word in ("two", "five"):
            stream = api.images.edit(
                image=_file("start.png", picture(seed=1, size=wide)),
                mask=_file("mask.png", half_clear(wide)),
                size="128x32",
                prompt=f"a handwritten {word}",
                stream=True,
                partial_images=1,
                extra_body={"seed": 1, "steps": STEPS, "strength": 1.0, "guidance_scale": 7.5},
            )
            events = list(stream)
            assert [e.type for e in events] == ["image_edit.partial_image", "image_edit.completed"]
            last = events[-1]
            assert isinstance(last, ImageEditCompletedEvent)
            ImageEditCompletedEvent.model_validate(last.to_dict(), strict=True)
            made.append(pixels(last.b64_json))
        with pytest.raises(openai.BadRequestError, match="leaves none"):
            api.images.edit(
                image=_file("start.png", picture(seed=1)),
                prompt="x",
                extra_body={"steps": 2, "strength": 0.1},
            )
        with pytest.raises(openai.BadRequestError, match="cut short"):
            api.images.edit(image=("a.png", base64.b64decode(picture(seed=1))[:-40]), prompt="x")
    apart = np.abs(made[0] - made[1])
    assert apart.shape == (SIZE, 4 * SIZE, 3)
    kept, painted = apart[:, :SIZE].mean(), apart[:, -SIZE:].mean()
    print(f"mean difference of two prompts: painted {painted:.2f}, kept {kept:.2f} of 255")
    assert painted > 2 * kept


# ---------------------------------------------------------------------------------- bits


def company(stack: Stack, seeds: list[int]) -> Mapping[int, tuple[bytes, int, int]]:
    """One request a seed, all at once, of a user each: bits, padded size and batch size."""
    words = ("zero", "one", "two", "three", "four")

    def one(seed: int) -> tuple[int, bytes, str]:
        prompt = f"a handwritten {words[seed % 5]}"
        status, headers, content = post(
            stack.url, "/v1/images/generations", prompt=prompt, seed=seed, user=f"u{seed}"
        )
        assert status == 200, content
        return seed, bits(content["data"][0]["b64_json"]), headers["x-request-id"]

    with ThreadPoolExecutor(len(seeds)) as pool:
        made = list(pool.map(one, seeds))
    by_id = {r.request_id: r.attempts[-1] for r in stack.records()}
    return {
        seed: (image, by_id[name].padded_size, by_id[name].batch_size) for seed, image, name in made
    }


def test_at_one_padded_size_neighbours_change_no_bit(stack: Stack) -> None:
    """Over HTTP, through the batches that really formed."""
    stack.route(stack.patient)
    rng = random.Random(5)
    wanted = [1, 2]
    seen: dict[tuple[int, int], set[bytes]] = defaultdict(set)
    batches: dict[tuple[int, int], int] = defaultdict(int)
    for _ in range(5):
        for count in (1, 2, 3, 4):
            seeds = [rng.choice(wanted), *rng.sample(range(10, 10_000), count - 1)]
            image, padded, _ = company(stack, seeds)[seeds[0]]
            seen[seeds[0], padded].add(image)
            batches[seeds[0], padded] += 1
    assert {size for _, size in seen} == {1, 2, 4}
    assert sum(n > 1 for n in batches.values()) >= 3, "most were made in several companies"
    assert [len(images) for images in seen.values()] == [1] * len(seen)
    print(f"{sum(batches.values())} images at padded sizes {dict(sorted(batches.items()))}")


def test_strict_is_the_same_alone_and_in_any_company(stack: Stack) -> None:
    stack.route(stack.strict)
    rng = random.Random(6)
    images, sizes = set(), set()
    for count in (1, 1, 2, 3, 4, 6, 9):
        others = rng.sample(range(10, 10_000), count - 1)
        made = company(stack, [*others, 7])
        image, padded, batch = made[7]
        images.add(image)
        sizes.add(batch)
        assert padded == 4
    assert len(images) == 1
    assert len(sizes) > 2, "it had company"
    with stack.client() as api:  # and beside its own brothers
        body = {"seed": 5}
        answer = api.images.generate(prompt="a handwritten two", n=4, extra_body=body)
        assert answer.data is not None
        assert bits(answer.data[2].b64_json) in images  # seed 7, the same prompt


# ---------------------------------------------------------------------------------- hostile bodies

GOOD = GenerateRequest(
    request_id="r",
    prompt="a handwritten two",
    seed=1,
    steps=2,
    guidance_scale=1.5,
    width=32,
    height=32,
)
HEADERS = {PROTOCOL_HEADER: PROTOCOL_VERSION, "content-type": "application/json"}


def hostile() -> Iterator[tuple[str, bytes | str]]:
    good = as_json(GOOD)
    text = encode(GOOD)
    for cut in (0, 1, len(text) // 2, len(text) - 1):
        yield f"cut at {cut}", text[:cut]
    yield "no JSON", b"\xff\xfe\0\0"
    yield "a list", "[]"
    yield "nested", "[" * 100_000
    yield "twice", text + text
    value: Json
    for name in good:
        for value in ([], {}, {"a": [1]}, "\0" if name != "prompt" else 3, True):
            if name in ("unit", "negative_prompt", "request_id") and isinstance(value, str):
                continue
            if name == "stream" and value is True:
                continue
            if value is True and name in ("deadline", "guidance_scale", "seed", "steps"):
                continue  # JSON's true is 1 where a number is wanted
            if value is True and name in ("strength", "partial_images"):
                continue
            yield f"{name}={value!r}", json.dumps(good | {name: value})
    for name, values in {
        "steps": (0, -1, 10**9, 10**30),
        "seed": (-1, 2**63, 2**70, 1.5),
        "width": (0, -8, 7, 2**40 + 1),
        "height": (0, -32, 33),
        "partial_images": (-1, 17, 10**9),
        "guidance_scale": ("NaN", "Infinity"),
        "strength": (0.5, 0, -1),
    }.items():
        for value in values:
            made = json.dumps(good | {name: value})
            yield (
                f"{name}={value!r}",
                made.replace('"NaN"', "NaN").replace('"Infinity"', "Infinity"),
            )
    whole = base64.b64decode(picture(seed=1))
    for name, raw in {
        "nothing": b"",
        "text": b"no picture",
        "head": whole[:40],
        "half": whole[: len(whole) // 2],
        "gif": b"GIF89a" + bytes(40),
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
        "claims much": claim("PNG", 60_000, 60_000),
    }.items():
        for field in ("image", "mask"):
            broken = base64.b64encode(raw).decode()
            more = {"image": picture(seed=1), field: broken}
            yield f"{field} is {name}", json.dumps(good | more)
    yield "no base64", json.dumps(good | {"image": "*" * 100})
    yield "data URL", json.dumps(good | {"image": "data:image/png;base64," + picture(seed=1)})
    yield "a mask alone", json.dumps(good | {"mask": picture("L")})
    yield "long base64", json.dumps(good | {"image": "A" * 20_000_000})


def test_a_worker_survives_hostile_bodies(stack: Stack) -> None:
    """Each is refused by name and spoils nothing for who asks at the same time."""
    url = stack.replicas[0]
    with httpx.Client(headers=HEADERS, timeout=60) as http:
        first = http.post(f"{url}/generate", content=encode(GOOD))
        assert first.status_code == 200

        def beside(k: int) -> int:
            wanted = replace(GOOD, request_id=f"beside{k}", seed=k)
            return http.post(f"{url}/generate", content=encode(wanted)).status_code

        names = set()
        with ThreadPoolExecutor(2) as pool:
            for k, (name, content) in enumerate(hostile()):
                neighbour = pool.submit(beside, k) if k % 8 == 0 else None
                raw = content.encode() if isinstance(content, str) else content
                answer = http.post(f"{url}/generate", content=raw)
                refused = (answer.status_code, answer.json()["code"])
                strange = name.startswith("release=")  # a name like any other, of none it holds
                expected = {(400, "invalid"), (409, "release")} if strange else {(400, "invalid")}
                assert refused in expected, f"{name}: {answer.status_code} {answer.text}"
                assert len(answer.text) < 1000, "an answer does not repeat what was sent"
                assert neighbour is None or neighbour.result() == 200
                names.add(name)
        assert len(names) > 80
        for theirs in ("", "1", "99", "99.1", "x", "2x", "é"):
            headers = [(PROTOCOL_HEADER.encode(), theirs.encode())]
            answer = http.post(f"{url}/generate", content=encode(GOOD), headers=headers)
            assert answer.status_code == 409, theirs
            assert answer.json()["code"] == "protocol"
        for method, path, status in (
            *(("GET", "/generate", 405), ("POST", "/nothing", 404), ("PUT", "/drain", 405)),
            ("GET", "/%00", 404),
        ):
            answer = http.request(method, f"{url}{path}")
            assert answer.status_code == status
        again = http.post(f"{url}/generate", content=encode(GOOD))
        assert (again.status_code, again.content) == (200, first.content)
        ready = http.get(f"{url}/readyz").json()
        assert (ready["ready"], ready["in_flight"]) == (True, 0)


@pytest.mark.slow
def test_a_body_without_end_is_not_taken(stack: Stack) -> None:
    def endless() -> Iterator[bytes]:
        yield encode(GOOD)[:-1].encode() + b', "image": "'
        for _ in range(300):
            yield b"A" * 2**20

    url = stack.replicas[0]
    try:
        status = httpx.post(
            f"{url}/generate", content=endless(), headers=HEADERS, timeout=120
        ).status_code
    except httpx.TransportError:
        status = 400  # closed while it was still being sent
    assert status == 400
    answer = httpx.post(f"{url}/generate", content=encode(GOOD), headers=HEADERS, timeout=60)
    assert answer.status_code == 200


# ---------------------------------------------------------------------------------- draining


def test_a_worker_that_drains_finishes_and_nobody_is_refused(stack: Stack) -> None:
    stack.route()
    url = stack.replicas[0]
    before = len(stack.records())
    with Load(stack.url).running() as load:
        for _ in range(3):
            load.more(10)
            assert httpx.post(f"{url}/drain", timeout=30).json()["draining"] is True
            until(lambda: httpx.get(f"{url}/readyz").json(), lambda s: s["in_flight"] == 0)
            load.more(10)
            assert httpx.post(f"{url}/drain?off=1", timeout=30).json()["draining"] is False
    assert (load.wrong, load.reconnected) == ([], 0)
    outcomes = [a.outcome for r in stack.records()[before:] for a in r.attempts]
    assert set(outcomes) <= {Outcome.OK, Outcome.REJECTED}
    assert outcomes.count(Outcome.REJECTED) > 0


def test_a_killed_worker_breaks_no_stream(stack: Stack) -> None:
    """kill -9 while eight users watch their pictures being made (the last test here: nobody starts
    that worker again). The other replica goes on from the seed."""
    stack.route()
    before = len(stack.records())
    victim = stack.workspace.process(f"worker-{stack.release.short}")
    assert victim is not None
    seen = threading.Event()

    def user(k: int) -> list[list[int]]:
        shown = []
        with stack.client() as api:
            for i in range(3):
                indices = []
                for event in api.images.generate(
                    prompt="a handwritten two",
                    user=f"s{k}",
                    stream=True,
                    partial_images=3,
                    size="64x64",
                    extra_body={"seed": 100 * k + i, "steps": 8},
                ):
                    if isinstance(event, ImageGenPartialImageEvent):
                        indices.append(event.partial_image_index)
                        seen.set()
                assert event.type == "image_generation.completed"
                shown.append(indices)
        return shown

    with ThreadPoolExecutor(8) as pool:
        users = [pool.submit(user, k) for k in range(8)]
        assert seen.wait(60)
        os.kill(victim.pid, signal.SIGKILL)
        shown = [indices for u in users for indices in u.result(120)]
    assert shown == [[0, 1, 2]] * 24
    made = stack.records()[before:]
    assert [r.status for r in made] == [200] * 24
    broken = [r for r in made if r.attempts[0].outcome is Outcome.ERROR]
    assert broken, "somebody was at the worker that was killed"
    assert all(r.attempts[-1].outcome is Outcome.OK for r in made)
    print(f"{len(broken)} of {len(made)} streams went on at the other replica")
