"""What the whole controller makes of a rollout's steps, over twins of every seam; each story also
with the controller thrown away after every second tick."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.assessed import assessed
from tests.integration.test_loop_in_memory import World, in_rollout

from intonaco import commands
from intonaco.config import RolloutConfig
from intonaco.errors import Conflict
from intonaco.rollout.analysis import RolloutAnalysis
from intonaco.types import (
    Assessment,
    MetricAssessment,
    Phase,
    Rollout,
    RolloutStatus,
    StepKind,
    Verdict,
)

STEPS: list[dict[str, Any]] = [{"weight": 0.5, "min_seconds": 1, "min_units": 0}]


class Evidence:
    """What the analysis finds; the traffic itself is not part of these stories."""

    def __init__(self) -> None:
        self.found = Assessment.NON_INFERIOR

    def __call__(self, analysis: RolloutAnalysis) -> tuple[MetricAssessment, ...]:
        return assessed(analysis.metrics, self.found)


@pytest.fixture
def evidence(monkeypatch: pytest.MonkeyPatch) -> Evidence:
    made = Evidence()
    monkeypatch.setattr(RolloutAnalysis, "assess", lambda analysis: made(analysis))
    return made


@pytest.fixture(params=[False, True], ids=["steady", "killed-every-second-tick"])
def world(request: pytest.FixtureRequest, tmp_path: Path, evidence: Evidence) -> Iterator[World]:
    made = World(tmp_path, restarts=request.param)
    configure(made)
    yield made
    made.close()


def configure(world: World, **changes: Any) -> None:
    """Another ``rollout`` section from now on."""
    given = {"steps": STEPS, "bake_seconds": 20, "holdback": 0.1, "drain_seconds": 60} | changes
    rollout = RolloutConfig.model_validate(given)
    world.parts = replace(
        world.parts, config=world.parts.config.model_copy(update={"rollout": rollout})
    )
    world.controller.close()
    world.controller = world._controller()


def rollout_of(world: World) -> Rollout:
    return world.ledger.all(Rollout)[-1]


def shares(world: World) -> dict[str, float]:
    table = world.router.table
    assert table is not None
    return {arm.role.value: arm.weight for arm in table.arms}


def to_bake(world: World) -> tuple[str, str]:
    """The first champion, and the one that now bakes."""
    first = world.first_release()
    world.technique()
    world.until(lambda: world.updates()[-1].phase is Phase.BAKE)
    world.until(lambda: shares(world) == {"champion": 0.9, "holdback": 0.1})
    second = world.ledger.champion()
    assert second is not None
    assert second == rollout_of(world).challenger
    assert rollout_of(world).champion == first
    return first, second


def test_a_bake_holds_users_back_and_ends(world: World) -> None:
    first, second = to_bake(world)
    assert ("retire", first) not in world.serving.calls
    world.until(lambda: world.updates()[-1].phase.final)
    assert world.updates()[-1].phase is Phase.PROMOTED
    assert rollout_of(world).status is RolloutStatus.PROMOTED
    assert world.ledger.champion() == second
    assert shares(world) == {"champion": 1.0}
    assert ("retire", first) in world.serving.calls
    assert [t.release_id for t in world.ledger.tenures()] == [first, second]


def back_to_the_first(world: World, first: str, second: str) -> None:
    world.until(lambda: world.updates()[-1].phase.final)
    update = world.updates()[-1]
    assert update.phase is Phase.ROLLED_BACK
    assert rollout_of(world).status is RolloutStatus.ROLLED_BACK
    assert world.ledger.champion() == first
    assert [t.release_id for t in world.ledger.tenures()] == [first, second, first]
    assert shares(world) == {"champion": 1.0}
    assert world.router.table is not None
    assert world.router.table.champion().release == first
    assert ("retire", first) not in world.serving.calls
    assert ("retire", second) in world.serving.calls


@pytest.mark.parametrize("how", ["harm", "dead", "trip", "word"])
def test_what_goes_wrong_in_the_bake_goes_back(world: World, evidence: Evidence, how: str) -> None:
    first, second = to_bake(world)
    if how == "harm":
        evidence.found = Assessment.HARMFUL
    elif how == "trip":
        world.router.trip(second, world.clock.now())
        assert world.router.observed().weights == {"champion": 0.0, "holdback": 1.0}
    elif how == "dead":
        world.serving.failing[second] = "out of memory"
    else:
        assert world.command("rollback", reason="ugly")["ok"]
    back_to_the_first(world, first, second)
    if how == "word":
        assert "ann" in world.updates()[-1].reason


def test_it_goes_back_only_once_the_previous_one_is_up(world: World, evidence: Evidence) -> None:
    first, second = to_bake(world)
    world.serving.failing[first] = "lost its device"
    evidence.found = Assessment.HARMFUL
    for _ in range(4):
        world.tick()
    assert rollout_of(world).returning.startswith("harmful")
    assert world.ledger.champion() == second  # it still answers, the other would not
    assert ("deploy", first) in world.serving.calls
    kinds = [e.kind for e in world.ledger.events(kind="rollout")]
    assert kinds.count("rollout.returning") == 1
    evidence.found = Assessment.NON_INFERIOR
    del world.serving.failing[first]
    back_to_the_first(world, first, second)


def test_what_was_rolled_back_is_not_tried_again_by_itself(
    world: World, evidence: Evidence
) -> None:
    first, second = to_bake(world)
    evidence.found = Assessment.HARMFUL
    back_to_the_first(world, first, second)
    evidence.found = Assessment.NON_INFERIOR
    world.technique()
    world.until(lambda: world.updates()[-1].phase.final)
    refused = world.updates()[-1]
    assert refused.phase is Phase.REJECTED
    assert refused.candidates[0].release_id == second
    assert refused.candidates[0].verdict is Verdict.FAIL
    assert refused.candidates[0].reasons[0].startswith("in quarantine, rolled back before: harmful")
    # Nor does a rollback lead there, unless somebody names it.
    with pytest.raises(Conflict, match="no earlier champion"):
        commands.rollback_target(world.ledger, None)
    assert commands.rollback_target(world.ledger, second) == second
    # A person may try again, at half the error budget.
    assert world.command("rollout.retry", reason="the device was broken")["ok"]
    world.until(lambda: world.updates()[-1].phase.final)
    assert world.updates()[-1].phase is Phase.PROMOTED
    assert rollout_of(world).alpha == pytest.approx(0.025)
    assert world.ledger.champion() == second
    assert commands.rollback_target(world.ledger, None) == first


def test_a_step_waits_for_a_persons_word(world: World) -> None:
    configure(
        world, steps=[*STEPS, {"kind": "approve", "deadline_s": 100}, {"weight": 1, "min_units": 0}]
    )
    world.first_release()
    world.technique()
    in_rollout(world)
    world.until(lambda: rollout_of(world).steps[rollout_of(world).step].kind is StepKind.APPROVE)
    for _ in range(5):
        world.tick()
    assert shares(world) == {"champion": 0.5, "challenger": 0.5}
    assert world.command("rollout.skip")["ok"]  # taken, and refused by the machine
    assert rollout_of(world).steps[rollout_of(world).step].kind is StepKind.APPROVE
    assert world.command("rollout.approve", reason="seen it")["ok"]
    said = world.ledger.events(kind="rollout.step", newest=True, limit=1)[0]
    assert (said.actor, "approved by ann: seen it" in said.text) == ("ann", True)
    world.until(lambda: rollout_of(world).promoted_at is not None, ticks=700)


def test_nobodys_word_ends_it(world: World) -> None:
    configure(world, steps=[*STEPS, {"kind": "approve", "deadline_s": 10}])
    first = world.first_release()
    world.technique()
    world.until(lambda: world.updates()[-1].phase.final)
    assert rollout_of(world).status is RolloutStatus.INCONCLUSIVE
    assert rollout_of(world).reason == "nobody approved within 10 s"
    assert world.ledger.champion() == first


def test_shadow_only_promotes_nobody(world: World) -> None:
    configure(
        world, strategy="shadow_only", steps=[{"kind": "shadow", "weight": 0.3, "min_units": 0}]
    )
    first = world.first_release()
    world.technique()
    in_rollout(world)
    assert shares(world) == {"champion": 1.0, "shadow": 0.3}
    world.until(lambda: world.updates()[-1].phase.final, ticks=700)
    assert world.updates()[-1].phase is Phase.CANCELLED
    assert rollout_of(world).status is RolloutStatus.OBSERVED
    assert rollout_of(world).verdict is Verdict.PASS
    assert world.ledger.champion() == first
    assert ("retire", rollout_of(world).challenger) in world.serving.calls


def test_guardrails_are_the_metrics_that_are_configured(world: World, evidence: Evidence) -> None:
    """Each must be proven, the configured ones and no others."""
    configure(world, metrics=["errors", "slow"])
    world.first_release()
    world.technique()
    in_rollout(world)
    world.until(lambda: bool(rollout_of(world).assessments))
    assert [a.metric for a in rollout_of(world).assessments] == ["errors", "slow"]
    facts = world.controller.rollouts._facts(rollout_of(world), None, None)
    assert facts.guardrails == ("errors", "slow")
