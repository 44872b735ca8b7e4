"""When a champion whose worker ended is started again."""

from __future__ import annotations

import pytest

from intonaco.rollout.restarts import LONGEST_S, STABLE_S, Restarts, decide, wait_after
from intonaco.types import ServingStatus

A, B = "a" * 64, "b" * 64
UP = ServingStatus(release=A, ready=True, urls=("http://a",), attested=A)
LOADING = ServingStatus(release=A, ready=False)
DOWN = ServingStatus(release=A, ready=False, error="out of memory")


def played(seconds: int, stored: Restarts | None = None) -> tuple[list[int], list[str]]:
    """Looks each second at a champion that never comes up: when it was started, what was told."""
    starts, told = list[int](), list[str]()
    for now in range(seconds):
        decision = decide(stored, DOWN, float(now))
        stored = decision.after
        if decision.start:
            starts.append(now)
        if decision.event is not None:
            told.append(decision.event[1])
    return starts, told


def test_waits_double_up_to_a_limit_and_people_are_told_once() -> None:
    starts, told = played(2000)
    assert starts == [0, 2, 6, 14, 30, 62, 126, 254, 510, 810, 1110, 1410, 1710]
    assert len(told) == 1
    assert told[0].startswith("aaaaaaaaaa does not come up, started 3 times: out of memory.")
    assert wait_after(10**6) == LONGEST_S


def test_one_that_is_up_is_left_alone_and_forgotten_once_it_has_stayed() -> None:
    assert not decide(None, UP, 0.0).start
    stored = Restarts(release=A, starts=5, at=100.0, told=True)
    soon = decide(stored, UP, 100.0 + STABLE_S - 1)
    assert (soon.start, soon.after, soon.event) == (False, stored, None)
    well = decide(stored, UP, 100.0 + STABLE_S)
    assert (well.start, well.after) == (False, None)
    assert well.event is not None
    assert well.event[0] == "champion.up"
    quiet = decide(Restarts(release=A, starts=1, at=100.0), UP, 100.0 + STABLE_S)
    assert (quiet.after, quiet.event) == (None, None)


def test_one_that_crashes_again_soon_has_not_started_anew() -> None:
    stored = Restarts(release=A, starts=6, at=100.0, told=True)
    assert decide(stored, UP, 150.0).after == stored
    assert not decide(stored, DOWN, 150.0).start
    again = decide(stored, DOWN, 100.0 + wait_after(6))
    assert (again.start, again.event) == (True, None)
    assert again.after == Restarts(release=A, starts=7, at=100.0 + wait_after(6), told=True)


@pytest.mark.parametrize("stored", [None, Restarts(release=A, starts=4, at=99.0)])
def test_one_that_loads_or_drains_is_looked_after_without_a_count(stored: Restarts | None) -> None:
    decision = decide(stored, LOADING, 100.0)
    assert (decision.start, decision.after) == (True, stored)


def test_another_champion_has_no_past() -> None:
    stored = Restarts(release=B, starts=9, at=99.0, told=True)
    decision = decide(stored, DOWN, 100.0)
    assert (decision.start, decision.after) == (True, Restarts(release=A, starts=1, at=100.0))
    assert decide(stored, UP, 100.0).after is None
