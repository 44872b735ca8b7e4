"""The whole gateway in one process, with workers played by functions."""

from __future__ import annotations

import asyncio
import base64
import io
import re
import resource
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from PIL import Image

from intonaco.clock import SystemClock
from intonaco.codec import decode, encode
from intonaco.config import parse
from intonaco.messages import (
    BACKGROUND_UNIT,
    GENERATED_HEADER,
    NO_ROOM_FOR_PROBES,
    PROTOCOL_HEADER,
    PROTOCOL_VERSION,
    Generated,
    GenerateRequest,
    WorkerError,
)
from intonaco.segment_log import SegmentReader
from intonaco.serving.gateway.app import Gateway
from intonaco.serving.gateway.copies import BUSY
from intonaco.serving.gateway.main import build
from intonaco.types import Arm, ArmRole, Json, Observed, Outcome, Record, RoutingTable
from intonaco.workspace import Workspace

OLD, NEW = "a" * 64, "b" * 64
HEADERS = {PROTOCOL_HEADER: PROTOCOL_VERSION}
CONFIG = """
service: tiny
model: {name: m, generation: {steps: 10, guidance_scale: 1.5, width: 32, height: 32}}
serving: {gateway: {port: 0, challenger_timeout_s: 0.2, request_timeout_s: 5, pinning: true}}
"""

Behaviour = Callable[[GenerateRequest], Awaitable[httpx.Response]]


def picture(request: GenerateRequest) -> bytes:
    out = io.BytesIO()
    colour = (request.seed % 256, len(request.prompt) % 256, request.steps)
    Image.new("RGB", (request.width, request.height), colour).save(out, format="PNG")
    return out.getvalue()


def served(release: str, request: GenerateRequest) -> httpx.Response:
    generated = Generated(
        request_id=request.request_id,
        release=release,
        queue_seconds=0.01,
        service_seconds=0.02,
        batch_size=1,
        padded_size=1,
    )
    headers = HEADERS | {GENERATED_HEADER: encode(generated)}
    return httpx.Response(200, content=picture(request), headers=headers)


def failed(status: int, code: str) -> httpx.Response:
    text = encode(WorkerError(code=code, message="injected"))
    return httpx.Response(status, text=text, headers=HEADERS)


@dataclass
class Workers:
    """Hosts "old", "old2", "new": what they do and what they were asked."""

    behaviour: dict[str, Behaviour] = field(default_factory=dict)
    asked: list[tuple[str, GenerateRequest]] = field(default_factory=list)
    away: set[str] = field(default_factory=set)

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        host = request.url.host
        if request.url.path == "/readyz":
            return httpx.Response(503 if host in self.away else 200)
        wanted = decode(GenerateRequest, request.content)
        self.asked.append((host, wanted))
        if host in self.behaviour:
            return await self.behaviour[host](wanted)
        return served(NEW if host == "new" else OLD, wanted)

    def hosts(self) -> list[str]:
        return [h for h, _ in self.asked]

    def answers(
        self, host: str, status: int, code: str = "internal", wait: str | None = None
    ) -> None:
        async def behave(request: GenerateRequest) -> httpx.Response:
            answer = failed(status, code)
            if wait is not None:
                answer.headers["retry-after"] = wait
            return answer

        self.behaviour[host] = behave

    def refuses(self, host: str) -> None:
        async def behave(request: GenerateRequest) -> httpx.Response:
            raise httpx.ConnectError("refused")

        self.behaviour[host] = behave


def arm(name: str, release: str, weight: float, *hosts: str) -> Arm:
    role = ArmRole(name.partition(":")[0])
    urls = tuple(f"http://{h}" for h in hosts)
    return Arm(name=name, role=role, release=release, urls=urls, weight=weight)


def table(epoch: int, *arms: Arm, untrip: tuple[str, ...] = ()) -> RoutingTable:
    return RoutingTable(service_id="tiny", epoch=epoch, salt="s", arms=arms, untrip=untrip)


def canary(weight: float, epoch: int = 1, untrip: tuple[str, ...] = ()) -> RoutingTable:
    return table(
        epoch,
        arm("champion", OLD, 1 - weight, "old"),
        arm("challenger:x", NEW, weight, "new"),
        untrip=untrip,
    )


