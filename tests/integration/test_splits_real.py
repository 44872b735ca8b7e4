"""A split with nothing played but the scorer: real workers of a tiny diffusion model, a real
gateway, the real controller, users over HTTP. One of three challengers draws better, one breaks."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from tests import fixtures_tiny
from tests.fixtures_serving import gateway_process, until
from tests.integration.test_loop_in_memory import embed
from tests.integration.test_serving_whole import process

from intonaco.clock import SystemClock
from intonaco.codec import decode, encode
from intonaco.config import load
from intonaco.controller import Controller
from intonaco.executor import Parts
from intonaco.executor.service import smoke_test
from intonaco.ledger import Ledger
from intonaco.releases import ReleaseStore
from intonaco.segment_log import SegmentReader, SegmentWriter
from intonaco.serving.client import GatewayRouter
from intonaco.serving.local import LocalServingBackend
from intonaco.testing.datasets import MemoryDatasetStore
from intonaco.testing.notify import MemoryNotifier
from intonaco.testing.registry import MemoryRegistry
from intonaco.testing.tracking import MemoryTracker
from intonaco.testing.training import MemoryTrainingBackend
from intonaco.types import (
    Action,
    Candidate,
    Cause,
    Phase,
    Plan,
    Record,
    Release,
    Rollout,
    RolloutStatus,
    ScoredRecord,
    Update,
    Verdict,
)
from intonaco.workspace import Workspace

CONFIG = """
service: tiny
model: {name: tiny, generation: {steps: 2, guidance_scale: 1.5, width: 32, height: 32}}
serving: {gateway: {port: 0, challenger_timeout_s: 4}, faults: {bad: ["errors:after=6"]}}
monitoring: {signals: {}, probes: []}
approval: {mode: auto}
rollout:
  strategy: ab
  ab: {min_seconds: 0, min_units: 10}
  score_range: [0.0, 1.0]
  margins: {errors: 0.3, slow: 0.6, clip_score: 0.3}
  slower_than: 20
  bake_seconds: 2
  drain_seconds: 20
