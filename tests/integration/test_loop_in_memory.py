"""The whole controller over twins of every seam: no process, no torch, no clock of its own.

The same stories are told again with the controller thrown away after every second tick, together
with what its threads had just done and not yet written down: the outcome must be the same, nothing
trained twice, one champion.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from intonaco import brake, commands, config, rollout_commands
from intonaco.clock import FakeClock
from intonaco.codec import as_json
from intonaco.controller import Controller
from intonaco.environments import EnvironmentStore, Lock, capture, environment_lock
from intonaco.errors import BackendError, Conflict
from intonaco.evaluation.prompts import read_prompts, shots, shots_digest
from intonaco.executor import Parts
from intonaco.jobs import job_folder
from intonaco.ledger import Ledger
from intonaco.protocols import Matrix
from intonaco.releases import ReleaseStore
from intonaco.testing.datasets import MemoryDatasetStore
from intonaco.testing.notify import MemoryNotifier
from intonaco.testing.registry import MemoryRegistry
from intonaco.testing.serving import MemoryRouter, MemoryServingBackend
from intonaco.testing.tracking import MemoryTracker
from intonaco.testing.training import MemoryTrainingBackend
from intonaco.types import (
    Action,
    Assessment,
    BreakerTrip,
    JobSpec,
    Json,
    MetricResult,
    Phase,
    Release,
    Rollout,
    RolloutStatus,
    Update,
    Verdict,
)
from intonaco.workspace import Workspace

CONFIG = """
service: svc
extractor: {type: clip, path: extractor, digest: abc}
data: {train: data/train, pool: data/pool, reference: data/reference}
decision: {fine_tune: [tune], full_retrain: [full], cooldown_s: 0}
training:
  recipes:
    full: {method: full, init: "some.module:build", steps: 5, estimated_seconds: 10}
    tune: {method: full, steps: 5, estimated_seconds: 10}
evaluation: {prompts: prompts.jsonl, floor_adherence: 0.5}
approval: {mode: APPROVAL}
rollout:
  drain_seconds: 60
  bake_seconds: 5
  steps: [{weight: 0.5, min_seconds: 1, min_units: 0}, {weight: 1.0, min_seconds: 1, min_units: 0}]