@dataclass
class Stage:
    workspace: Workspace
    gateway: Gateway
    workers: Workers
    http: httpx.AsyncClient

    async def ask(
        self, user: str = "u", headers: dict[str, str] | None = None, **body: Json
    ) -> httpx.Response:
        content = {"prompt": "a cat", "seed": 1, "user": user} | body
        return await self.http.post("/v1/images/generations", json=content, headers=headers)

    async def records(self) -> list[Record]:
        await self.gateway.copies.settle()
        return [decode(Record, t) for t in SegmentReader(self.workspace.records).read(10**6)]

    def observed(self) -> Observed:
        return self.gateway.state.observed()

    @property
    def admin(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.workspace.admin_token()}"}


@asynccontextmanager
async def started(root: Path, workers: Workers) -> AsyncIterator[Stage]:
    workspace = Workspace(root)
    upstream = httpx.AsyncClient(transport=httpx.MockTransport(workers))
    gateway = build(workspace, parse(CONFIG), http=upstream, clock=SystemClock())
    public = httpx.AsyncClient(
        transport=httpx.ASGITransport(gateway.public_app()), base_url="http://gateway"
    )
    async with upstream, public:
        yield Stage(workspace, gateway, workers, public)
        await gateway.close()


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with started(tmp_path, Workers()) as it:
        yield it


async def test_not_ready_until_there_is_a_champion(stage: Stage) -> None:
    assert (await stage.http.get("/livez")).status_code == 200
    assert (await stage.http.get("/readyz")).status_code == 503
    answer = await stage.ask()
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "no_release"
    stage.gateway.state.apply(canary(0))
    assert (await stage.http.get("/readyz")).status_code == 200
    stage.workers.away |= {"old", "old2"}
    assert (await stage.http.get("/readyz")).status_code == 503


async def test_a_picture_a_record_and_the_stored_image(stage: Stage) -> None:
    stage.gateway.state.apply(canary(0))
    answer = await stage.ask(seed=5)
    assert answer.status_code == 200
    png = base64.b64decode(answer.json()["data"][0]["b64_json"])
    [record] = await stage.records()
    assert answer.headers["x-request-id"] == record.request_id
    assert answer.headers["x-intonaco-release"] == record.served_by == OLD
    assert answer.headers["x-intonaco-arm"] == answer.headers["x-intonaco-assigned-arm"]
    assert record.assigned_arm == record.served_arm == "champion"
    assert (record.unit, record.seed, record.steps, record.status) == ("u", 5, 10, 200)
    assert record.probability == 1.0
    assert record.attempts[0].service_seconds == 0.02
    assert record.image is not None
    assert stage.workspace.resolve(record.image).read_bytes() == png
    assert (stage.observed().requests, stage.observed().failed) == (1, 0)


async def test_n_images_have_a_seed_and_a_record_each(stage: Stage) -> None:
    stage.gateway.state.apply(canary(0))
    answer = await stage.ask(n=3, seed=10)
    assert [d["seed"] for d in answer.json()["data"]] == [10, 11, 12]
    assert len({d["b64_json"] for d in answer.json()["data"]}) == 3
    records = await stage.records()
    assert sorted(r.seed for r in records) == [10, 11, 12]
    assert len({r.request_id for r in records}) == 3
    assert stage.observed().requests == 1


async def test_urls_and_formats(stage: Stage) -> None:
    stage.gateway.state.apply(canary(0))
    for kind in ("png", "jpeg", "webp"):
        answer = await stage.ask(response_format="url", output_format=kind)
        url = answer.json()["data"][0]["url"]
        image = await stage.http.get(url)
        assert image.headers["content-type"] == f"image/{kind}"
        assert Image.open(io.BytesIO(image.content)).format == kind.upper()
    for path in ("20200101/0000/nothing.png", "../run/admin.token", "%2e%2e/run/admin.png"):
        missing = await stage.http.get(f"/v1/files/{path}")
        assert missing.status_code == 404
        assert "error" in missing.json()


async def test_errors_have_openais_form(stage: Stage) -> None:
    stage.gateway.state.apply(canary(0))
    for answer, status in [
        (await stage.ask(n=99), 400),
        (await stage.http.get("/v1/nothing"), 404),
        (await stage.http.get("/v1/images/generations"), 405),
        (await stage.http.post("/v1/images/generations", content=b"x" * (2**20 + 1)), 413),
    ]:
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


