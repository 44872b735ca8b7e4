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

from intonaco import brake, emergency, rollout_commands
from intonaco.config import Config, RolloutConfig, resolve_limits
from intonaco.errors import BackendError, Conflict
from intonaco.rollout.analysis import RolloutAnalysis
from intonaco.types import (
    ArmRole,
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


def configure(world: World, *, replicas: int = 1, **changes: Any) -> None:
    """Another ``rollout`` section from now on."""
    given = {"steps": STEPS, "bake_seconds": 20, "holdback": 0.1, "drain_seconds": 60} | changes
    rollout = RolloutConfig.model_validate(given)
    before = world.parts.config
    serving = before.serving.model_copy(update={"replicas": replicas})
    config = Config.model_validate(
        before.model_copy(update={"rollout": rollout, "serving": serving}).model_dump(
            exclude_unset=True
        )
    )
    world.serving.replicas = replicas
    world.parts = replace(world.parts, config=config)
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
        rollout_commands.rollback_target(world.ledger, None)
    assert rollout_commands.rollback_target(world.ledger, second) == second
    # A person may try again, at half the error budget.
    assert world.command("rollout.retry", reason="the device was broken")["ok"]
    world.until(lambda: world.updates()[-1].phase.final)
    assert world.updates()[-1].phase is Phase.PROMOTED
    assert rollout_of(world).alpha == pytest.approx(0.025)
    assert world.ledger.champion() == second
    assert rollout_commands.rollback_target(world.ledger, None) == first


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


# ------------------------------------------------------------------------------------ rolling


def workers(world: World) -> dict[str, int]:
    return {rid: len(polls) for rid, polls in world.serving._polls.items()}


@pytest.mark.parametrize(
    ("replicas", "surge", "unavailable"),
    [
        pytest.param(4, 1, 0, marks=pytest.mark.slow),
        pytest.param(2, 1, 0, marks=pytest.mark.slow),
        (4, 0, 1),
        (5, "40%", "20%"),
    ],
)
def test_rolling_replaces_a_few_workers_at_a_time(
    world: World, replicas: int, surge: int | str, unavailable: int | str
) -> None:
    configure(
        world,
        replicas=replicas,
        strategy="rolling",
        max_surge=surge,
        max_unavailable=unavailable,
        holdback=0,
    )
    first = world.first_release()
    assert workers(world) == {first: replicas}
    beyond, short = resolve_limits(replicas, surge, unavailable)
    world.serving.most = 0
    world.technique()
    seen = [0.0]
    for _ in range(400):
        if world.updates()[-1].phase.final:
            break
        world.tick()
        table, there = world.router.table, workers(world)
        assert table is not None
        assert sum(there.values()) <= replicas + beyond, there
        live = [a for a in table.arms if a.role is not ArmRole.SHADOW]
        assert sum(a.weight for a in live) == pytest.approx(1.0)
        answering = {url for a in live for url in a.urls}
        assert len(answering) >= replicas - short
        second = rollout_of(world).challenger
        if second == first:
            continue
        share = sum(a.weight for a in live if a.release == second)
        if seen[-1] != share:
            seen.append(share)
        mine = sum(len(a.urls) for a in live if a.release == second)
        assert mine >= min(share * replicas, replicas) - short - 1e-9
    second = rollout_of(world).challenger
    wave = beyond + short
    steps = [k / replicas for k in (*range(wave, replicas, wave), replicas)]
    assert seen == pytest.approx([0.0, *steps])
    assert world.updates()[-1].phase is Phase.PROMOTED
    assert world.ledger.champion() == second
    for _ in range(3):
        world.tick()
    assert workers(world) == {second: replicas}
    assert world.serving.most <= replicas + beyond


@pytest.mark.parametrize(
    ("how", "surge", "unavailable"),
    [
        ("harm", 1, 0),
        ("harm", 0, 1),
        ("trip", 1, 0),
        ("dead", 0, 1),
        *(
            pytest.param(how, surge, 1 - surge, marks=pytest.mark.slow)
            for how, surge in (("word", 1), ("word", 0), ("trip", 0), ("dead", 1), ("late", 1))
        ),
        ("late", 0, 1),
    ],
)
def test_rolling_back_restores_the_champions_workers_first(
    world: World, evidence: Evidence, how: str, surge: int, unavailable: int
) -> None:
    configure(
        world,
        replicas=4,
        strategy="rolling",
        max_surge=surge,
        max_unavailable=unavailable,
        holdback=0,
        max_seconds=60,
    )
    first = world.first_release()
    world.technique()
    share = {"champion": 0.5, "challenger": 0.5}
    evidence.found = Assessment.NON_INFERIOR
    world.until(lambda: shares(world) == share, ticks=400)
    second = rollout_of(world).challenger
    if how == "harm":
        evidence.found = Assessment.HARMFUL
    elif how == "word":
        assert world.command("rollout.abort", reason="ugly")["ok"]
    elif how == "trip":
        world.router.trip(second, world.clock.now())
    elif how == "dead":
        world.serving.failing[second] = "out of memory"
    else:
        evidence.found = Assessment.UNDECIDED
    for _ in range(800):
        if world.updates()[-1].phase.final:
            break
        world.tick()
        table, there = world.router.table, workers(world)
        assert table is not None
        assert sum(there.values()) <= 4 + surge, there
        of = {a.release: (a.weight, len(a.urls)) for a in table.arms}
        assert sum(w for w, _ in of.values()) == pytest.approx(1.0)
        if how not in ("trip", "dead"):
            assert of[first][1] >= of[first][0] * 4 - unavailable - 1e-9, of
    wanted = RolloutStatus.INCONCLUSIVE if how == "late" else RolloutStatus.ROLLED_BACK
    assert rollout_of(world).status is wanted
    assert world.ledger.champion() == first
    world.until(lambda: workers(world) == {first: 4}, ticks=400)
    world.until(lambda: len(world.router.table.champion().urls) == 4)  # type: ignore[union-attr]
    assert shares(world) == {"champion": 1.0}


def test_rolling_back_from_the_bake(world: World, evidence: Evidence) -> None:
    configure(world, replicas=3, strategy="rolling", holdback=0, bake_seconds=100)
    first = world.first_release()
    world.technique()
    world.until(lambda: world.updates()[-1].phase is Phase.BAKE, ticks=400)
    second = rollout_of(world).challenger
    world.until(lambda: workers(world) == {first: 1, second: 3})
    assert world.ledger.champion() == second
    evidence.found = Assessment.HARMFUL
    for _ in range(400):
        if world.updates()[-1].phase.final:
            break
        world.tick()
        assert sum(workers(world).values()) <= 4
    assert world.ledger.champion() == first
    world.until(lambda: workers(world) == {first: 3}, ticks=200)
    assert shares(world) == {"champion": 1.0}


def test_rolling_waits_for_the_proof_before_its_last_wave(world: World, evidence: Evidence) -> None:
    configure(world, replicas=2, strategy="rolling", holdback=0)
    evidence.found = Assessment.UNDECIDED
    first = world.first_release()
    world.technique()
    half = {"champion": 0.5, "challenger": 0.5}
    world.until(lambda: shares(world) == half, ticks=400)
    for _ in range(20):
        world.tick()
    assert shares(world) == half
    assert workers(world) == {first: 1, rollout_of(world).challenger: 1}
    assert "errors (undecided)" in rollout_of(world).history[-1].decision
    evidence.found = Assessment.NON_INFERIOR
    world.until(lambda: rollout_of(world).promoted_at is not None)


def test_rolling_one_worker_proves_on_copies(world: World) -> None:
    configure(world, replicas=1, strategy="rolling", holdback=0)
    first = world.first_release()
    world.technique()
    world.until(lambda: world.updates()[-1].phase.final, ticks=400)
    kinds = [h.kind for h in rollout_of(world).history]
    assert kinds == [
        StepKind.SHADOW, StepKind.ANALYSIS, StepKind.CANARY, StepKind.PROMOTE, StepKind.BAKE,
    ]  # fmt: skip
    assert world.ledger.champion() != first
    assert world.serving.most == 2


# ------------------------------------------------------------------------------------ in place


def in_place(world: World, **changes: Any) -> None:
    configure(world, strategy="in_place", force=True, holdback=0, **changes)


def test_in_place_never_has_both_loaded(world: World, evidence: Evidence) -> None:
    in_place(world)
    evidence.found = Assessment.NO_DATA
    first = world.first_release()
    world.serving.most = 0
    world.technique()
    world.until(lambda: world.updates()[-1].phase.final, ticks=400)
    rollout = rollout_of(world)
    assert rollout.status is RolloutStatus.PROMOTED
    assert rollout.verdict is Verdict.INCONCLUSIVE  # nothing was compared
    assert rollout.reason == "in place: forced, compared with nothing"
    assert rollout.notice.startswith("in place: nobody answers while the challenger loads")
    assert world.ledger.champion() == rollout.challenger
    assert world.serving.most == 1
    assert world.serving.deployments == {first: 1, rollout.challenger: 1}
    assert shares(world) == {"champion": 1.0}
    told = [e.kind for e in world.ledger.events(kind="rollout", limit=100)]
    second = told[len(told) - told[::-1].index("rollout.started") :]
    assert second.index("rollout.notice") < second.index("rollout.begun")


@pytest.mark.parametrize(
    "how",
    [
        "harm",
        "never up",
        pytest.param("dead", marks=pytest.mark.slow),
        pytest.param("word", marks=pytest.mark.slow),
    ],
)
def test_in_place_starts_the_previous_one_again(world: World, evidence: Evidence, how: str) -> None:
    in_place(world, bake_seconds=100)
    first = world.first_release()
    world.serving.most = 0
    world.technique()
    if how == "never up":
        world.until(lambda: world.ledger.active_rollout() is not None)
        second = rollout_of(world).challenger
        world.serving.failing[second] = "ended: out of memory"
    else:
        world.until(lambda: world.updates()[-1].phase is Phase.BAKE, ticks=400)
        second = rollout_of(world).challenger
    if how == "harm":
        evidence.found = Assessment.HARMFUL
    elif how == "dead":
        world.serving.failing[second] = "lost its device"
    elif how == "word":
        assert world.command("rollback")["ok"]
    world.until(lambda: world.updates()[-1].phase.final, ticks=400)
    rollout = rollout_of(world)
    assert rollout.status is RolloutStatus.ROLLED_BACK
    words = {"harm": "harmful", "dead": "worker is gone", "word": "aborted by ann"}
    assert words.get(how, "worker is gone") in rollout.reason
    assert world.ledger.champion() == first
    assert shares(world) == {"champion": 1.0}
    assert world.router.table is not None
    assert world.router.table.champion().release == first
    assert world.serving.most == 1
    assert workers(world) == {first: 1}


@pytest.mark.parametrize("how", ["baking", "loading", "promoted"])
def test_the_brake_never_has_both_loaded_in_place(world: World, how: str) -> None:
    """No controller runs. What is in the champion's place ends first, as the controller has it."""
    in_place(world, bake_seconds=100 if how == "baking" else 1)
    first = world.first_release()
    world.technique()
    if how == "loading":
        world.serving.polls_until_ready = 10_000
        world.until(lambda: not world.serving.status(first).deployed, ticks=400)
        world.until(lambda: world.serving.status(rollout_of(world).challenger).deployed)
    else:
        phase = Phase.BAKE if how == "baking" else Phase.PROMOTED
        world.until(lambda: world.updates()[-1].phase is phase, ticks=400)
    second = rollout_of(world).challenger
    world.controller.close()
    world.serving.most, world.serving.polls_until_ready = 0, 1
    text = brake.rollback(world.parts, None, "ann")
    assert f"{second[:10]} ended first, and nobody answered for " in text
    assert world.serving.most == 1
    assert workers(world) == {first: 1}
    assert world.ledger.champion() == first
    world.controller = world._controller()
    world.until(lambda: world.updates()[-1].phase.final)
    for _ in range(5):
        world.tick()
    assert shares(world) == {"champion": 1.0}
    assert world.router.table is not None
    assert world.router.table.champion().release == first
    assert world.serving.most == 1
    assert workers(world) == {first: 1}


def test_the_brake_says_that_nobody_answers_if_the_champion_does_not_come_back(
    world: World,
) -> None:
    in_place(world, bake_seconds=100)
    first = world.first_release()
    world.technique()
    world.until(lambda: world.updates()[-1].phase is Phase.BAKE, ticks=400)
    world.controller.close()
    world.serving.failing[first] = "out of memory"
    with pytest.raises(BackendError, match="does not come up: out of memory") as told:
        brake.rollback(world.parts, None, "ann")
    assert "nobody answers" in str(told.value.hint)
    assert emergency.waiting(world.workspace) == []


def test_in_place_goes_back_to_any_earlier_release_in_place(world: World) -> None:
    in_place(world)
    first = world.first_release()
    world.technique()
    world.until(lambda: world.updates()[-1].phase.final, ticks=400)
    world.serving.most = 0
    assert world.command("rollback")["ok"]
    world.until(lambda: world.updates()[-1].phase.final, ticks=400)
    assert world.ledger.champion() == first
    assert world.serving.most == 1


# ---------------------------------------------------------------------------- a person's word


def test_what_is_undecided_can_be_accepted_by_name(world: World, evidence: Evidence) -> None:
    configure(world, on_inconclusive="ask", max_seconds=10)
    world.first_release()
    evidence.found = Assessment.UNDECIDED
    world.technique()
    world.until(lambda: rollout_of(world).asked, ticks=400)
    asking = world.ledger.events(kind="rollout.asking", limit=10)
    assert len(asking) == 1
    assert "accepts what is undecided, or abort it" in asking[0].text
    evidence.found = Assessment.NO_DATA
    world.command("rollout.approve", reason="fine")
    assert rollout_of(world).accepted == ()
    evidence.found = Assessment.UNDECIDED
    world.command("rollout.approve")
    assert rollout_of(world).accepted == ()  # no reason
    world.command("rollout.approve", reason="looked at 200 pictures")
    accepted = world.ledger.events(kind="rollout.accepted", limit=10)
    said = "accepted unproven by ann: looked at 200 pictures: errors undecided"
    assert [e.actor for e in accepted] == ["ann"]
    assert accepted[0].text.startswith(said)
    world.until(lambda: world.updates()[-1].phase.final, ticks=400)
    assert rollout_of(world).status is RolloutStatus.PROMOTED
    assert rollout_of(world).verdict is Verdict.INCONCLUSIVE
    assert rollout_of(world).reason.startswith(said)


def test_what_was_accepted_still_rolls_back_on_harm(world: World, evidence: Evidence) -> None:
    configure(world, on_inconclusive="ask", max_seconds=10, steps=[*STEPS, {"kind": "pause"}])
    first = world.first_release()
    evidence.found = Assessment.UNDECIDED
    world.technique()
    world.until(lambda: rollout_of(world).asked, ticks=400)
    world.command("rollout.approve", reason="fine")
    assert rollout_of(world).accepted
    evidence.found = Assessment.HARMFUL
    world.until(lambda: world.updates()[-1].phase.final)
    assert rollout_of(world).status is RolloutStatus.ROLLED_BACK
    assert world.ledger.champion() == first


# ---------------------------------------------------------------------------- too little room


def test_what_does_not_fit_beside_the_champion_is_not_loaded(world: World) -> None:
    worker = world.parts.config.serving.worker.model_copy(
        update={"memory_gb": 10.0, "device_memory_gb": 16.0}
    )
    serving = world.parts.config.serving.model_copy(update={"worker": worker})
    world.parts = replace(
        world.parts, config=world.parts.config.model_copy(update={"serving": serving})
    )
    world.controller.close()
    world.controller = world._controller()
    first = world.first_release()
    world.technique()
    world.until(lambda: world.updates()[-1].phase.final)
    update = world.updates()[-1]
    assert update.phase is Phase.FAILED
    assert "the champion takes 10.0 GB, the challenger about 10.0 GB" in update.reason
    assert "has 16.0 GB. Nothing was loaded, the champion serves on" in update.reason
    assert "rollout.strategy: in_place and rollout.force: true" in update.reason
    assert world.serving.deployments == {first: 1}
    assert world.ledger.champion() == first


def test_guardrails_are_the_metrics_that_are_configured(world: World, evidence: Evidence) -> None:
    """Each must be proven, the configured ones and no others."""
    configure(world, metrics=["errors", "slow"])
    world.first_release()
    world.technique()
    in_rollout(world)
    world.until(lambda: bool(rollout_of(world).assessments))
    assert [a.metric for a in rollout_of(world).assessments] == ["errors", "slow"]
    facts = world.controller.rollouts._facts(rollout_of(world), None, None, "")
    assert facts.guardrails == ("errors", "slow")