registry: {type: none}
tracker: {type: none}
monitoring: {probes: []}
"""


@dataclass
class World:
    """A service with twins for everything outside it."""

    root: Path
    approval: str = "auto"
    restarts: bool = False
    clock: FakeClock = field(default_factory=FakeClock)
    verdict: Verdict = Verdict.PASS
    ticks: int = 0
    submitted: list[JobSpec] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.workspace = Workspace(self.root)
        (self.root / "prompts.jsonl").write_text(PROMPT)
        (self.root / "data" / "reference").mkdir(parents=True)
        for name in ("train", "pool"):
            write_items(self.root / "data" / name, name)
        self.ledger = Ledger.open(self.workspace.ledger, "svc")
        self.training = MemoryTrainingBackend(on_submit=self._job)
        self.serving = MemoryServingBackend(polls_until_ready=1)
        self.router = MemoryRouter()
        self.registry = MemoryRegistry()
        self.notifier = MemoryNotifier()
        self.parts = Parts(
            config=config.parse(CONFIG.replace("APPROVAL", self.approval)),
            workspace=self.workspace,
            ledger=self.ledger,
            releases=ReleaseStore(self.workspace, "svc"),
            datasets=MemoryDatasetStore(self.root / "scratch"),
            training=self.training,
            serving=self.serving,
            router=self.router,
            registry=self.registry,
            tracker=MemoryTracker(),
            embed=embed,
            probe=lambda release, prompt, seed: None,
            smoke=lambda url, release: 0.01,
            clock=self.clock,
        )
        self.controller = self._controller()

    def _controller(self) -> Controller:
        return Controller(self.parts, holder="test", notifier=self.notifier)

    def tick(self, seconds: float = 1.0) -> None:
        self.clock.advance(seconds)
        assert self.controller.tick()
        for future in list(self.controller._running.values()):
            while not future.done():  # effects run in threads; the clock of the story stands still
                time.sleep(0.001)
        self.controller.delivery.look()
        self.ticks += 1
        if self.restarts and self.ticks % 2 == 0:
            self.controller._threads.shutdown(wait=True)
            self.controller = self._controller()

    def until(self, done: object, ticks: int = 200) -> None:
        assert callable(done)
        for _ in range(ticks):
            if done():
                return
            self.tick()
        raise AssertionError([e.text for e in self.ledger.events(newest=True, limit=5)])

    def command(self, kind: str, **arguments: Json) -> Json:
        number = commands.submit(self.ledger, self.clock.now(), kind, "ann", arguments)
        self.tick(0.0)
        return self.ledger.command_outcome(number)

    def lose_table(self) -> None:
        self.router.table = None

    def updates(self) -> list[Update]:
        return self.ledger.all(Update)

    def first_release(self) -> str:
        assert self.command("update.start", reason="first")["ok"]
        self.until(lambda: self.updates()[0].phase.final)
        champion = self.ledger.champion()
        assert champion is not None
        return champion

    def technique(self, steps: int = 4) -> Update:
        """Start an update that needs no training and see it to its rollout."""
        outcome = self.command(
            "update.start",
            action="assemble",
            reason="fewer steps",
            assemble={"name": "fewer", "generation": {"steps": steps}},
        )
        assert outcome["ok"], outcome
        return self.updates()[-1]

    def close(self) -> None:
        self.controller.close()
        self.ledger.close()

    # ------------------------------------------------------------------ what jobs do here

    def _job(self, spec: JobSpec) -> dict[str, Json]:
        self.submitted.append(spec)
        folder = job_folder(self.workspace, spec.key) / "out"
        folder.mkdir(parents=True)
        if spec.entrypoint == "intonaco.training.job":
            write_pipeline(folder / "pipeline", spec.key)
            return {"pipeline": "out/pipeline", "steps": 5}
        report = self._report(spec)
        (folder / "report.json").write_text(json.dumps(report))
        return {"report": "out/report.json"}

    def _report(self, spec: JobSpec) -> dict[str, Json]:
        keep = ["zero"]
        names = [c["name"] for c in spec.payload["candidates"]]
        good = self.verdict is Verdict.PASS
        return {
            "candidates": names,
            "champion": spec.payload["champion"] and "champion",
            **measured_as_asked(spec),
            "keep": keep,
            "improve": [],
            "comparisons": {name: as_json(metrics(good)) for name in names},
        }


PROMPT = '{"prompt_id": "0", "prompt": "a zero", "slice": "zero"}\n'


def measured_as_asked(spec: JobSpec) -> dict[str, Json]:
    """What a report says of how it was made."""
    asked = shots(read_prompts(Path(spec.payload["prompts"])), spec.payload["seeds_per_prompt"])
    return {
        "alpha": spec.payload["alpha"],
        "alphas": spec.payload["alphas"],
        "success": spec.payload["success"],
        "extractor": {"name": "test", "digest": spec.payload["extractor"]["digest"]},
        "shots": {"digest": shots_digest(asked)},
    }


def metrics(good: bool) -> list[MetricResult]:
    """Comparisons that are inside, or far outside, every margin."""
    sign = 0.0 if good else -1.0
    found = []
    for name, slice_, worse in (
        ("adherence_improve", None, sign),
        ("adherence", None, sign),
        ("adherence", "zero", sign),
        ("distance", None, 0.0),
        ("recall", None, sign),
        ("latency", None, 0.0),
        ("memory", None, 1.0),
    ):
        found.append(
            MetricResult(
                metric=name,
                slice=slice_,
                champion=0.9,
                candidate=0.9 + worse,
                difference=worse,
                interval=(0.9, 0.9) if name.startswith("adherence") and good else (worse, worse),
                margin=None,
                assessment=Assessment.UNDECIDED,
                guardrail=True,
            )
        )
    return found


def write_items(folder: Path, origin: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(4):
        colour = (number * 60, 10 if origin == "pool" else 200, 0)
        Image.new("RGB", (8, 8), colour).save(folder / f"{number}.png")
        lines.append({"file_name": f"{number}.png", "text": f"{origin} {number}", "topic": "zero"})
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n")


def write_pipeline(folder: Path, content: str) -> None:
    (folder / "scheduler").mkdir(parents=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"a": 1}))
    index = {"_class_name": "TinyPipeline", "scheduler": ["diffusers", "DDIMScheduler"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "weights.safetensors").write_bytes(content.encode())


def embed(texts: Sequence[str]) -> Matrix:
    return np.eye(2)[[0] * len(texts)]


@pytest.fixture(params=[False, True], ids=["steady", "killed-every-second-tick"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path, restarts=request.param)
    yield made
    made.close()


def test_the_first_release_is_trained_gated_and_served(world: World) -> None:
    champion = world.first_release()
    update = world.updates()[0]
    assert update.phase is Phase.PROMOTED
    assert update.candidates[0].verdict is Verdict.PASS
    assert update.candidates[0].release_id == champion
    assert world.router.table is not None
    assert [(a.name, a.release, a.weight) for a in world.router.table.arms] == [
        ("champion", champion, 1.0)
    ]
    world.until(lambda: world.registry.get(champion)["aliases"] == ["champion"], ticks=20)


def test_nothing_is_done_twice(world: World) -> None:
    world.first_release()
    starts = [key for key in world.training.jobs if ":train:" in key]
    assert len(starts) == 1
    assert len([key for key in world.training.jobs if ":evaluate:" in key]) == 1
    assert list(world.serving.deployments.values()) == [1]
    assert [t.until for t in world.ledger.tenures()] == [None]
    phases = [e.data["to"] for e in world.ledger.events(kind="update.phase")]
    assert len(phases) == len(set(phases))


def test_a_release_that_fails_the_gate_goes_no_further(world: World) -> None:
    champion = world.first_release()
    world.verdict = Verdict.FAIL
    world.technique()
    world.until(lambda: world.updates()[-1].phase.final)
    update = world.updates()[-1]
    assert update.phase is Phase.REJECTED
    assert update.candidates[0].verdict is Verdict.FAIL
    assert world.ledger.champion() == champion
    refused = update.candidates[0].release_id
    assert refused is not None
    assert refused not in world.serving.deployments
    assert world.registry.get(refused)["tags"]["verdict"] == "fail"


def test_an_unchanged_technique_is_no_update(world: World) -> None:
    world.first_release()
    world.technique(steps=28)
    world.until(lambda: world.updates()[-1].phase.final)
    assert world.updates()[-1].phase is Phase.REJECTED
    assert "nothing would change" in world.updates()[-1].reason


def in_rollout(world: World) -> Rollout:
    world.until(lambda: world.ledger.active_rollout() is not None)
    world.until(lambda: bool(world.router.table and len(world.router.table.arms) == 2))
    rollout = world.ledger.active_rollout()
    assert rollout is not None
    return rollout


def test_a_trip_of_the_breaker_rolls_back_and_retires(world: World) -> None:
    champion = world.first_release()
    world.technique()
    rollout = in_rollout(world)
    now = world.clock.now()
    world.router.trips[rollout.challenger] = BreakerTrip(
        release=rollout.challenger, at=now, first_failure_at=now, failures=3, reason="errors"
    )
    world.until(lambda: world.updates()[-1].phase.final)
    assert world.updates()[-1].phase is Phase.ROLLED_BACK
    assert world.ledger.champion() == champion
    assert world.router.table is not None
    assert [a.release for a in world.router.table.arms] == [champion]
    assert ("retire", rollout.challenger) in world.serving.calls
    assert ("retire", champion) not in world.serving.calls


def test_a_rollout_without_evidence_is_never_promoted(world: World) -> None:
    champion = world.first_release()
    world.technique()
    in_rollout(world)
    for _ in range(30):
        world.tick()
    assert world.ledger.champion() == champion
    world.controller = world._controller()  # nobody looked for a day: the next one begins there
    world.tick(100_000.0)
    world.until(lambda: world.updates()[-1].phase.final)
    rollout = world.ledger.all(Rollout)[-1]
    assert rollout.status is RolloutStatus.INCONCLUSIVE
    assert world.ledger.champion() == champion


def test_abort_and_retry_at_half_the_error_budget(world: World) -> None:
    world.first_release()
    world.technique()
    first = in_rollout(world)
    assert world.command("rollout.abort")["ok"]
    world.until(lambda: world.updates()[-1].phase.final)
    assert world.command("rollout.retry", reason="mended")["ok"]
    second = in_rollout(world)
    assert second.attempt == 2
    assert second.alpha == first.alpha / 2
    assert second.challenger == first.challenger
    assert world.router.table is not None
    assert second.challenger in world.router.table.untrip or second.salt != first.salt


def test_a_job_that_fails_fails_the_update_and_says_why(world: World) -> None:
    def fail(spec: JobSpec) -> dict[str, Json]:
        raise RuntimeError("out of memory")

    world.training._on_submit = fail
    world.command("update.start", reason="first")
    world.until(lambda: world.updates()[0].phase.final)
    assert world.updates()[0].phase is Phase.FAILED
    assert "out of memory" in world.updates()[0].reason
    assert world.ledger.champion() is None


def test_a_worker_that_attests_another_release_is_not_staged(world: World) -> None:
    champion = world.first_release()
    world.technique()
    world.until(lambda: world.updates()[-1].candidates[0].release_id is not None)
    made = str(world.updates()[-1].candidates[0].release_id)
    world.serving.attests[made] = "somebody-else"
    world.until(lambda: world.updates()[-1].phase.final)
    assert world.updates()[-1].phase is Phase.FAILED
    assert world.ledger.champion() == champion


def test_a_champion_whose_worker_died_is_started_again(world: World) -> None:
    champion = world.first_release()
    world.serving.die(champion)
    world.until(lambda: world.serving.deployments[champion] == 2, ticks=10)


def test_a_champion_that_cannot_load_is_tried_less_and_less(world: World) -> None:
    """Whoever holds the lease: what was tried is in the ledger, and people are told once."""
    champion = world.first_release()

    def starts() -> int:
        return world.serving.calls.count(("deploy", champion))

    before = starts()
    world.serving.failing[champion] = "out of memory"
    for _ in range(600):
        world.tick()
    # At 0, 2, 6, 14, 30, 62, 126, 254 and 510 s, then every 300.
    assert starts() - before == 9
    [told] = world.ledger.events(kind="champion.down")
    assert "started 3 times: out of memory" in told.text
    assert [e.kind for e in world.notifier.events].count("champion.down") == 1
    del world.serving.failing[champion]
    for _ in range(10):
        world.tick(60.0)
    assert len(world.ledger.events(kind="champion.up")) == 1
    assert starts() - before == 9
    world.serving.die(champion)
    world.until(lambda: starts() - before == 10, ticks=2)
    assert len(world.ledger.events(kind="champion.down")) == 1


def test_a_gateway_that_lost_its_table_gets_it_again(world: World) -> None:
    champion = world.first_release()
    world.lose_table()
    world.tick()
    world.tick()
    assert world.router.table is not None
    assert world.router.table.champion().release == champion


def test_frozen_starts_nothing_and_unfrozen_goes_on(world: World) -> None:
    world.first_release()
    assert world.command("freeze")["ok"]
    assert world.ledger.setting("frozen") is True
    assert world.command("unfreeze")["ok"]
    assert world.ledger.setting("frozen") is False


def test_commands_that_cannot_be_done_are_answered(world: World) -> None:
    assert not world.command("rollback")["ok"]
    assert not world.command("rollout.pause")["ok"]
    assert not world.command("update.approve", update="nope")["ok"]
    assert not world.command("nonsense")["ok"]
    assert not world.command("update.start", recipes=["nope"])["ok"]


def test_the_budget_is_reserved_and_settled(world: World) -> None:
    world.command("update.start", reason="first")
    assert world.ledger.spent()[1] > 0
    world.until(lambda: world.updates()[0].phase.final)
    settled, reserved = world.ledger.spent()
    assert reserved == 0
    update = world.updates()[0]
    (evaluated,) = (
        s for s in world.ledger.effects(update.update_id).values() if s.effect.kind == "evaluate"
    )
    price = world.parts.config.decision.budget.hourly_price
    used = update.candidates[0].cost + evaluated.result["seconds"] / 3600 * price
    assert settled == pytest.approx(used)


def two_champions(world: World) -> tuple[str, str]:
    """A first release, then a second that is promoted on somebody's emergency order."""
    first = world.first_release()
    update = world.technique()
    rollout = in_rollout(world)
    with world.ledger.begin() as tx:
        done = Rollout(**{**_fields(rollout), "status": RolloutStatus.PROMOTED, "reason": "test"})
        tx.rollout(done)
        tx.crown(rollout.challenger, world.clock.now(), "test")
    world.until(lambda: world.updates()[-1].phase.final)
    assert update.champion == first
    return first, rollout.challenger