async def test_a_later_failure_of_a_row_is_probed_too(stage: Stage) -> None:
    """The first one's probes may have met an answer from before the release broke."""
    state = stage.gateway.state
    state.apply(canary(0))
    for i in range(3):
        await stage.ask(f"before{i}", prompt=f"a dog {i}")
    state.apply(canary(1.0, epoch=2))
    state.hard_failure(NEW, 0.0, unit="somebody", prompt="a cat", reason="500")
    stage.workers.answers("new", 500)
    await stage.ask("second")
    assert sum(r.probe for r in await stage.records()) == 2
    assert [t.release for t in stage.observed().trips] == [NEW]


async def test_the_shield_and_the_breaker(stage: Stage) -> None:
    """A failing challenger is seen by no user, and its probes trip it after one failure."""
    state = stage.gateway.state
    state.apply(canary(0))
    for i in range(3):
        await stage.ask(f"before{i}", prompt=f"a dog {i}")
    state.apply(canary(1.0, epoch=2))
    stage.workers.answers("new", 500)
    answer = await stage.ask("first", seed=77)
    assert answer.status_code == 200
    assert answer.headers["x-intonaco-assigned-arm"] == "challenger:x"
    assert answer.headers["x-intonaco-arm"] == "champion"
    records = await stage.records()
    user = next(r for r in records if r.seed == 77)
    assert [a.outcome for a in user.attempts] == [Outcome.ERROR, Outcome.OK]
    assert [a.arm for a in user.attempts] == ["challenger:x", "champion"]
    assert {r.seed for h, r in stage.workers.asked if r.request_id == user.request_id} == {77}
    probes = [r for r in records if r.probe]
    assert len(probes) == 2
    assert {p.status for p in probes} == {502}
    [trip] = stage.observed().trips
    assert (trip.release, trip.failures) == (NEW, 3)
    assert stage.observed().weights == {"champion": 1.0, "challenger:x": 0.0}
    assert stage.observed().requests == 4, "probes are no user requests"
    assert stage.observed().failed == 0

    before = len(stage.workers.asked)
    answer = await stage.ask("second")
    assert answer.headers["x-intonaco-assigned-arm"] == "champion"
    assert stage.workers.hosts()[before:] == ["old"]
    state.apply(canary(1.0, epoch=3))
    assert stage.observed().weights["challenger:x"] == 0, "sticky over a newer table"
    del stage.workers.behaviour["new"]
    state.apply(canary(1.0, epoch=4, untrip=(NEW,)))
    assert (await stage.ask("third")).headers["x-intonaco-arm"] == "challenger:x"


async def test_a_new_champion_that_bakes_is_shielded_by_the_one_before(stage: Stage) -> None:
    """No user sees it fail, and its breaker gives everybody back."""
    state = stage.gateway.state
    state.apply(table(1, arm("champion", NEW, 1.0, "new"), arm("holdback", OLD, 0.0, "old")))
    for i in range(3):
        answer = await stage.ask(f"before{i}", prompt=f"a dog {i}")
        assert answer.headers["x-intonaco-arm"] == "champion"
    stage.workers.answers("new", 500)
    answer = await stage.ask("first")
    assert answer.status_code == 200
    assert answer.headers["x-intonaco-assigned-arm"] == "champion"
    assert answer.headers["x-intonaco-arm"] == "holdback"
    await stage.records()
    assert [t.release for t in stage.observed().trips] == [NEW]
    assert stage.observed().weights == {"champion": 0.0, "holdback": 1.0}
    assert stage.observed().failed == 0
    before = len(stage.workers.asked)
    assert (await stage.ask("second")).headers["x-intonaco-assigned-arm"] == "holdback"
    assert stage.workers.hosts()[before:] == ["old"]
    # Once it has baked nobody steps in, and the trip of then takes nobody's traffic.
    del stage.workers.behaviour["new"]
    state.apply(table(2, arm("champion", NEW, 1.0, "new")))
    assert (await stage.ask("third")).headers["x-intonaco-arm"] == "champion"


async def test_a_poisonous_prompt_trips_nothing(stage: Stage) -> None:
    stage.gateway.state.apply(canary(0))
    for i in range(3):
        await stage.ask(f"before{i}", prompt=f"a dog {i}")
    stage.gateway.state.apply(canary(1.0, epoch=2))

    async def behave(request: GenerateRequest) -> httpx.Response:
        return failed(500, "internal") if "poison" in request.prompt else served(NEW, request)

    stage.workers.behaviour["new"] = behave
    for _ in range(10):
        assert (await stage.ask("attacker", prompt="poison")).status_code == 200
        await stage.gateway.copies.settle()
    assert stage.observed().trips == ()


