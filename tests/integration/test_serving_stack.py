"""Real gateway and worker processes, driven by the unmodified ``openai`` client."""

from __future__ import annotations

import base64
import io
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest
from PIL import Image
from tests import fixtures_tiny
from tests.fixtures_serving import gateway_process, until

from intonaco.codec import decode
from intonaco.config import Serving
from intonaco.errors import Conflict
from intonaco.segment_log import SegmentReader
from intonaco.serving.client import GatewayRouter
from intonaco.serving.local import LocalServingBackend
from intonaco.types import Arm, ArmRole, Outcome, Record, Release, RoutingTable, ServingStatus
from intonaco.workspace import Workspace

CONFIG = """
service: tiny
model: {name: tiny, generation: {steps: 2, guidance_scale: 1.5, width: 32, height: 32}}
serving: {gateway: {port: 0}}
"""


@dataclass
class Stack:
    workspace: Workspace
    champion: Release
    challenger: Release
    two: LocalServingBackend  # two replicas: the champion's
    one: LocalServingBackend
    router: GatewayRouter

    def status(self, release: Release) -> ServingStatus:
        backend = self.two if release == self.champion else self.one
        return backend.status(release.release_id)

    def up(self, release: Release) -> ServingStatus:
        seen = until(lambda: self.status(release), lambda s: s.ready or bool(s.error))
        assert seen.ready, seen.error
        return seen

    def table(self, epoch: int, weight: float) -> RoutingTable:
        good, new = self.status(self.champion), self.status(self.challenger)
        return RoutingTable(
            service_id="tiny",
            epoch=epoch,
            salt="s",
            arms=(
                Arm(
                    name="champion",
                    role=ArmRole.CHAMPION,
                    release=self.champion.release_id,
                    urls=good.urls,
                    weight=1 - weight,
                ),
                Arm(
                    name="challenger:bad",
                    role=ArmRole.CHALLENGER,
                    release=self.challenger.release_id,
                    urls=new.urls,
                    weight=weight,
                ),
            ),
        )

    def records(self) -> list[Record]:
        return [decode(Record, t) for t in SegmentReader(self.workspace.records).read(10**6)]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    root = tmp_path_factory.mktemp("stack")
    workspace = Workspace(root / "w")
    workspace.root.mkdir()
    workspace.config_file.write_text(CONFIG)
    a = fixtures_tiny.save(root / "a", seed=0)
    b = fixtures_tiny.save(root / "b", seed=1)
    champion = fixtures_tiny.add_release(workspace, a)
    challenger = fixtures_tiny.add_release(workspace, b, recipe="bad")
    two = LocalServingBackend(workspace, Serving(replicas=2))
    one = LocalServingBackend(workspace, Serving(faults={"bad": ("errors:after=2", "")}))
    try:
        two.deploy(champion)
        one.deploy(challenger)
        stack = Stack(workspace, champion, challenger, two, one, GatewayRouter(workspace))
        for release in (champion, challenger):
            assert stack.up(release).attested == release.release_id
        yield stack
        stack.router.close()
    finally:
        two.retire(champion.release_id)
        one.retire(challenger.release_id)
        two.close()
        one.close()


def client(url: str | None) -> openai.OpenAI:
    return openai.OpenAI(api_key="any", base_url=f"{url}/v1", max_retries=0)


def picture(api: openai.OpenAI, seed: int, user: str = "u") -> bytes:
    answer = api.images.generate(
        prompt="a handwritten two", model="tiny", user=user, extra_body={"seed": seed}
    )
    assert answer.data
    return base64.b64decode(answer.data[0].b64_json or "")