def _fields(value: Any) -> dict[str, Json]:
    return {name: getattr(value, name) for name in value.__slots__}


def test_rollback_puts_the_previous_champion_back(world: World) -> None:
    first, second = two_champions(world)
    assert world.ledger.champion() == second
    assert world.command("rollback")["ok"]
    world.until(lambda: world.updates()[-1].phase.final)
    assert world.ledger.champion() == first
    assert world.updates()[-1].plan.action is Action.ROLL_BACK
    assert world.router.table is not None
    assert world.router.table.champion().release == first
    assert ("retire", second) in world.serving.calls


def test_the_brake_works_without_a_controller(world: World) -> None:
    first, second = two_champions(world)
    epoch = world.router.table.epoch if world.router.table else 0
    world.controller.close()
    text = brake.rollback(world.parts, None, "ann")
    assert first[:10] in text
    assert world.router.table is not None
    assert world.router.table.epoch > epoch
    assert world.router.table.champion().release == first
    assert world.ledger.champion() == first
    world.controller = world._controller()
    for _ in range(5):
        world.tick()
    assert world.ledger.champion() == first
    assert world.router.table.champion().release == first
    with pytest.raises(Conflict):
        rollout_commands.rollback_target(world.ledger, first)
    assert second in {t.release_id for t in world.ledger.tenures()}