@pytest.mark.parametrize(
    ("status", "code", "outcome"),
    [(429, "full", Outcome.REJECTED), (503, "draining", Outcome.REJECTED)],
)
async def test_a_full_challenger_is_shielded_and_not_blamed(
    stage: Stage, status: int, code: str, outcome: Outcome
) -> None:
    stage.gateway.state.apply(canary(1.0))
    stage.workers.answers("new", status, code)
    for i in range(6):
        assert (await stage.ask(f"u{i}", prompt=f"p{i}")).status_code == 200
    assert {r.attempts[0].outcome for r in await stage.records()} == {outcome}
    assert stage.observed().trips == ()


async def test_what_the_champion_cannot_serve_either_is_not_the_challengers_fault(
    stage: Stage,
) -> None:
    stage.gateway.state.apply(canary(1.0))
    stage.workers.answers("new", 500)
    stage.workers.answers("old", 500)
    for i in range(6):
        answer = await stage.ask(f"u{i}", prompt=f"p{i}")
        assert answer.status_code == 502
        assert answer.json()["error"]["type"] == "server_error"
    assert stage.observed().trips == ()
    assert stage.observed().failed == 6


async def test_a_challenger_that_hangs_is_given_up_for_the_champion(stage: Stage) -> None:
    stage.gateway.state.apply(canary(1.0))

    async def hang(request: GenerateRequest) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    stage.workers.behaviour["new"] = hang
    answer = await stage.ask()
    assert answer.status_code == 200
    record = next(r for r in await stage.records() if not r.probe)
    assert [a.outcome for a in record.attempts] == [Outcome.TIMEOUT, Outcome.OK]
    assert stage.observed().in_flight == {}


async def test_an_image_by_another_release_is_never_credited(stage: Stage) -> None:
    stage.gateway.state.apply(canary(1.0))

    async def stranger(request: GenerateRequest) -> httpx.Response:
        return served("c" * 64, request)

    stage.workers.behaviour["new"] = stranger
    answer = await stage.ask()
    assert answer.headers["x-intonaco-release"] == OLD
    record = next(r for r in await stage.records() if not r.probe)
    assert "answered as release cccccccccc" in record.attempts[0].error


async def test_a_worker_of_another_protocol_is_shielded(stage: Stage) -> None:
    stage.gateway.state.apply(canary(1.0))

    async def future(request: GenerateRequest) -> httpx.Response:
        answer = served(NEW, request)
        answer.headers[PROTOCOL_HEADER] = "99"
        return answer

    stage.workers.behaviour["new"] = future
    answer = await stage.ask()
    assert answer.status_code == 200
    assert answer.headers["x-intonaco-release"] == OLD


async def test_a_dead_replica_of_the_champion_is_passed_over(stage: Stage) -> None:
    stage.gateway.state.apply(table(1, arm("champion", OLD, 1.0, "old", "old2")))
    stage.workers.refuses("old")
    for i in range(5):
        assert (await stage.ask(f"u{i}")).status_code == 200
    assert stage.workers.hosts().count("old2") == 5
    assert stage.workers.hosts().count("old") == 1, "tried last for a while"


async def test_a_champion_that_restarts_is_waited_for(stage: Stage) -> None:
    stage.gateway.state.apply(canary(0))
    tries = 0

    async def back_soon(request: GenerateRequest) -> httpx.Response:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise httpx.ConnectError("refused")
        return served(OLD, request)

    stage.workers.behaviour["old"] = back_soon
    assert (await stage.ask()).status_code == 200
    [record] = await stage.records()
    assert len(record.attempts) == 3


async def test_a_full_champion_says_so(stage: Stage) -> None:
    stage.gateway.state.apply(canary(0))
    stage.workers.answers("old", 429, "full")
    answer = await stage.ask()
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["error"]["type"] == "rate_limit_error"