registry: {type: none}
tracker: {type: none}
"""
ARMS = ("equal", "good", "bad")


@dataclass
class Service:
    workspace: Workspace
    champion: Release
    arms: dict[str, Release]
    ledger: Ledger
    parts: Parts
    api: httpx.Client
    scores: SegmentWriter
    read: SegmentReader
    controller: Controller
    users: int = 0
    answers: list[tuple[str, int, str]] = field(default_factory=list)  # user, status, assigned arm
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(6))
    noise: random.Random = field(default_factory=lambda: random.Random(5))

    def ask(self, user: str) -> None:
        body = {"prompt": "a handwritten two", "user": user, "seed": len(self.answers)}
        answer = self.api.post("/v1/images/generations", json=body)
        arm = answer.headers.get("x-intonaco-assigned-arm", "")
        self.answers.append((user, answer.status_code, arm))

    def traffic(self, new: int, old: int = 4) -> None:
        """Requests of new users and of some who came before; what the scorer makes of them."""
        names = [f"user-{self.users + k}" for k in range(new)]
        names += self.noise.sample([f"user-{k}" for k in range(self.users)], min(old, self.users))
        self.users += new
        list(self.pool.map(self.ask, names))
        for line in self.read.read(10_000):
            record = decode(Record, line)
            good = record.served_by == self.arms["good"].release_id
            score = (0.8 if good else 0.3) + self.noise.uniform(-0.1, 0.1)
            item = ScoredRecord(
                record=record, prompt_embedding=(), scores={"clip": score}, extractor="e"
            )
            self.scores.append(encode(item))

    def step(self, new: int) -> Rollout:
        """Some traffic, and what the controller makes of it."""
        self.traffic(new)
        self.controller.tick()
        return self.rollout()

    def updated(self, new: int) -> Update:
        self.step(new)
        return self.update()

    def rollout(self) -> Rollout:
        return self.ledger.all(Rollout)[-1]

    def update(self) -> Update:
        return self.ledger.all(Update)[-1]

    def restart(self) -> None:
        self.controller.close()
        self.controller = Controller(self.parts, holder="test", notifier=MemoryNotifier())


@contextmanager
def service(root: Path) -> Iterator[Service]:
    workspace = Workspace(root / "w")
    workspace.root.mkdir()
    workspace.config_file.write_text(CONFIG)
    config = load(workspace.config_file)
    made = {
        name: fixtures_tiny.add_release(
            workspace, fixtures_tiny.save(root / name, seed=seed), recipe=name
        )
        for seed, name in enumerate(("champion", *ARMS))
    }
    backend = LocalServingBackend(workspace, config.serving)
    ledger = Ledger.open(workspace.ledger, "tiny")
    router = GatewayRouter(workspace)
    clock = SystemClock()
    parts = Parts(
        config=config,
        workspace=workspace,
        ledger=ledger,
        releases=ReleaseStore(workspace, "tiny"),
        datasets=MemoryDatasetStore(root / "scratch"),
        training=MemoryTrainingBackend(),
        serving=backend,
        router=router,
        registry=MemoryRegistry(),
        tracker=MemoryTracker(),
        embed=embed,
        probe=lambda release, prompt, seed: None,
        smoke=smoke_test,
        clock=clock,
    )
    now = clock.now()
    plan = Plan(
        plan_id="p",
        service_id="tiny",
        at=now,
        action=Action.FINE_TUNE,
        cause=Cause.REQUESTED,
        reason="which?",
    )
    arms = {name: made[name] for name in ARMS}
    update = Update(
        update_id="u",
        service_id="tiny",
        plan=plan,
        phase=Phase.STAGE,
        created_at=now,
        phase_since=now,
        champion=made["champion"].release_id,
        candidates=tuple(
            Candidate(name=n, release_id=r.release_id, verdict=Verdict.PASS)
            for n, r in arms.items()
        ),
        chosen=arms["equal"].release_id,
    )
    with ledger.begin() as tx:
        tx.crown(made["champion"].release_id, now, "the first")
        tx.update(update)
    with process(workspace, "intonaco.forkserver") as server:
        until(lambda: (server.poll(), workspace.process("forkserver")), lambda s: any(s))
        backend.deploy(made["champion"])
        with gateway_process(workspace) as info, httpx.Client(base_url=str(info.url)) as api:
            api.timeout = httpx.Timeout(60)
            running = Service(
                workspace,
                made["champion"],
                arms,
                ledger,
                parts,
                api,
                SegmentWriter(workspace.scores, "scorer"),
                SegmentReader(workspace.records),
                Controller(parts, holder="test", notifier=MemoryNotifier()),
            )
            try:
                yield running
            finally:
                running.pool.shutdown()
                running.controller.close()
                running.scores.close()
                for release in made.values():
                    backend.retire(release.release_id)
                backend.close()
                router.close()
                ledger.close()


@pytest.mark.slow
def test_three_challengers_one_better_one_broken(tmp_path: Path) -> None:
    with service(tmp_path) as s:
        rid = "u-1"

        def split_begun() -> bool:
            s.controller.tick()
            rollouts = s.ledger.all(Rollout)
            return bool(rollouts and rollouts[-1].history) and s.parts.router.observed().epoch > 1

        until(split_begun, bool)
        statuses = [s.parts.serving.status(r.release_id) for r in s.arms.values()]
        assert all(status.attested == status.release for status in statuses)

        until(lambda: s.step(12), lambda r: r.split is not None and len(r.split.live) < 3)
        split = s.rollout().split
        assert split is not None
        assert split.arm("bad").reason.startswith("the breaker tripped after 3 failures")
        table = s.ledger.latest_routing()
        assert table is not None
        assert {a.name: a.release for a in table.arms} == {
            "champion": s.champion.release_id,
            f"challenger:{rid}.equal": s.arms["equal"].release_id,
            f"challenger:{rid}.good": s.arms["good"].release_id,
            f"returned:{rid}.bad": s.champion.release_id,
        }
        s.restart()  # another controller goes on with the ledger's evidence
        until(lambda: s.step(12), lambda r: r.split is not None and r.split.winner is not None)
        split = s.rollout().split
        assert split is not None
        assert split.winner == "good"
        assert "good is better than the champion: clip_score +" in split.text

        # Nobody saw an error, and nobody moved but the users of the arm that broke.
        assert {status for _, status, _ in s.answers} == {200}
        seen: dict[str, set[str]] = {}
        for user, _, arm in s.answers:
            seen.setdefault(user, set()).add(arm)
        bad = {f"challenger:{rid}.bad", f"returned:{rid}.bad"}
        assert all(len(arms) == 1 or arms <= bad for arms in seen.values())
        assert any(arms == bad for arms in seen.values())

        until(lambda: s.updated(4), lambda u: u.phase.final)
        assert s.update().phase is Phase.PROMOTED
        assert s.rollout().status is RolloutStatus.PROMOTED
        assert s.ledger.champion() == s.arms["good"].release_id
        for name in ("equal", "bad"):
            assert not s.parts.serving.status(s.arms[name].release_id).ready
        assert {status for _, status, _ in s.answers} == {200}