def killed_controller(world: World) -> None:
    """Its lease is still running, and its process is no more."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    holder = f"{socket.gethostname()}:{gone.pid}"
    with world.ledger.begin() as tx:
        tx.release_lease("test")
        assert tx.lease(holder, world.clock.now(), 10.0) is not None
    world.controller._threads.shutdown(wait=True)


def test_the_brake_does_not_wait_for_the_lease_of_a_killed_controller(world: World) -> None:
    """Nor does the controller that comes back send users to the challenger again; it ends the
    update in good order."""
    champion = world.first_release()
    world.technique()
    rollout = in_rollout(world)
    killed_controller(world)
    assert "aborted" in brake.rollback(world.parts, None, "ann")
    assert world.router.table is not None
    assert [a.release for a in world.router.table.arms] == [champion]
    ended = world.ledger.get(Rollout, rollout.rollout_id)
    assert (ended.status, ended.reason) == (
        RolloutStatus.ROLLED_BACK,
        "emergency rollback by ann",
    )
    world.controller = world._controller()
    while not world.updates()[-1].phase.final:
        world.tick()
        assert [a.release for a in world.router.table.arms] == [champion]
    assert world.updates()[-1].phase is Phase.ROLLED_BACK
    assert ("retire", rollout.challenger) in world.serving.calls
    assert ("retire", champion) not in world.serving.calls
    assert world.ledger.spent()[1] == 0, "nothing stays reserved for it"


def test_the_brake_leaves_a_note_to_a_controller_that_came_back_meanwhile(world: World) -> None:
    champion = world.first_release()
    world.technique()
    rollout = in_rollout(world)
    told = brake.rollback(world.parts, None, "ann")  # its lease is another's, who may live
    assert "the ledger learns of it" in told
    assert world.router.table is not None
    assert [a.release for a in world.router.table.arms] == [champion]
    world.until(lambda: world.updates()[-1].phase.final)
    assert world.updates()[-1].phase is Phase.ROLLED_BACK
    assert world.ledger.get(Rollout, rollout.rollout_id).reason == "emergency rollback by ann"
    assert [a.release for a in world.router.table.arms] == [champion]


def test_approval_is_waited_for(tmp_path: Path) -> None:
    world = World(tmp_path, approval="ask")
    world.command("update.start", reason="first")
    world.until(lambda: world.updates()[0].phase is Phase.APPROVE)
    for _ in range(5):
        world.tick()
    assert world.updates()[0].phase is Phase.APPROVE
    update_id = world.updates()[0].update_id
    assert world.command("update.approve", update=update_id, reason="looks good")["ok"]
    world.until(lambda: world.updates()[0].phase.final)
    assert world.updates()[0].phase is Phase.PROMOTED
    world.close()


def test_a_refusal_ends_the_update(tmp_path: Path) -> None:
    world = World(tmp_path, approval="ask")
    world.command("update.start", reason="first")
    world.until(lambda: world.updates()[0].phase is Phase.APPROVE)
    world.command("update.reject", update=world.updates()[0].update_id, reason="ugly")
    world.until(lambda: world.updates()[0].phase.final)
    assert world.updates()[0].phase is Phase.REJECTED
    assert "ugly" in world.updates()[0].reason
    assert world.ledger.champion() is None
    world.close()


@pytest.mark.parametrize("killed", [False, True], ids=["alive", "killed"])
@pytest.mark.parametrize("phase", [Phase.STAGE, Phase.APPROVE])
def test_what_is_staged_retires_when_its_update_is_cancelled(
    tmp_path: Path, phase: Phase, killed: bool
) -> None:
    world = World(tmp_path, approval="ask", restarts=killed)
    world.command("update.start", reason="first")
    world.until(lambda: world.updates()[0].phase is Phase.APPROVE)
    world.command("update.approve", update=world.updates()[0].update_id)
    world.until(lambda: world.updates()[0].phase.final)
    champion = world.ledger.champion()
    assert champion is not None
    world.serving.polls_until_ready = 3
    update = world.technique()
    world.until(lambda: world.updates()[-1].phase is phase)
    release = str(world.updates()[-1].chosen)
    world.until(lambda: world.serving.status(release).deployed)
    assert world.command("update.cancel", update=update.update_id)["ok"]
    world.until(lambda: world.updates()[-1].phase.final)
    ended = world.updates()[-1]
    assert (ended.phase, ended.reason) == (Phase.CANCELLED, "cancelled on request")
    for _ in range(5):
        world.tick()
    assert not world.serving.status(release).deployed
    assert world.serving.status(champion).deployed
    assert world.serving.deployments[release] == 1
    assert world.ledger.wanted_effects() == []
    world.close()


def test_a_challenger_that_draws_no_picture_does_not_stay_loaded(world: World) -> None:
    world.first_release()

    def smoke(url: str, release: Release) -> float:
        raise BackendError("smoke test: the worker answered 503", backend="worker", retriable=True)

    world.parts = replace(world.parts, smoke=smoke)
    world.controller.close()
    world.controller = world._controller()
    world.technique()
    world.until(lambda: world.updates()[-1].phase.final)
    failed = world.updates()[-1]
    assert failed.phase is Phase.FAILED
    assert "503" in failed.reason
    assert not world.serving.status(str(failed.chosen)).deployed


def test_a_second_controller_waits_for_the_lease(tmp_path: Path) -> None:
    world = World(tmp_path)
    other = Controller(world.parts, holder="other", notifier=world.notifier)
    world.tick()
    last = world.clock.now()
    world.clock.advance(1.0)
    assert not other.tick()
    assert world.workspace.last_tick() == last, "who has no lease gives no sign of life"
    world.clock.advance(60.0)
    assert other.tick()
    assert world.workspace.last_tick() == world.clock.now()
    with pytest.raises(Conflict), world.ledger.begin(fence=1):
        pass
    other.close()
    world.close()


def test_trouble_that_passes_is_tried_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    tries = 0

    def flaky(url: str, release: Release) -> float:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise BackendError("busy", backend="worker", retriable=True)
        return 0.01

    object.__setattr__(world.parts, "smoke", flaky)
    world.first_release()
    assert tries == 3
    world.close()


def test_a_model_that_exists_is_taken_over_as_it_is(tmp_path: Path) -> None:
    world = World(tmp_path, approval="ask")
    write_pipeline(tmp_path / "mine", "weights")
    style = tmp_path / "mine" / "adapters" / "style"
    style.mkdir(parents=True)
    (style / "pytorch_lora_weights.safetensors").write_bytes(b"lora")
    options = {"dtype": "bfloat16", "attention": "native", "options": ("vae_slicing",)}
    adapters = {"adapters": ("style:0.5",), "fused": True}
    given = world.parts.config.model.model_copy(update={"path": "mine", **options, **adapters})
    changed = world.parts.config.model_copy(update={"model": given})
    object.__setattr__(world.parts, "config", changed)
    world.until(lambda: world.ledger.champion() is not None)
    update = world.updates()[0]
    assert update.candidates[0].verdict is Verdict.INCONCLUSIVE
    release = world.ledger.get(Release, str(world.ledger.champion()))
    assert release.provenance.recipe == "given"
    assert {k: getattr(release.serving, k) for k in (*options, *adapters)} == options | adapters
    world.until(lambda: world.updates()[0].phase.final)
    for _ in range(3):
        world.tick()
    assert len(world.updates()) == 1
    world.close()


def in_environment(world: World, environment: str) -> Update:
    outcome = world.command(
        "update.start",
        action="assemble",
        cause="code_change",
        reason="another diffusers",
        assemble={"name": "other", "environment": environment},
    )
    assert outcome["ok"], outcome
    return world.updates()[-1]


def test_another_environment_is_judged_and_staged_as_a_release_of_its_own(world: World) -> None:
    here = capture()
    lock = here.replaced(Lock(python=here.python, pins={"diffusers": "0.0.1"}))
    away = EnvironmentStore(world.workspace).keep(lock)
    champion = world.first_release()
    in_environment(world, away)
    rollout = in_rollout(world)
    challenger = world.parts.releases.get(rollout.challenger)
    assert challenger.serving.environment == away
    assert challenger.serving.weights == world.parts.releases.get(champion).serving.weights
    assert (world.workspace.releases / rollout.challenger / "lock.txt").read_text() == lock.text()
    payload = world.submitted[-1].payload
    arms = [payload["champion"], *payload["candidates"]]
    assert [a["environment"] for a in arms] == [environment_lock(), away]
    assert payload["environments"]["workspace"] == str(world.workspace.root.resolve())


def test_an_environment_that_cannot_be_had_ends_the_update(tmp_path: Path) -> None:
    world = World(tmp_path)
    here = capture()
    lock = here.replaced(Lock(python=here.python, pins={"diffusers": "0.0.1"}))
    world.first_release()
    in_environment(world, "f" * 64)
    world.until(lambda: world.updates()[-1].phase.final)
    assert "nobody has given the lock of environment ffffffffff" in world.updates()[-1].reason

    refusing = config.parse(CONFIG.replace("APPROVAL", "auto") + "serving: {environments: refuse}")
    world.parts = replace(world.parts, config=refusing)
    world.controller.close()
    world.controller = world._controller()
    in_environment(world, EnvironmentStore(world.workspace).keep(lock))
    world.until(lambda: world.updates()[-1].phase.final)
    assert "serving.environments is 'refuse'" in world.updates()[-1].reason
    world.close()
