"""API keys, rates, pinning, and what workers and logs may know of a user."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import pytest
from tests.fixtures_gateway import NEW, OLD, in_one_loop, png

from intonaco.clock import FakeClock
from intonaco.config import ApiKey, parse
from intonaco.errors import ConfigError
from intonaco.serving.gateway.callers import Buckets, Keys, may_pin
from intonaco.serving.gateway.digests import Digests
from intonaco.serving.gateway.problems import Refused

RIGHT = "sk-right"
DIGEST = hashlib.sha256(RIGHT.encode()).hexdigest()
KEYS = f"api_keys: [{{name: web, sha256: {DIGEST}}}, 'env:BATCH_KEY']"


def test_keys() -> None:
    wanted = (ApiKey(name="web", sha256=DIGEST), ApiKey.model_validate("env:BATCH_KEY"))
    keys = Keys.of(wanted, {"BATCH_KEY": "sk-batch"})
    assert keys.name(RIGHT) == "web"
    assert keys.name("sk-batch") == "BATCH_KEY"
    for wrong in (None, "", "sk-wrong", DIGEST, "env:BATCH_KEY"):
        with pytest.raises(Refused) as caught:
            keys.name(wrong)
        assert (caught.value.status, caught.value.error.code) == (401, "invalid_api_key")
    assert Keys().name(None) is None
    assert "sk-batch" not in repr(keys)


def test_a_key_that_is_not_there_is_said_at_the_start() -> None:
    with pytest.raises(ConfigError, match="BATCH_KEY is not set"):
        Keys.of((ApiKey(name="b", key="env:BATCH_KEY"),), {})


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ("[sk-plain]", "keys do not belong in here"),
        ("[{name: a}]", "give either sha256 or key"),
        ("[{name: a, key: sk-plain}]", "should match pattern"),
        ("[{name: a, sha256: beef}]", "should match pattern"),
        ("['env:A', 'env:A']", "a name of its own"),
    ],
)
def test_keys_that_cannot_be_configured(keys: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        parse(f"service: s\nserving: {{gateway: {{api_keys: {keys}}}}}")
    assert "sk-plain" not in str(caught.value)


def test_buckets() -> None:
    clock = FakeClock()
    buckets = Buckets(clock, 0.5, 3)
    for _ in range(3):
        buckets.take("a")
    buckets.take("b")
    with pytest.raises(Refused) as caught:
        buckets.take("a")
    assert caught.value.status == 429
    assert caught.value.response().headers["retry-after"] == "2"
    clock.advance(1.5)
    with pytest.raises(Refused) as caught:
        buckets.take("a")
    assert caught.value.response().headers["retry-after"] == "1"
    clock.advance(0.5)
    buckets.take("a")  # a refused request costs nothing
    clock.advance(3600)
    for _ in range(3):
        buckets.take("a")
    with pytest.raises(Refused):
        buckets.take("a")


def test_buckets_are_bounded() -> None:
    buckets = Buckets(FakeClock(), 1.0, 1)
    for i in range(10_500):
        buckets.take(str(i))
    assert len(buckets._left) == 10_000
    with pytest.raises(Refused):
        buckets.take("10499")


def test_who_may_pin() -> None:
    assert may_pin(True, None, "u")
    assert not may_pin(False, "web", "u")
    assert may_pin(("web",), "web", "u")
    assert may_pin(("u",), None, "u")
    assert not may_pin(("web",), "batch", "u")


async def test_keys_are_wanted_where_they_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCH_KEY", "sk-batch")
    async with in_one_loop(tmp_path, KEYS) as stage:
        stage.route()
        right = {"authorization": f"Bearer {RIGHT}"}
        for headers in ({}, {"authorization": "Bearer no"}, {"authorization": f"Basic {RIGHT}"}):
            answer = await stage.ask(headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert (await stage.http.get("/v1/models", headers=headers)).status_code == 401
        assert (await stage.edit(png((8, 8)))).status_code == 401
        assert (await stage.ask(right)).status_code == 200
        assert (await stage.ask({"authorization": "Bearer sk-batch"})).status_code == 200
        for free in ("/livez", "/readyz", "/metrics", "/openapi.json"):
            assert (await stage.http.get(free)).status_code == 200
        probe = {"x-intonaco-probe": "1", "x-intonaco-release": OLD}
        admin = {"authorization": f"Bearer {stage.workspace.admin_token()}"}
        assert (await stage.ask(probe | admin)).status_code == 200
        assert (await stage.ask(probe | right)).status_code == 401
        assert 'rejected_total{reason="invalid_api_key"} 7' in await stage.metrics()


async def test_one_callers_rate_is_not_anothers(tmp_path: Path) -> None:
    clock = FakeClock()
    more = KEYS.replace("'env:BATCH_KEY'", "{name: b, sha256: " + "a" * 64 + "}")
    limits = "limits: {requests_per_minute: 60, burst: 2}"
    async with in_one_loop(tmp_path / "keys", f"{more}, {limits}", clock=clock) as stage:
        stage.route()
        right = {"authorization": f"Bearer {RIGHT}"}
        assert [(await stage.ask(right)).status_code for _ in range(3)] == [200, 200, 429]
        clock.advance(1.0)
        assert (await stage.ask(right)).status_code == 200
    async with in_one_loop(tmp_path / "none", limits, clock=clock) as stage:
        stage.route()
        # Without keys the address counts: made-up bearers and users do not help.
        tries = [await stage.ask({"authorization": f"Bearer {i}"}, user=f"u{i}") for i in range(3)]
        assert [a.status_code for a in tries] == [200, 200, 429]
        assert tries[2].headers["retry-after"] == "1"
        assert tries[2].json()["error"]["type"] == "rate_limit_error"


async def test_in_flight_is_bounded(tmp_path: Path) -> None:
    async with in_one_loop(tmp_path, "limits: {in_flight: 3}") as stage:
        stage.route()
        assert (await stage.ask(n=4)).status_code == 429
        assert (await stage.ask(n=3)).status_code == 200


async def test_pinning_by_name(tmp_path: Path) -> None:
    async with in_one_loop(tmp_path, f"pinning: [web, alice], {KEYS[:-17]}]") as stage:
        stage.route()
        pin = {"x-intonaco-release": NEW, "authorization": f"Bearer {RIGHT}"}
        answer = await stage.ask(pin)
        assert answer.headers["x-intonaco-release"] == NEW
        [record] = await stage.records()
        assert record.assigned_arm == "pinned"
    async with in_one_loop(tmp_path / "units", "pinning: [alice]") as stage:
        stage.route()
        pin = {"x-intonaco-release": NEW}
        assert (await stage.ask(pin, user="alice")).headers["x-intonaco-release"] == NEW
        answer = await stage.ask(pin, user="bob")
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "pinning_not_allowed")
    async with in_one_loop(tmp_path / "off") as stage:
        stage.route()
        answer = await stage.ask({"x-intonaco-release": NEW})
        assert answer.headers["x-intonaco-release"] == OLD, "off: the header means nothing"


async def test_a_worker_knows_a_unit_by_its_digest_only(tmp_path: Path) -> None:
    async with in_one_loop(tmp_path) as stage:
        stage.route()
        await stage.ask(user="alice")
        await stage.ask({"x-user-id": "alice"}, user="bob")
        await stage.ask(user="bob")
        first, second, third = (a.unit for a in stage.old.asked)
        assert first == second != third
        assert first == Digests(stage.workspace.instance_key()).unit("alice")
        assert "alice" not in "".join(map(str, stage.old.asked))
    assert Digests(b"another").unit("alice") != first


async def test_the_access_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "intonaco.serving.gateway.access")
    async with in_one_loop(tmp_path) as stage:
        stage.route()
        answer = await stage.ask(user="alice", prompt="secret wish")
        await stage.ask(user="alice", prompt="secret wish", stream=True)
        await stage.http.get("/v1/alice")
        await stage.http.get("/livez")
    lines = [r for r in caplog.records if r.name.endswith("gateway.access")]
    made, streamed, missing = (json.loads(r.getMessage()) for r in lines)
    assert made["request_id"] == answer.headers["x-request-id"]
    assert (
        made.items()
        >= {
            "method": "POST",
            "route": "/v1/images/generations",
            "status": 200,
            "task": "generate",
            "images": 1,
            "stream": False,
            "arm": "champion",
            "assigned_arm": "champion",
            "release": OLD,
            "bytes": len(answer.content),
        }.items()
    )
    assert made["unit"] == Digests(stage.workspace.instance_key()).unit("alice")
    assert made["seconds"] >= 0
    assert (streamed["stream"], streamed["streamed_status"]) == (True, 200)
    assert (missing["route"], missing["status"]) == ("other", 404)
    assert vars(lines[0])["action"] == "gateway.access"
    assert vars(lines[0])["status"] == 200
    assert "alice" not in caplog.text
    assert "secret" not in caplog.text


async def test_a_defect_has_the_apis_form_and_an_id(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with in_one_loop(tmp_path) as stage:
        monkeypatch.setattr(type(stage.gateway.metrics), "text", lambda *_: 1 / 0)
        answer = await stage.http.get("/metrics")
        assert answer.status_code == 500
        assert answer.json()["error"] == {
            "message": "The server failed.",
            "type": "server_error",
            "param": None,
            "code": "internal",
        }
    assert answer.headers["x-request-id"] in caplog.text or "a request failed" in caplog.text


@pytest.mark.parametrize(("policy", "form"), [("keep", "text"), ("hash", "hash"), ("drop", "none")])
async def test_what_records_hold_of_prompts(tmp_path: Path, policy: str, form: str) -> None:
    async with in_one_loop(tmp_path, f"prompts: {policy}") as stage:
        stage.route()
        await stage.ask(prompt="a secret wish")
        [record] = await stage.records()
        digest = Digests(stage.workspace.instance_key()).prompt("a secret wish")
        expected = {"text": "a secret wish", "hash": digest, "none": ""}[form]
        assert (record.prompt, record.prompt_form) == (expected, form)
        assert stage.old.asked[0].prompt == "a secret wish"


def test_prompts_that_are_not_kept_cannot_be_watched() -> None:
    hashed = "service: s\nserving: {gateway: {prompts: hash}}\n"
    with pytest.raises(ConfigError, match=r"\.prompts needs prompts.*leave the signal out"):
        parse(hashed + "monitoring: {signals: {prompts: {of: prompt_embedding}}}")
    # a default that nobody wrote down cannot be left out
    with pytest.raises(ConfigError, match=r"\.prompts needs .*write monitoring\.signals without"):
        parse(hashed)
