"""Triggers from outside: what fires, once, and why the rest does not."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from intonaco.config import Schedule
from intonaco.decision.triggers import (
    Call,
    News,
    Sign,
    State,
    accept,
    call,
    due_at,
    hold,
    look,
)

ZONE = "Europe/Zurich"


def see(
    state: State, now: float, *signs: Sign, schedule: tuple[Schedule, ...] = (), **more: Any
) -> tuple[State, list[News]]:
    how: dict[str, Any] = {"debounce": 60.0, "time_zone": ZONE, "busy": None} | more
    return look(state, signs, schedule, now=now, **how)


def data(version: str) -> Sign:
    return Sign(key="dataset:cats", fingerprint=version)


def test_what_was_there_at_first_fires_nothing() -> None:
    state, news = see(State(), 0.0, data("v1"))
    assert news == []
    assert see(state, 1000.0, data("v1"))[1] == []


def test_a_change_fires_once_it_has_stood_still() -> None:
    state, _ = see(State(), 0.0, data("v1"))
    state, news = see(state, 10.0, data("v2"))
    assert [(n.fires, n.key) for n in news] == [(False, "dataset:cats")]
    assert "nothing has changed for 60 s" in news[0].text
    state, news = see(state, 30.0, data("v2"))
    assert news == []  # said once
    state, news = see(state, 40.0, data("v3"))  # again: from the beginning
    state, news = see(state, 90.0, data("v3"))
    assert not any(n.fires for n in news)
    state, news = see(state, 100.0, data("v3"))
    assert [(n.fires, n.fingerprint) for n in news] == [(True, "v3")]
    state = accept(state, news[0], 100.0)
    assert see(state, 500.0, data("v3"))[1] == []


def test_what_waits_fires_when_it_waits_no_longer() -> None:
    state, _ = see(State(), 0.0, data("v1"))
    state, _ = see(state, 10.0, data("v2"))
    waiting = replace(data("v2"), waits="its items are being checked")
    state, news = see(state, 80.0, waiting)
    assert [(n.fires, n.text) for n in news] == [(False, "it changed; its items are being checked")]
    state, news = see(state, 90.0, data("v2"))
    assert [(n.fires, n.fingerprint) for n in news] == [(True, "v2")]


def test_until_it_was_accepted_it_fires_again() -> None:
    """A controller that dies between firing and writing it down fires after the restart."""
    state, _ = see(State(), 0.0, data("v1"))
    state, _ = see(state, 10.0, data("v2"))
    after, news = see(state, 80.0, data("v2"))
    assert news[-1].fires
    assert see(after, 81.0, data("v2"))[1][-1].fires


def test_a_change_that_is_taken_back_is_told() -> None:
    state, _ = see(State(), 0.0, data("v1"))
    state, _ = see(state, 10.0, data("v2"))
    state, news = see(state, 20.0, data("v1"))
    assert [n.text for n in news] == ["it changed back"]
    assert see(state, 500.0, data("v1"))[1] == []


def test_busy_waits_and_is_said_once() -> None:
    state, _ = see(State(), 0.0, data("v1"))
    state, _ = see(state, 10.0, data("v2"))
    state, news = see(state, 80.0, data("v2"), busy="update u1 is under way")
    assert [n.fires for n in news] == [False]
    assert "update u1 is under way" in news[0].text
    state, news = see(state, 90.0, data("v2"), busy="update u1 is under way")
    assert news == []
    assert see(state, 95.0, data("v2"))[1][-1].fires


def test_what_is_held_waits_until_then() -> None:
    state, _ = see(State(), 0.0, data("v1"))
    state, _ = see(state, 10.0, data("v2"))
    state, news = see(state, 80.0, data("v2"))
    state = hold(state, news[-1], 1000.0)
    assert see(state, 999.0, data("v2"))[1] == []
    assert see(state, 1000.0, data("v2"))[1][-1].fires


def test_one_at_a_time() -> None:
    signs = (data("v1"), Sign(key="recipe:full", fingerprint="r1"))
    state, _ = see(State(), 0.0, *signs)
    changed = (data("v2"), Sign(key="recipe:full", fingerprint="r2"))
    state, _ = see(state, 10.0, *changed)
    state, news = see(state, 80.0, *changed)
    assert [n.key for n in news if n.fires] == ["dataset:cats"]
    assert any("another came first" in n.text for n in news)
    state = accept(state, news[0], 80.0)
    assert [n.key for n in see(state, 81.0, *changed)[1] if n.fires] == ["recipe:full"]


def test_a_lock_is_compared_with_what_the_champion_runs_in() -> None:
    same = Sign(key="lock:lock.txt", fingerprint="e1", unless="e1")
    state, news = see(State(), 0.0, same)
    assert news == []
    other = Sign(key="lock:lock.txt", fingerprint="e2", unless="e1")
    state, news = see(State(), 0.0, other)  # also at the first look
    assert not news[0].fires
    state, news = see(state, 60.0, other)
    assert news[-1].fires
    state = accept(state, news[-1], 60.0)
    assert see(state, 61.0, other)[1] == []  # the gate refused it: not again and again


def test_what_cannot_be_read_says_why_and_fires_nothing() -> None:
    bad = Sign(key="dvc:data.dvc", problem="data.dvc cannot be read: FileNotFoundError")
    state, news = see(State(), 0.0, bad)
    assert [(n.fires, n.text) for n in news] == [(False, bad.problem)]
    assert see(state, 500.0, bad)[1] == []


def test_calls_are_joined() -> None:
    state = call(State(), Call(at=0.0, actor="ci", reason="nightly"))
    state, news = see(state, 10.0)
    assert not news[0].fires
    state = call(state, Call(at=30.0, actor="ci", reason="again"))
    state, news = see(state, 80.0)
    assert not any(n.fires for n in news)
    state, news = see(state, 90.0)
    assert news[0].fires
    assert "again" in news[0].text
    assert "1 earlier calls" in news[0].text
    assert see(accept(state, news[0], 90.0), 200.0)[1] == []


def test_every_week() -> None:
    weekly = (Schedule(every="7d"),)
    week = 7 * 86_400.0
    state, news = see(State(), 0.0, schedule=weekly)
    assert news == []  # the first look only starts the clock
    assert see(state, week - 1, schedule=weekly)[1] == []
    state, news = see(state, 3 * week, schedule=weekly)  # the controller was away
    assert [n.fires for n in news] == [True]
    state = accept(state, news[0], 3 * week)
    assert see(state, 3 * week + 1, schedule=weekly)[1] == []


def local(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(ZONE)).timestamp()


@pytest.mark.parametrize(
    ("last", "following"),
    [
        ("2026-03-02 02:00", "2026-03-02 03:00"),  # Monday
        ("2026-03-02 03:00", "2026-03-02 15:30"),
        ("2026-03-02 15:30", "2026-03-05 03:00"),  # Thursday
        ("2026-03-28 12:00", "2026-03-30 03:00"),  # over the change to summer time
    ],
)
def test_at_local_times_on_some_days(last: str, following: str) -> None:
    entry = Schedule(at=("03:00", "15:30"), days=("mon", "thu"))
    assert due_at(entry, local(last), ZONE) == local(following)


def test_no_day_is_never() -> None:
    assert due_at(Schedule(at=("03:00",), days=()), 0.0, ZONE) == float("inf")
