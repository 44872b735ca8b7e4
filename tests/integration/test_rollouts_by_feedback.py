"""What people say, through the whole controller: from the log of feedback to a rollback or a
promotion, with the controller thrown away after every second tick."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.integration.test_loop_in_memory import World, in_rollout
from tests.opinionated import record, said

from intonaco import readmodel
from intonaco.codec import encode
from intonaco.config import Config, RolloutConfig
from intonaco.segment_log import SegmentWriter
from intonaco.serving.gateway.routing import assign
from intonaco.types import Assessment, MetricAssessment, Phase, Rollout, RolloutStatus

MATURE = 20.0
A_TICK = 16  # users


class Town:
    """A service whose users, each new, say what they think of their image within ``MATURE``."""

    def __init__(self, root: Path, *, restarts: bool = False, **rollout: Any) -> None:
        self.world = World(root, restarts=restarts)
        given = {
            "metrics": ["errors", "feedback"],
            "margins": {"errors": 0.05, "feedback": 0.08},
            "steps": [{"weight": 0.5, "min_seconds": 1, "min_units": 0}],
            "max_seconds": 2000,
            "bake_seconds": 5,
            "drain_seconds": 60,
        }
        before = self.world.parts.config
        gateway = before.serving.gateway.model_copy(update={"challenger_timeout_s": 1.0})
        changes = {
            "rollout": RolloutConfig.model_validate(given | rollout),
            "serving": before.serving.model_copy(update={"gateway": gateway}),
            "monitoring": before.monitoring.model_copy(
                update={"feedback": before.monitoring.feedback.model_copy(
                    update={"mature_after_s": MATURE})}
            ),
        }  # fmt: skip
        config = Config.model_validate(
            before.model_copy(update=changes).model_dump(exclude_unset=True)
        )
        self.world.parts = replace(self.world.parts, config=config)
        self.world.controller.close()
        self.world.controller = self.world._controller()
        self.rng = np.random.default_rng(4)
        self.scores = SegmentWriter(self.world.workspace.scores, "scorer")
        self.feedback = SegmentWriter(self.world.workspace.feedback, "gateway")
        self.asked = 0
        self.waiting: list[tuple[float, int, str]] = []
        self.first = self.world.first_release()
        self.world.technique()
        in_rollout(self.world)

    def close(self) -> None:
        self.scores.close()
        self.feedback.close()
        self.world.close()

    @property
    def rollout(self) -> Rollout:
        return self.world.ledger.all(Rollout)[-1]

    def second(self, *, ill: tuple[float, float], well: float) -> None:
        """People ask, and speak; then the controller looks."""
        now, table = self.world.clock.now(), self.world.router.table
        assert table is not None
        while self.waiting and self.waiting[0][0] <= now:
            self.feedback.append(heapq.heappop(self.waiting)[2])
        for k in range(A_TICK):
            self.asked += 1
            unit = f"user-{self.asked}"
            dealt = assign(table, unit)
            challenger = dealt.arm.name.startswith("challenger")
            made = record(
                self.asked, unit=unit, challenger=challenger, weight=0.5, at=now + k / A_TICK
            )
            tries = tuple(replace(a, arm=dealt.arm.name) for a in made.record.attempts)
            asked = replace(
                made.record,
                assigned_arm=dealt.arm.name,
                probability=dealt.probability,
                salt=table.salt,
                routing_epoch=table.epoch,
                attempts=tries,
            )
            item = replace(made, record=asked)
            self.scores.append(encode(item))
            dice, after = self.rng.random(), float(self.rng.uniform(1.0, MATURE - 2))
            if dice < ill[challenger] + well:
                vote = "down" if dice < ill[challenger] else "up"
                line = encode(said(item, after, vote))
                heapq.heappush(self.waiting, (asked.at + after, self.asked, line))
        self.world.tick()

    def shown(self) -> MetricAssessment | None:
        return next((a for a in self.rollout.assessments if a.metric == "feedback"), None)


@pytest.fixture(
    params=[pytest.param(False, marks=pytest.mark.slow), True],
    ids=["steady", "killed-every-second-tick"],
)
def kills(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def towns() -> Iterator[list[Town]]:
    made: list[Town] = []
    yield made
    for town in made:
        town.close()


def test_what_people_dislike_is_rolled_back(towns: list[Town], tmp_path: Path, kills: bool) -> None:
    """Complaints of 25 % where the champion has 5, and not one error."""
    town = Town(tmp_path, restarts=kills)
    towns.append(town)
    began = town.rollout.started_at
    for _ in range(400):
        if town.world.updates()[-1].phase.final:
            break
        town.second(ill=(0.05, 0.25), well=0.1)
    rollout = town.rollout
    assert rollout.status is RolloutStatus.ROLLED_BACK
    assert rollout.reason.startswith("harmful: feedback +")
    assert "errors" not in rollout.reason
    assert town.world.ledger.champion() == town.first
    assert rollout.ended_at is not None
    assert rollout.ended_at - began > MATURE
    card = readmodel.rollout_card(town.world.ledger, rollout, town.world.clock.now())
    told = {p["metric"]: p["text"] for p in card["proof"]}
    assert told["feedback"].startswith("shown to be worse")


def test_an_equal_one_is_promoted_once_images_are_mature(
    towns: list[Town], tmp_path: Path, kills: bool
) -> None:
    town = Town(tmp_path, restarts=kills)
    towns.append(town)
    waited = []
    for _ in range(500):
        if town.rollout.promoted_at is not None:
            break
        town.second(ill=(0.05, 0.05), well=0.15)
        shown = town.shown()
        if shown is not None and shown.assessment is Assessment.NO_DATA:
            waited.append(shown.missing)
    rollout, found = town.rollout, town.shown()
    assert rollout.promoted_at is not None
    assert rollout.promoted_at - rollout.started_at > MATURE + 60
    assert found is not None
    assert found.assessment in (Assessment.NON_INFERIOR, Assessment.SUPERIOR)
    time = "users' images to have had 20 s for feedback"
    assert any(text.startswith("waiting for ") and text.endswith(time) for text in waited)
    lacking = [e.text for e in town.world.ledger.events(kind="rollout.waiting")]
    assert any("feedback (no data)" in text for text in lacking)
    assert "feedback" in rollout.reason
    town.world.until(lambda: town.world.updates()[-1].phase.final)
    assert town.world.updates()[-1].phase is Phase.PROMOTED


def test_silence_ends_inconclusive(towns: list[Town], tmp_path: Path) -> None:
    """Nobody says anything: the images mature, and it is no pass."""
    town = Town(tmp_path, max_seconds=240)
    towns.append(town)
    for _ in range(300):
        if town.world.updates()[-1].phase.final:
            break
        town.second(ill=(0.0, 0.0), well=0.0)
    rollout, shown = town.rollout, town.shown()
    assert rollout.status is RolloutStatus.INCONCLUSIVE
    assert "feedback (no data)" in rollout.reason
    assert shown is not None
    assert "silence is no proof" in shown.missing
    assert town.world.ledger.champion() == town.first
