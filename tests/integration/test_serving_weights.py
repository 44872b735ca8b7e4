"""Real gateway processes whose weights change, that are stopped, and that share votes; workers are
played in this process."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from email.message import Message
from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response
from tests.fixtures_serving import gateway_process, until
from tests.integration.test_serving_gateways import CONFIG, NEW, OLD, Load, Worker, alone

from intonaco.codec import decode
from intonaco.segment_log import SegmentReader
from intonaco.serving.client import GatewayRouter
from intonaco.serving.gateway.digests import Digests
from intonaco.serving.gateway.feedback import Tokens
from intonaco.serving.gateway.routing import assign
from intonaco.types import Arm, ArmRole, Feedback, Json, Outcome, Record, RoutingTable
from intonaco.workspace import Workspace

CHANGES = 50
IMAGES = "/v1/images/generations"


@dataclass
class Held(Worker):
    """Answers when it is let go."""

    go_on: threading.Event = field(default_factory=threading.Event)

    async def generate(self, request: Request) -> Response:
        answer = await super().generate(request)
        await asyncio.to_thread(self.go_on.wait, 60)
        return answer


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    w = Workspace(tmp_path)
    w.config_file.write_text(CONFIG)
    return w


@pytest.fixture
def workers() -> Iterator[tuple[Worker, Worker]]:
    with Worker(OLD).running() as old, Worker(NEW).running() as new:
        yield old, new


def table(epoch: int, old: Worker, new: Worker, **weights: float) -> RoutingTable:
    """The champion has the rest. Names are given as ``challenger_x``."""
    arms = []
    for name, weight in {"champion": 1 - sum(weights.values()), **weights}.items():
        role = ArmRole(name.partition("_")[0])
        worker = new if role is ArmRole.CHALLENGER else old
        arms.append(
            Arm(
                name=name.replace("_", ":"),
                role=role,
                release=worker.release,
                urls=(worker.url,),
                weight=weight,
            )
        )
    return RoutingTable(service_id="svc", epoch=epoch, salt="s", arms=tuple(arms))


def records(workspace: Workspace) -> list[Record]:
    return [decode(Record, t) for t in SegmentReader(workspace.records).read(10**6)]


def post(url: str | None, path: str, **body: Json) -> tuple[int, Message, Json]:
    """On a connection of its own, so that any gateway may have it: status, headers, content."""
    connection = HTTPConnection((url or "").removeprefix("http://"), timeout=60)
    with closing(connection):
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.headers, json.loads(answer.read())


def test_fifty_changes_under_load_lose_no_request(
    workspace: Workspace, workers: tuple[Worker, Worker]
) -> None:
    rng = random.Random(3)
    router = GatewayRouter(workspace)
    tables = {}
    with gateway_process(workspace) as info:
        router.apply(table(1, *workers, challenger_x=0.5))
        with Load(str(info.url)).running() as load:
            load.more()
            for epoch in range(2, CHANGES + 2):
                weight = rng.choice((0.0, 0.05, 0.25, 0.5, 1.0))
                tables[epoch] = table(epoch, *workers, challenger_x=weight)
                router.apply(tables[epoch])
                load.more(5)
        assert (load.wrong, load.reconnected) == ([], 0)
        seen = router.observed()
        assert (seen.epoch, seen.requests, seen.failed) == (CHANGES + 1, load.served, 0)
    kept = records(workspace)
    assert len(kept) == load.served
    for record in kept:
        assert (record.status, [a.outcome for a in record.attempts]) == (200, [Outcome.OK])
        if record.routing_epoch in tables:
            drawn = assign(tables[record.routing_epoch], record.unit)
            assert (record.assigned_arm, record.probability) == (drawn.arm.name, drawn.probability)
    assert {r.routing_epoch for r in kept} >= set(tables), "there was load at every epoch"
    router.close()
    print(f"{load.served} requests over {CHANGES} changes, none failed")


def test_a_stop_finishes_what_is_in_flight(workspace: Workspace) -> None:
    router = GatewayRouter(workspace)
    with Held(OLD).running() as old, ThreadPoolExecutor(8) as pool:
        assert isinstance(old, Held)
        with gateway_process(workspace) as info:
            router.apply(table(1, old, old))

            def one(k: int) -> httpx.Response:
                body = {"prompt": "p", "user": f"u{k}", "stream": k % 2 == 1}
                return httpx.post(f"{info.url}/v1/images/generations", json=body, timeout=60)

            asked = [pool.submit(one, k) for k in range(8)]
            try:
                until(router.observed, lambda o: o.in_flight.get(OLD) == 8)
                os.kill(info.pid, signal.SIGTERM)
                until(lambda: _takes_more(info.url), lambda takes: not takes)
                assert not any(f.done() for f in asked)
            finally:
                old.go_on.set()
            answers = [f.result(60) for f in asked]
            until(lambda: workspace.process("gateway"), lambda p: p is None)
    assert [a.status_code for a in answers] == [200] * 8
    for answer in answers[1::2]:
        assert "event: image_generation.completed" in answer.text
    kept = records(workspace)
    assert [r.status for r in kept] == [200] * 8
    router.close()


def _takes_more(url: str | None) -> bool:
    try:
        return httpx.get(f"{url}/livez", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def test_arms_and_votes_are_one_over_gateways_and_restarts(
    workspace: Workspace, workers: tuple[Worker, Worker]
) -> None:
    """An A/B/n experiment with fixed arms: whichever gateway answers, before or after a restart,
    a user's arm is the same. And of many votes on an image exactly one counts."""
    names = ("gateway", "gateway-1")
    fixed = table(4, *workers, challenger_x=0.2, challenger_y=0.3, baseline=0.2, holdback=0.05)
    users = [f"{k}@example.org" for k in range(40)]
    expected = [assign(fixed, u).arm.name for u in users]
    assert len(set(expected)) >= 4
    router = GatewayRouter(workspace)
    tokens: list[str] = []
    with ExitStack() as stack:
        infos = [stack.enter_context(gateway_process(workspace, n)) for n in names]
        router.apply(fixed)
        for user, arm in zip(users, expected, strict=True):
            _, headers, content = post(infos[0].url, IMAGES, prompt="p", user=user)
            assert headers["x-intonaco-assigned-arm"] == arm
            tokens.append(content["data"][0]["feedback_token"])
        for info in infos:
            os.kill(info.pid, signal.SIGKILL)
        until(workspace.gateways, lambda g: not g)
        infos = [stack.enter_context(gateway_process(workspace, n)) for n in names]
        assert [alone(workspace, i).weights for i in infos] == [
            {a.name: a.weight for a in fixed.arms}
        ] * 2

        def again(user: str) -> str | None:
            headers = post(infos[0].url, IMAGES, prompt="p", user=user)[1]
            return headers["x-intonaco-assigned-arm"]

        def vote(token: str) -> int:
            return post(infos[0].url, "/v1/feedback", token=token, vote="up")[0]

        with ThreadPoolExecutor(8) as pool:
            for _ in range(2):
                assert list(pool.map(again, users)) == expected
            answers = list(pool.map(vote, [t for t in tokens for _ in range(4)]))
        assert sorted(answers) == [201] * len(tokens) + [409] * 3 * len(tokens)

        # What is none of this service's: forged, of another instance, of another image, spelled
        # anew, and too old.
        payload, mac = tokens[0].split(".")
        here = Tokens(Digests(workspace.instance_key()), 30.0)
        image = here.read(tokens[0], 0.0)
        other = Tokens(Digests(b"of another instance"), 30.0)
        stale = here.sign(replace(image, request_id="req_old", made_at=image.made_at - 31 * 86_400))
        richer = json.loads(base64.urlsafe_b64decode(payload + "=="))
        richer[4] = "another unit"
        edited = base64.urlsafe_b64encode(json.dumps(richer).encode()).decode().rstrip("=")
        for bad in (
            *(other.sign(image), other.sign(replace(image, request_id="req_new")), stale),
            *(f"{edited}.{mac}", f"{payload}.{mac}=", f"{payload}=.{mac}", f"{mac}.{payload}"),
        ):
            assert vote(bad) == 400, bad
        assert vote(tokens[0]) == 409
    said = [decode(Feedback, t) for t in SegmentReader(workspace.feedback).read(10**6)]
    assert len(said) == len({f.request_id for f in said}) == len(tokens)
    by_gateway = {n: sum(f.gateway == n for f in said) for n in names}
    answered = {n: sum(r.gateway == n for r in records(workspace)) for n in names}
    assert all(answered.values()), "both had a part"
    print(f"votes by gateway {by_gateway}, images {answered}")
    assert {r.unit: r.assigned_arm for r in records(workspace)} == dict(
        zip(users, expected, strict=True)
    )
    router.close()
