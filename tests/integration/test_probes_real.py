"""A silently changed scheduler: real gateway, real worker, real pipeline, one round of probes."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from tests import fixtures_tiny
from tests.fixtures_serving import gateway_process, until
from tests.integration.test_loop_in_memory import embed

from intonaco import config
from intonaco.clock import FakeClock
from intonaco.codec import decode
from intonaco.controller import Controller
from intonaco.executor import Parts
from intonaco.ledger import Ledger
from intonaco.messages import PROTOCOL_HEADER, PROTOCOL_VERSION, Attestation
from intonaco.releases import ReleaseStore
from intonaco.segment_log import SegmentReader
from intonaco.serving.client import GatewayRouter
from intonaco.testing.datasets import MemoryDatasetStore
from intonaco.testing.notify import MemoryNotifier
from intonaco.testing.registry import MemoryRegistry
from intonaco.testing.serving import MemoryServingBackend
from intonaco.testing.tracking import MemoryTracker
from intonaco.testing.training import MemoryTrainingBackend
from intonaco.types import Diagnosis, Finding, ProbeRound, Record, Release, ServingStatus
from intonaco.workspace import Workspace

CONFIG = """
service: tiny
model: {name: tiny, generation: {steps: 4, guidance_scale: 1.5, width: 32, height: 32}}
serving: {gateway: {port: 0}}
monitoring: {probes: [a handwritten zero, a handwritten two], probe_every_s: 3600}
registry: {type: none}
tracker: {type: none}
"""
GENERATION = {"steps": 4, "guidance_scale": 1.5, "width": 32, "height": 32}
CHANGED = {"flow_shift": 3.0}  # of the sampler's configuration


@dataclass
class RealWorkers(MemoryServingBackend):
    """Whatever process answers to the release's name; it is asked what it attests."""

    workspace: Workspace = field(default_factory=lambda: Workspace(Path()))

    def status(self, release_id: str) -> ServingStatus:
        info = self.workspace.process(name_of(release_id))
        if info is None or info.url is None:
            return ServingStatus(release=release_id, ready=False)
        try:
            answer = httpx.get(f"{info.url}/attest", headers={PROTOCOL_HEADER: PROTOCOL_VERSION})
        except httpx.HTTPError:
            return ServingStatus(release=release_id, ready=False)
        if answer.status_code != 200:
            return ServingStatus(release=release_id, ready=False)
        seen = decode(Attestation, answer.content)
        return ServingStatus(
            release=release_id,
            ready=httpx.get(f"{info.url}/readyz").status_code == 200,
            urls=(info.url,),
            attested=seen.release_id,
            facts={"device": seen.device},
        )


def name_of(release_id: str) -> str:
    return f"worker-{release_id[:10]}"


@contextmanager
def worker(workspace: Workspace, release: Release, *module: str) -> Iterator[None]:
    child = subprocess.Popen(
        [
            *(sys.executable, "-m", *module),
            *("--workspace", str(workspace.root), "--release", release.release_id),
            *("--name", name_of(release.release_id), "--device", "cpu", "--batch-sizes", "1,2"),
        ]
    )
    try:
        yield
    finally:
        child.terminate()
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait(20)


@contextmanager
def users(url: str | None) -> Iterator[None]:
    """Three who ask all the time, so that probes are drawn in their company."""
    stop = threading.Event()

    def ask(user: str) -> None:
        with httpx.Client(base_url=str(url), headers={"x-user-id": user}, timeout=60) as http:
            n = 0
            while not stop.is_set():
                n += 1
                body = {"prompt": "a handwritten " + "one two three"[: 3 + n % 9], "seed": n}
                assert http.post("/v1/images/generations", json=body).status_code == 200

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask, f"user-{k}") for k in range(3)]
        try:
            yield
        finally:
            stop.set()
        for future in asking:
            future.result()


def test_a_silently_changed_scheduler_is_found_within_one_round(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "w")
    workspace.root.mkdir()
    workspace.config_file.write_text(CONFIG)
    folder = fixtures_tiny.save(tmp_path / "a")
    release = fixtures_tiny.add_release(workspace, folder, generation=GENERATION)
    ledger = Ledger.open(workspace.ledger, "tiny")
    clock = FakeClock()
    serving, router = RealWorkers(workspace=workspace), GatewayRouter(workspace)
    parts = Parts(
        config=config.parse(CONFIG),
        workspace=workspace,
        ledger=ledger,
        releases=ReleaseStore(workspace, "tiny"),
        datasets=MemoryDatasetStore(tmp_path / "scratch"),
        training=MemoryTrainingBackend(on_submit=lambda spec: {}),
        serving=serving,
        router=router,
        registry=MemoryRegistry(),
        tracker=MemoryTracker(),
        embed=embed,
        probe=router.probe_image,
        smoke=lambda url, release: 0.01,
        clock=clock,
    )
    controller = Controller(parts, holder="test", notifier=MemoryNotifier())

    def tick(seconds: float) -> None:
        clock.advance(seconds)
        assert controller.tick()
        for future in list(controller._running.values()):
            while not future.done():
                time.sleep(0.005)

    def next_round(seconds: float = 0.0) -> ProbeRound:
        known = len(ledger.newest(ProbeRound, 99))
        for wait in (seconds, 1.0, 1.0, 1.0):
            tick(wait)
        found = ledger.newest(ProbeRound, 99)
        assert len(found) == known + 1
        return found[0]

    def serves() -> None:
        def followed() -> bool:
            controller.rollouts.tick(fence(), clock.now())
            table = ledger.latest_routing()
            status = serving.status(release.release_id)
            return (
                status.ready
                and table is not None
                and table.champion().urls == status.urls
                and router.observed().epoch >= table.epoch
            )

        until(followed, bool)

    def fence() -> int:
        with ledger.begin() as tx:
            token = tx.lease("test", clock.now(), 60.0)
        assert token is not None
        return token

    with ledger.begin() as tx:
        tx.put(release, id=release.release_id, at=clock.now())
        tx.crown(release.release_id, clock.now(), "test")
    try:
        with gateway_process(workspace) as gateway:
            with worker(workspace, release, "intonaco.serving.worker.main"):
                serves()
                stored = next_round()
                assert (stored.why, stored.ok, dict(stored.missing)) == ("champion", None, {})
                assert stored.conditions["device"].startswith("cpu, ")
                good = next_round(3600.0)
                assert (good.ok, set(good.measures.values())) == (True, {"bits"})
                with users(gateway.url):
                    rounds = [next_round(3600.0) for _ in range(3)]
                assert [r.ok for r in rounds] == [True] * 3, [r.text for r in rounds]
                good = rounds[-1]
            # Another process, another sampler, the same release by its own word.
            until(lambda: workspace.process(name_of(release.release_id)), lambda p: p is None)
            with worker(workspace, release, "tests.lying_worker", json.dumps(CHANGED)):
                serves()
                assert serving.status(release.release_id).attested == release.release_id
                bad = next_round(3600.0)
                router_requests = router.observed().requests
        assert bad.ok is False
        assert len(bad.changed) == 2
        (finding,) = ledger.all(Finding)
        assert finding.of == "probe"
        assert good.at <= finding.since_at < bad.at
        assert ledger.all(Diagnosis)[0].cause == "quality_decline"
        records = [decode(Record, t) for t in SegmentReader(workspace.records).read(10**6)]
        assert records
        assert {r.unit for r in records if r.probe}.isdisjoint(
            {r.unit for r in records if not r.probe}
        ), "probes never count as users"
        assert router_requests == sum(not r.probe for r in records)
    finally:
        controller.close()
        router.close()
        ledger.close()
