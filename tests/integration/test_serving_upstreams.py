"""A real gateway in front of real servers that are not ours, over HTTP."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.fixtures_gateway import serving
from tests.fixtures_upstreams import (
    GENERATION,
    KEY,
    WEBUI,
    OpenAIServer,
    WebUI,
    add_release,
    facts_file,
    openai,
    opened,
    painted,
)

from intonaco.clock import Clock, FakeClock, SystemClock
from intonaco.codec import decode
from intonaco.config import parse
from intonaco.segment_log import SegmentReader
from intonaco.serving.gateway.app import Gateway
from intonaco.serving.gateway.main import build
from intonaco.serving.http import Server, bind
from intonaco.types import Arm, ArmRole, Json, Outcome, Record, Release, RoutingTable
from intonaco.workspace import Workspace


@dataclass
class Stage:
    """Champion "theirs" with the OpenAI API, challenger "webui" with a shape of its own."""

    workspace: Workspace
    gateway: Gateway
    http: httpx.AsyncClient
    theirs: OpenAIServer
    webui: WebUI
    old: Release
    new: Release
    epoch: int = field(default=0)

    def route(self, challenger: float = 0.0, shadow: float | None = None) -> None:
        arms = [self.arm("champion", self.old, "theirs", 1 - challenger)]
        if shadow is not None:
            arms.append(self.arm("shadow:x", self.new, "webui", shadow))
        elif challenger:
            arms.append(self.arm("challenger:x", self.new, "webui", challenger))
        self.epoch += 1
        table = RoutingTable(service_id="s", epoch=self.epoch, salt="s", arms=tuple(arms))
        self.gateway.state.apply(table)

    def arm(self, name: str, release: Release, upstream: str, weight: float) -> Arm:
        role = ArmRole(name.partition(":")[0])
        urls = (f"upstream:{upstream}",)
        return Arm(name=name, role=role, release=release.release_id, urls=urls, weight=weight)

    async def ask(self, **body: Json) -> httpx.Response:
        content = {"prompt": "a cat", "seed": 1, "user": "u"} | body
        return await self.http.post("/v1/images/generations", json=content)

    async def records(self) -> list[Record]:
        await self.gateway.copies.settle()
        return [decode(Record, t) for t in SegmentReader(self.workspace.records).read(10**6)]


@asynccontextmanager
async def staged(
    root: Path, *, clock: Clock | None = None, gateway_: str = "", **theirs: Any
) -> AsyncIterator[Stage]:
    workspace = Workspace(root)
    first, second = OpenAIServer(), WebUI()
    async with serving(first.app(), second.app()) as (first_url, second_url):
        upstreams = {
            "theirs": openai(first_url, **theirs),
            "webui": {"url": second_url, **WEBUI},
        }
        config = parse(
            yaml.safe_dump(
                {
                    "service": "s",
                    "model": {"name": "m", "generation": GENERATION},
                    "serving": {
                        "type": "http",
                        "upstreams": upstreams,
                        "gateway": {"challenger_timeout_s": 5, "request_timeout_s": 20}
                        | yaml.safe_load(f"{{{gateway_}}}"),
                    },
                }
            )
        )
        old, new = (add_release(workspace, n, u) for n, u in upstreams.items())
        async with httpx.AsyncClient(trust_env=False) as workers:
            gateway = build(workspace, config, http=workers, clock=clock or SystemClock())
            try:
                async with (
                    serving(gateway.public_app()) as (url,),
                    httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as http,
                ):
                    yield Stage(workspace, gateway, http, first, second, old, new)
            finally:
                await gateway.close()


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THEIR_KEY", KEY)


def picture(answer: httpx.Response) -> tuple[int, ...]:
    assert answer.status_code == 200, answer.text
    image = opened(answer.json()["data"][0]["b64_json"])
    assert image.size == (64, 64)
    found = image.getpixel((0, 0))
    assert isinstance(found, tuple)
    return found


async def test_users_are_split_between_two_servers(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.route(challenger=0.5)
        for number in range(40):
            answer = await stage.ask(user=f"user-{number}", seed=number)
            red, steps, seed = picture(answer)
            release = answer.headers["x-intonaco-release"]
            if release == stage.new.release_id:
                assert (red, steps, seed) == (0, 10, number)
            else:
                assert (release, red) == (stage.old.release_id, 200)
        assert len(stage.theirs.asked) + len(stage.webui.asked) == 40
        assert 8 <= len(stage.webui.asked) <= 32
        assert stage.theirs.asked[0] == {
            "model": "gpt-image",
            "prompt": "a cat",
            "n": 1,
            "size": "64x64",
            "response_format": "b64_json",
        }
        before = len(stage.webui.asked)
        for number in range(40):  # sticky
            await stage.ask(user=f"user-{number}", seed=number)
        assert len(stage.webui.asked) == 2 * before
        records = await stage.records()
    assert {r.assigned_arm for r in records} == {"champion", "challenger:x"}
    assert {r.probability for r in records} == {0.5}
    for record in records:
        [attempt] = record.attempts
        assert attempt.outcome is Outcome.OK
        assert 0 < attempt.service_seconds <= attempt.seconds
        assert record.served_by == attempt.release
        assert record.image is not None
        stored = stage.workspace.resolve(record.image).read_bytes()
        assert b"a cat" not in stored  # their picture held the prompt as a text


async def test_a_failing_server_is_shielded_and_tripped(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.route(challenger=0.5)
        await asyncio.gather(*(stage.ask(user=f"user-{n}", prompt=f"p {n}") for n in range(8)))
        stage.webui.failing = 500
        for number in range(12):
            answer = await stage.ask(user=f"user-{number}", prompt=f"q {number}")
            assert answer.status_code == 200
            assert answer.headers["x-intonaco-release"] == stage.old.release_id
        await stage.gateway.copies.settle()
        [trip] = stage.gateway.state.trips()
        assert trip.release == stage.new.release_id
        assert trip.reason.endswith("the last: 500")
        asked = len(stage.webui.asked)
        for number in range(12):
            assert (await stage.ask(user=f"user-{number}")).status_code == 200
        assert len(stage.webui.asked) == asked
        records = await stage.records()
    shielded = [r for r in records if len(r.attempts) == 2 and not r.probe]
    assert shielded
    for record in shielded:
        assert [a.outcome for a in record.attempts] == [Outcome.ERROR, Outcome.OK]
        assert record.assigned_arm == "challenger:x"


async def test_shadow_copies_go_to_the_other_server(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.route(shadow=1.0)
        for number in range(5):
            assert picture(await stage.ask(user=f"u{number}", prompt=f"p {number}"))[0] == 200
            await stage.gateway.copies.settle()
        records = await stage.records()
    copies = {r.shadow_of: r for r in records if r.shadow_of}
    originals = {r.request_id: r for r in records if not r.shadow_of}
    assert set(copies) == set(originals)
    for original, copy in copies.items():
        assert copy.prompt == originals[original].prompt
        assert copy.served_by == stage.new.release_id
        assert copy.image is not None
    assert [a["prompt"] for a in stage.webui.asked] == [f"p {n}" for n in range(5)]


async def test_a_server_that_is_full_is_left_alone_as_long_as_it_asks(tmp_path: Path) -> None:
    clock = FakeClock()
    async with staged(tmp_path, clock=clock) as stage:
        stage.route()
        stage.theirs.failing, stage.theirs.headers = 429, {"retry-after": "20"}
        answer = await stage.ask()
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "20"
        stage.theirs.failing = None
        clock.advance(7)
        answer = await stage.ask()
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "13")
        assert len(stage.theirs.asked) == 1
        clock.advance(21)
        assert (await stage.ask()).status_code == 200
        records = await stage.records()
    outcomes = [r.attempts[0].outcome for r in records]
    assert outcomes == [Outcome.REJECTED, Outcome.REJECTED, Outcome.OK]


async def test_what_goes_wrong_there_is_told_apart(tmp_path: Path) -> None:
    async with staged(tmp_path, timeout_s=0.3, gateway_="max_response_bytes: 20000") as stage:
        stage.route()
        stage.theirs.failing, stage.theirs.error = 400, {"code": "moderation_blocked"}
        answer = await stage.ask(prompt="something private")
        assert answer.status_code == 400
        assert "moderation_blocked" in answer.json()["error"]["message"]
        assert "private" not in answer.text
        stage.theirs.failing, stage.theirs.error = 500, {}
        assert (await stage.ask()).status_code == 502
        stage.theirs.failing = None
        for kind in ("nothing", "garbage", "elsewhere", "url", "redirect"):
            stage.theirs.answer = kind
            assert (await stage.ask()).status_code == 502, kind
        assert stage.theirs.fetched == []
        stage.theirs.answer = "b64_json"
        assert (await stage.ask(steps=11)).status_code == 400
        assert (await stage.ask(negative_prompt="dogs")).status_code == 400
        stage.theirs.hold = asyncio.Event()
        assert (await stage.ask()).status_code == 504
        stage.theirs.hold.set()
        stage.theirs.kind = "WEBP"
        assert (await stage.ask()).status_code == 200
        records = await stage.records()
    said = " ".join(a.error for r in records for a in r.attempts)
    assert "private" not in said
    assert "no answer within 0.3 s" in said
    assert "307" in said


async def test_an_answer_that_is_too_large_is_an_error(tmp_path: Path) -> None:
    async with staged(tmp_path, gateway_="max_response_bytes: 100") as stage:
        stage.route()
        assert (await stage.ask()).status_code == 502
        [record] = await stage.records()
    assert record.attempts[0].error == "an answer over 100 bytes"


async def test_a_picture_at_their_own_address_is_fetched_if_that_is_allowed(tmp_path: Path) -> None:
    async with staged(tmp_path, fetch_own_urls=True) as stage:
        stage.route()
        stage.theirs.answer = "url"
        assert picture(await stage.ask()) == (0, 200, 0)
        assert stage.theirs.fetched == ["/files/1.png"]
        stage.theirs.answer = "elsewhere"
        assert (await stage.ask()).status_code == 502


async def test_the_key_is_sent_and_never_written_down(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.DEBUG):
        async with staged(tmp_path) as stage:
            stage.route(challenger=0.5)
            for number in range(6):
                assert (await stage.ask(user=f"u{number}")).status_code == 200
            other = f"{KEY}-wrong"
            monkeypatch.setenv("THEIR_KEY", other)
            stage.route()
            wrong = await stage.ask()  # their answer repeats what was sent
            assert wrong.status_code == 502
            monkeypatch.delenv("THEIR_KEY")
            missing = await stage.ask()
            assert missing.status_code == 502
            metrics = (await stage.http.get("/metrics")).text
            records = await stage.records()
    assert records[-1].attempts[0].error.endswith("THEIR_KEY is not set")
    assert "401 invalid_api_key" in records[-2].attempts[0].error
    ours = [r.getMessage() for r in caplog.records if r.name.startswith(("intonaco", "httpx"))]
    assert KEY not in "".join(ours) + metrics + wrong.text + missing.text
    assert holding(tmp_path, KEY) == []


def holding(folder: Path, text: str) -> list[Path]:
    files = [f for f in folder.rglob("*") if f.is_file()]
    assert files
    return [f for f in files if text.encode() in f.read_bytes()]


async def test_edits_pass_through_where_they_are_declared(tmp_path: Path) -> None:
    async with staged(tmp_path / "a", edits=True) as stage:
        stage.route()
        files = {
            "image": ("a.png", painted((64, 64), (1, 2, 3))),
            "mask": ("m.png", painted((64, 64), (0, 0, 0, 0))),
        }
        data = {"prompt": "a hat", "seed": "3"}
        answer = await stage.http.post("/v1/images/edits", data=data, files=files)
        assert picture(answer)[0] == 200
        [sent] = stage.theirs.files
        assert opened(sent["image"]).getpixel((0, 0)) == (1, 2, 3)
        assert opened(sent["mask"]).getchannel("A").getextrema() == (0, 0)
        assert stage.theirs.asked[0]["prompt"] == "a hat"
        [record] = await stage.records()
        assert record.task == "edit"
    async with staged(tmp_path / "b") as stage:
        stage.route()
        answer = await stage.http.post("/v1/images/edits", data=data, files=files)
        assert answer.status_code == 400
        assert "takes no image" in answer.json()["error"]["message"]
        assert stage.theirs.asked == []


async def test_a_stream_has_its_last_event_alone(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.route()
        answer = await stage.ask(stream=True, partial_images=2)
        assert answer.status_code == 200
    events = [json.loads(x[6:]) for x in answer.text.splitlines() if x.startswith("data: ")]
    assert [e["type"] for e in events] == ["image_generation.completed"]
    assert opened(events[0]["b64_json"]).size == (64, 64)


async def test_ready_while_the_champions_server_is(tmp_path: Path) -> None:
    async with staged(tmp_path, health="/health") as stage:
        stage.route()
        assert (await stage.http.get("/readyz")).status_code == 200
        stage.theirs.unwell = True
        assert (await stage.http.get("/readyz")).status_code == 503
        assert stage.theirs.health_asked == 2


async def test_a_declaration_that_somebody_changed_is_not_followed(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        file = facts_file(stage.workspace, stage.old)
        file.write_text(file.read_text().replace("gpt-image", "other"))
        stage.route()
        assert (await stage.ask()).status_code == 502
        assert stage.theirs.asked == []


async def test_a_release_without_its_declaration_is_an_error_not_a_crash(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        gone = Release(
            release_id="f" * 64,
            service_id="s",
            serving=stage.old.serving,
            provenance=stage.old.provenance,
            path="releases/none",
        )
        stage.old = gone
        stage.route()
        assert (await stage.ask()).status_code == 502
        assert (await stage.http.get("/readyz")).status_code == 503


# ------------------------------------------------------------------------------------ TLS


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that nobody signed but itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir()
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return folder / "cert.pem", folder / "key.pem"


async def test_tls_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cert, private = certificate(tmp_path / "tls")
    theirs = OpenAIServer()
    sock, url = bind("127.0.0.1", 0, what="test")
    https = url.replace("http://", "https://")
    settings = uvicorn.Config(
        theirs.app(), ssl_certfile=cert, ssl_keyfile=private, log_config=None, lifespan="off"
    )
    running = Server(settings)
    task = asyncio.create_task(running.serve(sockets=[sock]))
    workspace = Workspace(tmp_path / "w")
    release = add_release(workspace, "theirs", openai(https))
    text = {
        "service": "s",
        "model": {"generation": GENERATION},
        "serving": {"type": "http", "upstreams": {"theirs": openai(https)}},
    }
    try:
        for trusted, status in ((False, 503), (True, 200)):
            if trusted:
                monkeypatch.setenv("SSL_CERT_FILE", str(cert))
            async with httpx.AsyncClient(trust_env=False) as workers:
                config = parse(yaml.safe_dump(text))
                gateway = build(workspace, config, http=workers, clock=SystemClock())
                arm = Arm(
                    name="champion",
                    role=ArmRole.CHAMPION,
                    release=release.release_id,
                    urls=("upstream:theirs",),
                    weight=1.0,
                )
                table = RoutingTable(service_id="s", epoch=1, salt="s", arms=(arm,))
                gateway.state.apply(table)
                transport = httpx.ASGITransport(gateway.public_app())
                async with httpx.AsyncClient(transport=transport, base_url="http://g") as http:
                    ready = await http.get("/readyz")
                    assert ready.status_code == status
                    if trusted:
                        answer = await http.post("/v1/images/generations", json={"prompt": "p"})
                        assert picture(answer)[0] == 200
                await gateway.close()
        assert len(theirs.asked) == 1
    finally:
        running.should_exit = True
        await asyncio.wait_for(task, 20)