async def test_who_is_refused_hears_the_shortest_wait_that_a_worker_named(stage: Stage) -> None:
    champion = arm("champion", OLD, 0, "old", "old2", "old3")
    stage.gateway.state.apply(table(1, champion, arm("challenger:x", NEW, 1, "new")))
    stage.workers.answers("new", 503, "deadline_unmeetable", wait="7.2")
    stage.workers.answers("old", 429, "full", wait="30")
    stage.workers.answers("old2", 429, "full", wait="9")
    stage.workers.answers("old3", 429, "full")
    answer = await stage.ask()
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "8")
    stage.workers.answers("new", 500, wait="2")  # says nothing: it did not refuse
    answer = await stage.ask("another")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "9")
    record = (await stage.records())[0]
    assert {a.retry_after_s for a in record.attempts} == {7.2, 30.0, 9.0, None}


async def test_of_several_images_the_longest_wait_counts(stage: Stage) -> None:
    stage.gateway.state.apply(canary(0))

    async def full(request: GenerateRequest) -> httpx.Response:
        answer = failed(429, "full")
        answer.headers["retry-after"] = {3: "2", 4: "5", 5: "4"}[request.seed]
        return answer

    stage.workers.behaviour["old"] = full
    answer = await stage.ask(seed=3, n=3)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "5")


async def test_shadow_copies_pair_up_and_never_hurt(stage: Stage) -> None:
    shadow = arm("shadow:x", NEW, 1.0, "new")
    stage.gateway.state.apply(table(1, arm("champion", OLD, 1.0, "old"), shadow))
    stage.workers.answers("new", 500)
    assert (await stage.ask("u1", seed=3)).status_code == 200
    del stage.workers.behaviour["new"]
    assert (await stage.ask("u2", seed=4)).headers["x-intonaco-arm"] == "champion"
    records = await stage.records()
    users = {r.request_id: r for r in records if r.shadow_of is None}
    copies = [r for r in records if r.shadow_of]
    assert len(users) == len(copies) == 2
    for copy in copies:
        user = users[copy.shadow_of or ""]
        assert (copy.prompt, copy.seed, copy.unit) == (user.prompt, user.seed, user.unit)
        assert copy.assigned_arm == "shadow:x"
        assert user.image is not None
    assert sorted(c.status for c in copies) == [200, 502]
    good = next(c for c in copies if c.status == 200)
    assert good.image is not None
    assert good.served_by == NEW
    assert stage.workspace.resolve(good.image).exists()
    assert stage.observed().trips == ()
    assert stage.observed().requests == 2


async def test_shadows_are_shed_first(stage: Stage) -> None:
    shadow = arm("shadow:x", NEW, 1.0, "new")
    stage.gateway.state.apply(table(1, arm("champion", OLD, 1.0, "old"), shadow))
    release = asyncio.Event()

    async def slow(request: GenerateRequest) -> httpx.Response:
        await release.wait()
        return served(NEW, request)

    stage.workers.behaviour["new"] = slow
    stage.gateway.copies.timeout_s = 60
    for i in range(12):
        assert (await stage.ask(f"u{i}")).status_code == 200
    release.set()
    copies = [r for r in await stage.records() if r.shadow_of]
    assert len(copies) == 8
    assert 'shadow_shed_total{arm="shadow:x"} 4' in (await stage.http.get("/metrics")).text


async def test_probes_go_to_the_named_release_only(stage: Stage) -> None:
    stage.gateway.state.apply(canary(0))
    ask = {"x-intonaco-probe": "1", "x-intonaco-release": NEW}
    assert (await stage.ask(headers=ask)).status_code == 401
    answer = await stage.ask(headers=ask | stage.admin)
    assert answer.headers["x-intonaco-release"] == NEW, "an arm of weight 0 can be probed"
    stage.workers.answers("new", 500)
    assert (await stage.ask(headers=ask | stage.admin)).status_code == 502
    assert stage.workers.hosts() == ["new", "new"]
    missing = ask | stage.admin | {"x-intonaco-release": "c" * 64}
    assert (await stage.ask(headers=missing)).status_code == 404
    assert all(r.probe for r in await stage.records())
    assert stage.observed().requests == 0


async def test_probes_wait_behind_users_and_are_left_out_under_overload(stage: Stage) -> None:
    stage.gateway.state.apply(canary(0))
    ask = {"x-intonaco-probe": "1", "x-intonaco-release": NEW} | stage.admin
    seen: list[str] = []

    async def look(request: GenerateRequest) -> httpx.Response:
        seen.append(request.unit)
        return served(NEW, request)

    stage.workers.behaviour["new"] = look
    answer = await stage.ask(headers=ask)
    assert answer.status_code == 200
    assert answer.json()["data"][0]["padded_size"] == 1
    assert seen == [BACKGROUND_UNIT]
    stage.gateway.copies.users_in_flight = BUSY
    refused = await stage.ask(headers=ask)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, NO_ROOM_FOR_PROBES)
    assert len(seen) == 1