def test_life_of_a_service(stack: Stack) -> None:
    """One test, since each part goes on from the one before."""
    workspace, router = stack.workspace, stack.router
    with gateway_process(workspace) as info, client(info.url) as api:
        router.apply(stack.table(1, 0.0))

        # The openai client works unchanged; the same seed gives the same bytes.
        first = picture(api, 7)
        assert Image.open(io.BytesIO(first)).size == (32, 32)
        assert picture(api, 7) == first
        assert picture(api, 8) != first
        assert [m.id for m in api.models.list()] == ["tiny"]
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            api.images.generate(prompt="x", model="dall-e-3")
        *_, last = api.images.generate(prompt="x", stream=True)
        assert last.type == "image_generation.completed"
        with pytest.raises(openai.BadRequestError, match="n=1"):
            api.images.generate(prompt="x", stream=True, n=2)

        # A probe reaches a challenger of weight 0, and it is another model.
        probe = router.probe(stack.challenger.release_id, "a handwritten two", 7)
        assert Image.open(io.BytesIO(probe)).size == (32, 32)
        assert probe != first

        # A challenger that begins to fail: no user sees it, and the breaker trips.
        router.apply(stack.table(2, 0.5))
        for i in range(16):
            picture(api, i, user=f"user-{i}")
        seen = router.observed()
        assert [t.release for t in seen.trips] == [stack.challenger.release_id]
        assert seen.weights == {"champion": 1.0, "challenger:bad": 0.0}
        assert seen.failed == 0
        shielded = [r for r in stack.records() if len(r.attempts) > 1]
        assert shielded
        for record in shielded:
            assert [a.outcome for a in record.attempts] == [Outcome.ERROR, Outcome.OK]
            assert (record.status, record.assigned_arm) == (200, "challenger:bad")
        with pytest.raises(Conflict):
            router.apply(stack.table(1, 0.0))

        # kill -9 of one replica under load: nobody sees that either.
        victim = workspace.process(f"worker-{stack.champion.short}")
        assert victim is not None
        failures: list[BaseException] = []

        def user(name: str) -> None:
            try:
                for i in range(12):
                    picture(api, i, user=name)
            except BaseException as error:
                failures.append(error)

        users = [threading.Thread(target=user, args=(f"v{k}",)) for k in range(4)]
        for thread in users:
            thread.start()
        os.kill(victim.pid, signal.SIGKILL)
        for thread in users:
            thread.join(60)
        assert failures == []
        status = until(lambda: stack.status(stack.champion), lambda s: not s.ready)
        assert f"{victim.name} ended" in status.error
        assert len(status.urls) == 1

    # A gateway that was killed comes back with its table and its trips, told by nobody.
    with gateway_process(workspace) as info:
        os.kill(info.pid, signal.SIGKILL)
        until(lambda: workspace.process("gateway"), lambda p: p is None)
    with gateway_process(workspace) as info, client(info.url) as api:
        assert picture(api, 7) == first
        assert router.observed().weights["challenger:bad"] == 0.0
    keys = [r.key for r in stack.records()]
    assert len(set(keys)) == len(keys)

    # A deployment adopts what runs and starts what is missing; the next one from nothing takes
    # the next fault of the list.
    survivor = workspace.process(f"worker-{stack.champion.short}-1")
    assert survivor is not None
    other = LocalServingBackend(workspace, Serving(replicas=2))  # as after a restart
    other.deploy(stack.champion)
    other.close()
    assert stack.status(stack.champion).facts["deployments"] == 1
    stack.one.retire(stack.challenger.release_id)
    assert workspace.process(f"worker-{stack.challenger.short}") is None
    stack.one.deploy(stack.challenger)
    fresh = stack.up(stack.challenger)
    assert (fresh.facts["deployments"], fresh.facts["fault"]) == (2, "")
    assert len(stack.up(stack.champion).urls) == 2
    same = workspace.process(survivor.name)
    assert same is not None
    assert same.pid == survivor.pid


def test_the_logs_hold_no_prompt(stack: Stack) -> None:
    logs = "".join(p.read_text() for p in Path(stack.workspace.logs).iterdir())
    assert "ready at" in logs
    assert "handwritten" not in logs
    assert "FAULT INJECTED FOR A DRILL: errors:after=2" not in logs  # the last start had none
