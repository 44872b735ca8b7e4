"""A split at the gateway: every arm keeps its part of the line, and who loses an arm is answered by
the champion under a name of their own."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fixtures_gateway import NEW, OLD, in_one_loop

from intonaco.codec import decode, encode
from intonaco.config import SplitConfig
from intonaco.errors import ConfigError
from intonaco.rollout.routing import split_arms
from intonaco.rollout.split import planned
from intonaco.serving.gateway.routing import assign, check_table
from intonaco.types import (
    Arm,
    ArmRole,
    Rollout,
    RolloutStatus,
    RolloutStep,
    RoutingTable,
    ServingStatus,
    StepKind,
)

NAMES = "abcd"


def status(release: str, url: str | None = None) -> ServingStatus:
    return ServingStatus(release=release, ready=True, urls=(url or f"http://{release}",))


def rollout(shares: dict[str, float]) -> Rollout:
    given = SplitConfig(split={"champion": 1 - sum(shares.values()), **shares})
    split = planned({n: f"rel-{n}" for n in shares}, given)
    return Rollout(
        rollout_id="r",
        service_id="s",
        update_id="u",
        champion="A",
        challenger="rel-a",
        steps=(RolloutStep(kind=StepKind.SPLIT),),
        status=RolloutStatus.RUNNING,
        started_at=0.0,
        split=split,
    )


def without(state: Rollout, *names: str) -> Rollout:
    assert state.split is not None
    arms = tuple(replace(a, removed_at=1.0) if a.name in names else a for a in state.split.arms)
    return replace(state, split=replace(state.split, arms=arms))


def table(state: Rollout, epoch: int = 1) -> RoutingTable:
    assert state.split is not None
    statuses = {a.release: status(a.release) for a in state.split.live}
    arms = split_arms(status("A"), state, state.split, statuses, None)
    assert arms is not None
    made = RoutingTable(service_id="s", epoch=epoch, salt="salt", arms=arms)
    check_table(made)
    return decode(RoutingTable, encode(made))


FOUR = {"a": 0.1, "b": 0.25, "c": 0.2, "d": 0.15}
USERS = [f"user {k}" for k in range(2000)]


@settings(max_examples=50, deadline=None)
@given(st.sets(st.sampled_from(NAMES)), st.sampled_from(NAMES))
def test_taking_an_arm_out_moves_its_own_users_only(before: set[str], now: str) -> None:
    old, new = table(without(rollout(FOUR), *before)), table(without(rollout(FOUR), *before, now))
    for user in USERS[:400]:
        was, is_ = assign(old, user), assign(new, user)
        if was.arm.name == f"challenger:r.{now}":
            assert (is_.arm.name, is_.arm.release) == (f"returned:r.{now}", "A")
        else:
            assert (is_.arm.name, is_.arm.release) == (was.arm.name, was.arm.release)
        assert is_.probability == pytest.approx(was.probability)


@pytest.mark.parametrize("now", NAMES)
def test_a_trip_says_what_the_next_table_will_say(now: str) -> None:
    """So that records of the moments between are those of the table that follows."""
    old, new = table(rollout(FOUR)), table(without(rollout(FOUR), now))
    for user in USERS[:400]:
        tripped, after = assign(old, user, {f"rel-{now}"}), assign(new, user)
        assert (tripped.arm.name, tripped.arm.release) == (after.arm.name, after.arm.release)
        assert tripped.probability == pytest.approx(after.probability)
        again = assign(new, user, {f"rel-{now}"})
        assert again == after


def test_shares_are_the_weights_and_the_champions_stay_its_own() -> None:
    for state in (rollout(FOUR), without(rollout(FOUR), "b", "d")):
        made = table(state)
        counts = Counter(assign(made, user).arm.name for user in USERS)
        for arm in made.arms:
            sd = (arm.weight * (1 - arm.weight) * len(USERS)) ** 0.5
            assert abs(counts[arm.name] - arm.weight * len(USERS)) < 4 * sd
        assert made.champion().weight == pytest.approx(0.3)
        assert {assign(made, u).probability for u in USERS} <= {a.weight for a in made.arms}


def test_who_does_not_answer_just_now_stays_and_who_is_dead_does_not() -> None:
    state = rollout(FOUR)
    assert state.split is not None
    latest = table(state)
    seen = {a.release: status(a.release) for a in state.split.live}
    seen["rel-a"] = replace(seen["rel-a"], urls=(), ready=False)
    seen["rel-b"] = replace(seen["rel-b"], urls=(), ready=False, error="it ended")
    arms = split_arms(status("A"), state, state.split, seen, latest)
    assert arms is not None
    assert [a.name for a in arms][:3] == ["champion", "challenger:r.a", "returned:r.b"]
    never = split_arms(status("A"), state, state.split, seen, None)
    assert never is not None
    assert never[1].name == "returned:r.a"
    assert split_arms(None, state, state.split, seen, latest) is None


def test_parts_that_overlap_are_refused() -> None:
    made = table(rollout(FOUR))
    moved = tuple(replace(a, start=0.05) if a.name == "challenger:r.b" else a for a in made.arms)
    with pytest.raises(ConfigError, match=r"challenger:r\.b: its users begin at 0.05"):
        check_table(replace(made, arms=moved))
    stacked = tuple(replace(a, start=None) if a.name == "challenger:r.b" else a for a in made.arms)
    with pytest.raises(ConfigError, match="either all arms"):
        check_table(replace(made, arms=stacked))
    beyond = tuple(replace(a, start=0.95) if a.name == "challenger:r.d" else a for a in made.arms)
    with pytest.raises(ConfigError, match=r"begin at 0\.95"):
        check_table(replace(made, arms=beyond))


async def test_returned_users_are_answered_by_the_champion(tmp_path: Path) -> None:
    """By the champion's worker as its own users are, waiting for it too, and recorded apart."""

    def arm(name: str, release: str, url: str, start: float | None) -> Arm:
        role = ArmRole(name.partition(":")[0])
        return Arm(name=name, role=role, release=release, urls=(url,), weight=0.5, start=start)

    async with in_one_loop(tmp_path) as stage:
        champion = arm("champion", OLD, stage.old_url, None)
        for epoch, other in (
            (1, arm("challenger:r", NEW, stage.new_url, 0.0)),
            (2, arm("returned:r", OLD, stage.old_url, 0.0)),
        ):
            made = RoutingTable(service_id="tiny", epoch=epoch, salt="s", arms=(champion, other))
            stage.gateway.state.apply(made)
            answers = await asyncio.gather(*(stage.ask(user=f"u{k}") for k in range(12)))
            assert {a.status_code for a in answers} == {200}
        records = await stage.records()
    by_epoch = {e: [r for r in records if r.routing_epoch == e] for e in (1, 2)}
    assert {r.assigned_arm for r in by_epoch[1]} == {"champion", "challenger:r"}
    assert {r.assigned_arm for r in by_epoch[2]} == {"champion", "returned:r"}
    assert {(r.served_by, r.served_arm, r.probability) for r in by_epoch[2]} == {
        (OLD, "champion", 0.5)
    }
    before = {r.unit: r.assigned_arm for r in by_epoch[1]}
    for record in by_epoch[2]:
        assert record.assigned_arm == before[record.unit].replace("challenger", "returned")