async def test_a_pinned_request_is_not_taken_for_an_assigned_one(stage: Stage) -> None:
    stage.gateway.state.apply(canary(0))
    answer = await stage.ask(headers={"x-intonaco-release": NEW})
    assert answer.headers["x-intonaco-release"] == NEW
    [record] = await stage.records()
    assert record.assigned_arm == "pinned"


async def test_the_admin_api_keeps_strangers_and_old_epochs_out(stage: Stage) -> None:
    transport = httpx.ASGITransport(stage.gateway.admin_app())
    async with httpx.AsyncClient(transport=transport, base_url="http://admin") as admin:

        async def put(t: RoutingTable, headers: dict[str, str]) -> int:
            answer = await admin.put("/admin/routing", content=encode(t), headers=headers)
            return answer.status_code

        wrong = {"authorization": "Bearer wrong"}
        assert await put(canary(0), wrong) == 401
        assert (await admin.get("/admin/observed")).status_code == 401
        assert stage.observed().epoch == 0
        assert await put(canary(0.5, epoch=7), stage.admin) == 200
        assert await put(canary(0.9, epoch=6), stage.admin) == 409
        assert await put(canary(0.9, epoch=7), stage.admin) == 409
        assert await put(canary(0.5, epoch=7), stage.admin) == 200
        assert await put(table(8, arm("challenger:x", NEW, 1.0, "new")), stage.admin) == 400
        seen = await admin.get("/admin/observed", headers=stage.admin)
        assert decode(Observed, seen.content).weights == {"champion": 0.5, "challenger:x": 0.5}


async def test_a_restart_keeps_table_trips_and_keys(tmp_path: Path) -> None:
    workers = Workers()
    workers.answers("new", 500)
    async with started(tmp_path, workers) as first:
        first.gateway.state.apply(canary(1.0))
        for i in range(3):
            await first.ask(f"u{i}", prompt=f"p{i}")
        assert len(first.observed().trips) == 1
    async with started(tmp_path, workers) as second:
        assert second.observed().epoch == 1
        assert second.observed().weights["challenger:x"] == 0
        assert (await second.ask("u9")).status_code == 200
        records = await second.records()
    assert len({r.key for r in records}) == len(records)
    assert {r.gateway_epoch for r in records} == {1, 2}


