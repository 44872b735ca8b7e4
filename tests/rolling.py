"""A service with a champion and a challenger that is about to be rolled out: the real controller
and ledger over twins of every seam, a clock that stands still, and evidence that a test makes up.

Much faster to set up than a service that trains its releases, so that a story can be told hundreds
of times.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import PropertyMock, patch

import numpy as np
from tests.assessed import assessed

from intonaco import beginning, commands, config, loop
from intonaco.clock import FakeClock
from intonaco.codec import encode
from intonaco.config import RolloutConfig
from intonaco.controller import Controller
from intonaco.errors import BackendError
from intonaco.executor import Parts
from intonaco.ledger import Ledger
from intonaco.releases import ReleaseStore
from intonaco.rollout.analysis import RolloutAnalysis
from intonaco.testing.datasets import MemoryDatasetStore
from intonaco.testing.notify import MemoryNotifier
from intonaco.testing.registry import MemoryRegistry, sample_release
from intonaco.testing.serving import MemoryRouter, MemoryServingBackend
from intonaco.testing.tracking import MemoryTracker
from intonaco.testing.training import MemoryTrainingBackend
from intonaco.types import (
    Action,
    ArmRole,
    Assessment,
    Candidate,
    Cause,
    Event,
    Json,
    Observed,
    Plan,
    Release,
    Rollout,
    RoutingTable,
    StepKind,
    Update,
    Verdict,
)
from intonaco.workspace import Workspace

CONFIG = """
service: svc
approval: {mode: auto}
registry: {type: none}
tracker: {type: none}
monitoring: {probes: []}
"""
STEPS: list[dict[str, Any]] = [
    {"weight": 0.2, "min_seconds": 10, "min_units": 5},
    {"weight": 0.5, "min_seconds": 10, "min_units": 5},
]


class Evidence:
    """What the analysis says of the challenger."""

    def __init__(self) -> None:
        self.found: Assessment = Assessment.NON_INFERIOR
        self.units = 100

    @contextmanager
    def given(self) -> Iterator[None]:
        def assess(analysis: RolloutAnalysis) -> Any:
            return assessed(analysis.metrics, self.found)

        counted = PropertyMock(side_effect=lambda: self.units)
        with (
            patch.object(RolloutAnalysis, "assess", assess),
            patch.object(RolloutAnalysis, "units_at_step", counted),
            patch.object(RolloutAnalysis, "shadow_pairs", counted),
        ):
            yield


class Gateways(MemoryRouter):
    """They can be lost, and come back."""

    lost = False

    def apply(self, table: RoutingTable) -> None:
        self._reach()
        super().apply(table)

    def observed(self) -> Observed:
        self._reach()
        return super().observed()

    def _reach(self) -> None:
        if self.lost:
            raise BackendError("no gateway answers", backend="gateway", retriable=True)


class Rolling:
    """``first`` serves, ``second`` passed the gate. ``template``: a folder where what every service
    begins with is kept."""

    def __init__(self, root: Path, template: Path, **rollout: Any) -> None:
        self.root = root
        if not template.exists():
            _make(template)
        shutil.copytree(template, root)
        self.workspace = Workspace(root)
        self.ledger = Ledger.open(self.workspace.ledger, "svc")
        self.clock = FakeClock()
        self.evidence = Evidence()
        self.serving = MemoryServingBackend()
        self.router = Gateways()
        self.notifier = MemoryNotifier()
        given = {"steps": STEPS, "bake_seconds": 20, "holdback": 0.1, "drain_seconds": 60} | rollout
        found = config.parse(CONFIG)
        self.parts = Parts(
            config=found.model_copy(update={"rollout": RolloutConfig.model_validate(given)}),
            workspace=self.workspace,
            ledger=self.ledger,
            releases=ReleaseStore(self.workspace, "svc"),
            datasets=MemoryDatasetStore(root / "scratch"),
            training=MemoryTrainingBackend(),
            serving=self.serving,
            router=self.router,
            registry=MemoryRegistry(),
            tracker=MemoryTracker(),
            embed=lambda texts: np.eye(2)[[0] * len(texts)],
            probe=lambda release, prompt, seed: None,
            smoke=lambda url, release: 0.01,
            clock=self.clock,
        )
        self.first, self.second, self.third = (
            r.release_id for r in sorted(self.ledger.all(Release), key=_steps_of)
        )
        for release in self.ledger.all(Release):
            folder = self.workspace.resolve(release.path)
            self.parts.registry.register(release, folder, {})
        self._given = self.evidence.given()
        self._given.__enter__()
        self.controller = self.another()
        with self.ledger.begin() as tx:
            tx.crown(self.first, self.clock.now(), "it was there")
        self.serving.deploy(self.parts.releases.get(self.first))

    def another(self, holder: str = "one") -> Controller:
        """Another controller of this service."""
        return Controller(self.parts, holder=holder, notifier=self.notifier)

    def restart(self) -> None:
        """Killed and started again."""
        self.controller._threads.shutdown(wait=True)
        self.controller = self.another(self.controller.holder)

    def close(self) -> None:
        self.controller.close()
        self.ledger.close()
        self._given.__exit__(None, None, None)

    # ------------------------------------------------------------------ what happens

    def tick(self, seconds: float = 1.0) -> None:
        self.clock.advance(seconds)
        assert self.controller.tick()
        for future in (*self.controller._running.values(), self.controller.aliases._running):
            while future is not None and not future.done():
                time.sleep(0.0005)  # effects run in threads; the story's clock stands still

    def until(self, done: Any, ticks: int = 120, seconds: float = 1.0) -> None:
        for _ in range(ticks):
            if done():
                return
            self.tick(seconds)
        raise AssertionError([e.text for e in self.ledger.events(newest=True, limit=6)])

    def begin(self, release: str | None = None) -> None:
        """An update for a release that passed the gate; no tick."""
        chosen = release or self.second
        now = self.clock.now()
        plan = Plan(
            plan_id=f"plan-{len(self.updates())}",
            service_id="svc",
            at=now,
            action=Action.ASSEMBLE,
            cause=Cause.NEW_TECHNIQUE,
            reason="fewer steps",
        )
        candidate = Candidate(name="fewer", release_id=chosen, verdict=Verdict.PASS)
        with self.ledger.begin() as tx:
            update = loop.restage(plan, candidate, self.ledger.champion(), 1, now)
            beginning.begin_update(self.parts, tx, update, now)

    def to_step(self, step: int) -> Rollout:
        """Begin, and go on until the tick that takes that step."""
        self.begin()
        self.until(lambda: self.ledger.active_rollout() is not None)
        self.until(lambda: bool(self.rollout.history) and self.rollout.step >= step)
        assert self.rollout.step == step
        return self.rollout

    def to_bake(self) -> Rollout:
        rollout = self.to_step(4)
        assert rollout.steps[4].kind is StepKind.BAKE
        return rollout

    def submit(self, kind: str, actor: str = "ann", **arguments: Json) -> int:
        return commands.submit(self.ledger, self.clock.now(), kind, actor, arguments)

    def command(self, kind: str, **arguments: Json) -> Mapping[str, Json]:
        number = self.submit(kind, **arguments)
        self.tick(0.0)
        outcome = self.ledger.command_outcome(number)
        assert outcome is not None
        return outcome

    # ------------------------------------------------------------------ what is so

    @property
    def rollout(self) -> Rollout:
        return self.ledger.all(Rollout)[-1]

    def updates(self) -> list[Update]:
        return self.ledger.all(Update)

    def events(self, kind: str) -> list[Event]:
        return self.ledger.events(kind=kind)

    def shares(self) -> dict[str, float]:
        """Of users, by release."""
        found: dict[str, float] = {}
        for arm in self.router.table.arms if self.router.table else ():
            if arm.role is not ArmRole.SHADOW:
                found[arm.release] = found.get(arm.release, 0.0) + arm.weight
        return found


def _steps_of(release: Release) -> int:
    return int(release.serving.generation["steps"])


def _make(template: Path) -> None:
    workspace = Workspace(template)
    ledger = Ledger.open(workspace.ledger, "svc")
    for steps in (28, 14, 7):
        folder = template / "made" / str(steps)
        release = replace(sample_release(folder, service_id="svc", steps=56 - steps))
        kept = workspace.releases / release.release_id
        kept.mkdir(parents=True)
        folder.rename(kept / "pipeline")
        (kept / "release.json").write_text(encode(release))
        with ledger.begin() as tx:
            tx.put(release, id=release.release_id, at=release.provenance.created_at)
    ledger.close()
    for leftover in workspace.ledger.parent.glob("ledger.db-*"):
        leftover.unlink()
