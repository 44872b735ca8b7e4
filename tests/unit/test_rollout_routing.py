"""The routing table that the ledger's state asks for."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from intonaco.rollout.routing import desired_arms, next_table
from intonaco.types import (
    ArmRole,
    Rollout,
    RolloutStatus,
    RolloutStep,
    ServingStatus,
    StepKind,
)

CHAMPION = ServingStatus(release="a", ready=True, urls=("http://a",))
CHALLENGER = ServingStatus(release="b", ready=True, urls=("http://b",))
ROLLOUT = Rollout(
    rollout_id="r",
    service_id="s",
    update_id="u",
    champion="a",
    challenger="b",
    steps=(RolloutStep(kind=StepKind.CANARY, weight=1.0),),
    status=RolloutStatus.RUNNING,
    started_at=0.0,
)


def test_a_champion_alone_has_everything() -> None:
    arms = desired_arms(CHAMPION, None, None, {"challenger": 0.4})
    assert arms is not None
    assert [(a.role, a.weight) for a in arms] == [(ArmRole.CHAMPION, 1.0)]


def test_weights_of_the_arms_sum_to_one() -> None:
    arms = desired_arms(CHAMPION, ROLLOUT, CHALLENGER, {"challenger": 0.25})
    assert arms is not None
    assert [(a.name, a.weight) for a in arms] == [("champion", 0.75), ("challenger:r", 0.25)]


def test_a_shadow_takes_nothing_from_the_champion() -> None:
    arms = desired_arms(CHAMPION, ROLLOUT, CHALLENGER, {"challenger": 0.0, "shadow": 0.5})
    assert arms is not None
    assert [(a.name, a.weight) for a in arms] == [("champion", 1.0), ("shadow:r", 0.5)]


def test_who_does_not_answer_just_now_changes_nothing() -> None:
    slow = replace(CHALLENGER, urls=(), ready=False)
    assert desired_arms(CHAMPION, ROLLOUT, slow, {"challenger": 0.25}) is None
    assert desired_arms(replace(CHAMPION, urls=()), None, None, {}) is None


def test_a_dead_challenger_leaves_the_table() -> None:
    dead = replace(CHALLENGER, urls=(), ready=False, error="it ended")
    arms = desired_arms(CHAMPION, ROLLOUT, dead, {"challenger": 0.25})
    assert arms is not None
    assert [(a.name, a.weight) for a in arms] == [("champion", 1.0)]


def test_a_first_release_is_the_champion_arm() -> None:
    first = replace(ROLLOUT, champion=None)
    arms = desired_arms(CHALLENGER, first, CHALLENGER, {"challenger": 1.0})
    assert arms is not None
    assert [(a.name, a.release, a.weight) for a in arms] == [("champion", "b", 1.0)]


def test_a_table_is_written_only_when_something_changed() -> None:
    arms = desired_arms(CHAMPION, None, None, {})
    assert arms is not None
    first = next_table(None, arms, service_id="s", salt="x", reason="")
    assert first is not None
    assert first.epoch == 1
    assert next_table(first, arms, service_id="s", salt="x", reason="") is None
    again = next_table(first, arms, service_id="s", salt="y", reason="")
    assert again is not None
    assert again.epoch == 2


def test_the_breaker_is_closed_only_when_a_release_comes_back() -> None:
    alone = desired_arms(CHAMPION, None, None, {})
    both = desired_arms(CHAMPION, ROLLOUT, CHALLENGER, {"challenger": 0.05})
    more = desired_arms(CHAMPION, ROLLOUT, CHALLENGER, {"challenger": 0.25})
    assert alone is not None
    assert both is not None
    assert more is not None
    first = next_table(None, alone, service_id="s", salt="x", reason="")
    second = next_table(first, both, service_id="s", salt="x", reason="")
    assert second is not None
    assert second.untrip == ("b",)
    third = next_table(second, more, service_id="s", salt="x", reason="")
    assert third is not None
    assert third.untrip == ()


def test_users_are_held_back_on_the_previous_champion() -> None:
    crowned = replace(ROLLOUT, promoted_at=5.0)
    arms = desired_arms(CHALLENGER, crowned, CHALLENGER, {"challenger": 0.95}, CHAMPION)
    assert arms is not None
    held = [(a.name, a.role.value, a.release, a.weight) for a in arms]
    assert held == [("champion", "champion", "b", 0.95), ("holdback", "holdback", "a", 0.05)]
    standby = desired_arms(CHALLENGER, crowned, CHALLENGER, {"challenger": 1.0}, CHAMPION)
    assert standby is not None
    assert [(a.name, a.weight) for a in standby] == [("champion", 1.0), ("holdback", 0.0)]
    gone = replace(CHAMPION, urls=(), ready=False, error="it ended")
    alone = desired_arms(CHALLENGER, crowned, CHALLENGER, {"challenger": 0.95}, gone)
    assert alone is not None
    assert [(a.name, a.weight) for a in alone] == [("champion", 1.0)]


@given(
    share=st.floats(0, 1),
    held=st.floats(0, 0.5),
    up=st.tuples(*[st.integers(0, 3)] * 3),
    promoted=st.booleans(),
)
def test_whoever_answers_the_weights_sum_to_one(
    share: float, held: float, up: tuple[int, int, int], promoted: bool
) -> None:
    """Workers of champion, challenger and previous, as they are cut and started."""

    def status(release: str, count: int) -> ServingStatus:
        urls = tuple(f"http://{release}{k}" for k in range(count))
        error = "" if count else "not deployed"
        return ServingStatus(release=release, ready=count > 0, urls=urls, error=error)

    state = replace(ROLLOUT, promoted_at=1.0 if promoted else None)
    champion, previous = (
        (status("b", up[1]), status("a", up[2])) if promoted else (status("a", up[0]), None)
    )
    weights = {"challenger": 1 - held if promoted else share, "shadow": 0.0}
    arms = desired_arms(champion, state, status("b", up[1]), weights, previous)
    if arms is None:
        assert not champion.urls
        return
    assert abs(sum(a.weight for a in arms) - 1) < 1e-9
    assert all(a.urls and 0 <= a.weight <= 1 for a in arms)
