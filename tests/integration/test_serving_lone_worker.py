"""One worker and nobody beside it, with real processes: what becomes of the requests that it has
when it is retired, when its name is needed again, and when it is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import httpx
import psutil
import pytest
from tests import fixtures_tiny
from tests.fixtures_serving import gateway_process, until
from tests.integration.test_serving_whole import process

from intonaco.codec import decode, encode
from intonaco.config import Serving
from intonaco.messages import PROTOCOL_HEADER, PROTOCOL_VERSION, GenerateRequest, ProcessInfo
from intonaco.segment_log import SegmentReader
from intonaco.serving.client import GatewayRouter
from intonaco.serving.local import LocalServingBackend
from intonaco.types import Arm, ArmRole, Outcome, Record, Release, RoutingTable
from intonaco.workspace import Workspace

CONFIG = """
service: tiny
model: {name: tiny, generation: {steps: 2, guidance_scale: 1.5, width: 32, height: 32}}
serving: {gateway: {port: 0}}
"""
SLOW = "slow:after=0,seconds=3"  # far longer than the grace below
GRACE_S = 0.3


@dataclass
class Lone:
    workspace: Workspace
    release: Release
    backend: LocalServingBackend
    pool: ThreadPoolExecutor

    @property
    def name(self) -> str:
        return f"worker-{self.release.short}"

    def up(self) -> ProcessInfo:
        self.backend.deploy(self.release)
        rid = self.release.release_id
        seen = until(lambda: self.backend.status(rid), lambda s: s.ready or bool(s.error))
        assert seen.ready, seen.error
        info = self.workspace.process(self.name)
        assert info is not None
        return info

    def ask(self, info: ProcessInfo) -> Future[httpx.Response]:
        """A request that the worker has in hand."""
        wanted = GenerateRequest(
            request_id="r",
            prompt="a handwritten two",
            seed=3,
            steps=2,
            guidance_scale=1.5,
            width=32,
            height=32,
            release=self.release.release_id,
        )
        headers = {PROTOCOL_HEADER: PROTOCOL_VERSION}
        url = f"{info.url}/generate"
        asked = self.pool.submit(
            httpx.post, url, content=encode(wanted), headers=headers, timeout=60.0
        )
        self.busy(info)
        return asked

    def busy(self, info: ProcessInfo) -> None:
        until(lambda: httpx.get(f"{info.url}/readyz").json()["in_flight"], lambda n: n == 1)


@pytest.fixture(scope="module")
def lone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lone]:
    root = tmp_path_factory.mktemp("lone")
    workspace = Workspace(root / "w")
    workspace.root.mkdir()
    workspace.config_file.write_text(CONFIG)
    model = fixtures_tiny.save(root / "p")
    release = fixtures_tiny.add_release(workspace, model, recipe="slow")
    serving = Serving(faults={"slow": (SLOW,) * 9})
    backend = LocalServingBackend(workspace, serving, grace_s=GRACE_S)
    # One process imports torch, the workers are forked from it.
    with process(workspace, "intonaco.forkserver") as server, ThreadPoolExecutor(4) as pool:
        until(lambda: (server.poll(), workspace.process("forkserver")), lambda s: any(s))
        try:
            yield Lone(workspace, release, backend, pool)
        finally:
            backend.retire(release.release_id)
            backend.close()
            left = workspace.process(f"worker-{release.short}")
            if left is not None:
                psutil.Process(left.pid).kill()


def gone(info: ProcessInfo) -> bool:
    return not psutil.pid_exists(info.pid) or (
        psutil.Process(info.pid).status() == psutil.STATUS_ZOMBIE
    )


def test_a_retired_worker_answers_what_it_has_in_hand(lone: Lone) -> None:
    info = lone.up()
    asked = lone.ask(info)
    lone.backend.retire(lone.release.release_id)
    assert not asked.done(), "whoever retires does not wait for it"
    assert not lone.backend.status(lone.release.release_id).ready
    lone.backend.retire(lone.release.release_id)  # once more, as after a restart of the controller
    assert asked.result(60).status_code == 200
    until(lambda: gone(info), bool)
    assert lone.workspace.process(lone.name) is None


def test_an_idle_one_is_gone_at_once(lone: Lone) -> None:
    info = lone.up()
    other = LocalServingBackend(lone.workspace, lone.backend.config)
    other.retire(lone.release.release_id)
    other.close()
    assert gone(info)


def test_a_retired_one_makes_room_if_its_release_is_needed_again(lone: Lone) -> None:
    first = lone.up()
    asked = lone.ask(first)
    lone.backend.retire(lone.release.release_id)
    second = lone.up()
    assert second.pid != first.pid
    assert gone(first)
    with pytest.raises(httpx.TransportError):
        asked.result(60)
    assert lone.ask(second).result(60).status_code == 200
    lone.backend.retire(lone.release.release_id)


def test_a_request_outlives_the_only_worker(lone: Lone) -> None:
    """kill -9 in the middle of it; the worker that is started next makes the same picture."""
    with gateway_process(lone.workspace) as gateway:
        router = GatewayRouter(lone.workspace)
        arm = Arm(
            name="champion",
            role=ArmRole.CHAMPION,
            release=lone.release.release_id,
            urls=(),
            weight=1.0,
        )

        def route(epoch: int, info: ProcessInfo) -> None:
            table = RoutingTable(
                service_id="tiny",
                epoch=epoch,
                salt="s",
                arms=(replace(arm, urls=(str(info.url),)),),
            )
            router.apply(table)

        first = lone.up()
        route(1, first)
        body = {"prompt": "a handwritten two", "seed": 3}
        images = f"{gateway.url}/v1/images/generations"
        before = httpx.post(images, json=body, timeout=60.0)
        asked = lone.pool.submit(httpx.post, images, json=body, timeout=120.0)
        lone.busy(first)
        os.kill(first.pid, signal.SIGKILL)
        until(lambda: gone(first), bool)
        route(2, lone.up())
        answer = asked.result(120)
        assert answer.status_code == before.status_code == 200
        assert answer.json()["data"][0]["b64_json"] == before.json()["data"][0]["b64_json"]
        router.close()
    reader = SegmentReader(lone.workspace.records)
    record = [decode(Record, text) for text in reader.read(10**6)][-1]
    outcomes = [a.outcome for a in record.attempts]
    assert outcomes[-1] is Outcome.OK
    assert set(outcomes[:-1]) == {Outcome.ERROR}
    assert len(outcomes) > 2, "nobody was there for a while"