async def test_prompts_never_reach_the_log(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.gateway.state.apply(canary(1.0))
    for status in (500, 400, 429):
        stage.workers.answers("new", status)
        await stage.ask(f"u{status}", prompt=f"secret wish {status}")
    await stage.ask(prompt="secret wish", nonsense=1)
    await stage.gateway.copies.settle()
    assert "secret wish" not in caplog.text
    assert "secret wish" not in (await stage.http.get("/metrics")).text


async def test_metrics_count(stage: Stage) -> None:
    stage.gateway.state.apply(canary(0.25))
    for i in range(8):
        await stage.ask(f"u{i}")
    text = (await stage.http.get("/metrics")).text
    assert "intonaco_gateway_requests_total 8" in text
    assert 'intonaco_gateway_arm_weight{arm="challenger:x"} 0.25' in text
    assert 'le="+Inf"' in text


async def test_large_counters_lose_no_digit(stage: Stage) -> None:
    stage.gateway.state.requests = 1_234_567
    stage.gateway.metrics.reject("rate_limit_exceeded")
    (counter,) = stage.gateway.metrics.rejected
    stage.gateway.metrics.rejected[counter] = 7_654_321
    stage.gateway.metrics.http("/livez", "GET", 200, 1_000_000.125)
    lines = (await stage.http.get("/metrics")).text.splitlines()
    assert "intonaco_gateway_requests_total 1234567" in lines
    assert 'intonaco_gateway_rejected_total{reason="rate_limit_exceeded"} 7654321' in lines
    assert 'intonaco_gateway_http_request_seconds_sum{route="/livez"} 1000000.125' in lines


async def test_metrics_have_the_form_and_the_times_that_people_expect(stage: Stage) -> None:
    stage.gateway.state.apply(canary(1.0))
    await stage.ask("alice", prompt="secret wish")
    await stage.ask(n=99)
    await stage.http.get("/nowhere/secret")
    await stage.http.request("ODD", "/livez")
    text = (await stage.http.get("/metrics")).text
    who = f'arm="challenger:x",release="{NEW[:10]}"'
    for line in (
        f'attempt_queue_seconds_bucket{{{who},le="0.05"}} 1',
        f"attempt_service_seconds_sum{{{who}}} 0.02",
        f"attempt_service_seconds_count{{{who}}} 1",
        'rejected_total{reason="invalid_value"} 1',
        'http_requests_total{route="/v1/images/generations",method="POST",status="200"} 1',
        'http_requests_total{route="other",method="GET",status="404"} 1',
        'http_requests_total{route="/livez",method="other",status="405"} 1',
        "users_in_flight 0",
    ):
        assert f"intonaco_gateway_{line}" in text.splitlines(), line
    assert "secret" not in text
    assert "alice" not in text
    named = set(re.findall(r"# TYPE (\w+) (\w+)", text))
    for name, kind in named:
        assert name.endswith("_total") == (kind == "counter"), name
        assert kind != "histogram" or name.endswith("_seconds"), name
    samples = [line for line in text.splitlines() if not line.startswith("#")]
    sample = re.compile(r'\w+(\{\w+="[^"]*"(,\w+="[^"]*")*\})? [\d.e+-]+')
    assert [s for s in samples if not sample.fullmatch(s)] == []
    assert {re.sub(r"(_bucket|_sum|_count)?(\{.*)? .*", "", s) for s in samples} <= {
        n for n, _ in named
    }


async def test_copies_do_not_stream(stage: Stage) -> None:
    shadow = arm("shadow:x", NEW, 1.0, "new")
    stage.gateway.state.apply(table(1, arm("champion", OLD, 1.0, "old"), shadow))
    answer = await stage.ask(stream=True, partial_images=2)
    assert answer.status_code == 200
    await stage.gateway.copies.settle()
    [first] = [a for h, a in stage.workers.asked if h == "old"]
    [copy] = [a for h, a in stage.workers.asked if h == "new"]
    assert (first.stream, first.partial_images) == (True, 2)
    assert (copy.stream, copy.partial_images) == (False, 0)


async def test_a_worker_that_cannot_stream_still_answers_a_stream(stage: Stage) -> None:
    stage.gateway.state.apply(canary(0))
    answer = await stage.ask(stream=True, partial_images=2)
    assert answer.text.count("event: image_generation.completed") == 1
    assert "partial_image" not in answer.text


async def test_a_disk_that_fails_fails_no_user(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.gateway.state.apply(canary(0))
    stage.workspace.images.write_text("a file where the folder should be")
    assert (await stage.ask()).status_code == 200
    [record] = await stage.records()
    assert record.image is None
    assert stage.gateway.metrics.storage_errors == 1
    assert "not kept" in caplog.text


async def test_a_full_disk_fails_no_user_and_is_no_trouble_afterwards(stage: Stage) -> None:
    """Neither the lines nor the segment that a day begins can be written."""
    stage.gateway.state.apply(canary(0))
    assert (await stage.ask()).status_code == 200
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        for _ in range(3):
            assert (await stage.ask()).status_code == 200
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (await stage.ask()).status_code == 200
    records = await stage.records()
    assert [r.seq for r in records] == [0, 4]
    assert stage.gateway.metrics.storage_errors == 6  # three images, three records
    assert [r.image is not None for r in records] == [True, True]


async def test_a_defect_of_ours_is_counted_as_a_failure(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.gateway.state.apply(canary(0))

    def broken(*arguments: object) -> bytes:
        raise RuntimeError("a defect")

    monkeypatch.setattr("intonaco.serving.gateway.images.images_body", broken)
    answer = await stage.ask()
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal")
    seen = stage.gateway.state.observed()
    assert (seen.requests, seen.failed) == (1, 1)


async def test_a_defect_in_a_stream_ends_it_with_an_error(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.gateway.state.apply(canary(0))

    def broken(*arguments: object) -> bytes:
        raise RuntimeError("a defect")

    monkeypatch.setattr("intonaco.serving.gateway.images.png_size", broken)
    answer = await stage.ask(stream=True)
    assert answer.status_code == 200
    assert answer.text.startswith("event: error\n")
    assert '"code": "internal"' in answer.text
    seen = stage.gateway.state.observed()
    assert (seen.requests, seen.failed) == (1, 1)
