"""Delivery: each event at least once, in order, and nobody is held up by another's receiver."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from intonaco.clock import FakeClock
from intonaco.config import ON_CALL
from intonaco.errors import Conflict
from intonaco.ledger import Ledger
from intonaco.notify.delivery import Channel, Delivery, standing
from intonaco.notify.telling import message_id, name_of, payload, wanted, words
from intonaco.notify.undelivered import Undelivered
from intonaco.testing.notify import MemoryNotifier
from intonaco.types import Event

AWAY = Undelivered("the receiver answers 500")


class World:
    def __init__(self, path: Path) -> None:
        self.clock = FakeClock()
        self.ledger = Ledger.open(path, "svc")
        self.notifier = MemoryNotifier()
        self.other = MemoryNotifier()
        self.events: tuple[str, ...] = ("*",)
        self.target = "a"
        self.delivery = self.again()

    def again(self, holder: str = "one") -> Delivery:
        """A controller that takes over."""
        with self.ledger.begin() as tx:
            self.fence = tx.lease(holder, self.clock.now(), 10.0)
        assert self.fence is not None
        channels = (
            Channel(name="hook", notifier=self.notifier, events=self.events, target=self.target),
            Channel(name="other", notifier=self.other, events=("notify.*",)),
        )
        self.delivery = Delivery(self.ledger, channels, self.clock)
        self.delivery.lead(self.fence)
        return self.delivery

    def event(self, text: str, kind: str = "champion") -> None:
        with self.ledger.begin() as tx:
            tx.event(self.clock.now(), kind, "r", text)

    def look(self, seconds: float = 0.0) -> None:
        self.clock.advance(seconds)
        self.delivery.look()

    @property
    def told(self) -> list[str]:
        return [e.text for e in self.notifier.events]

    def kinds(self, of: str) -> list[str]:
        return [e.kind for e in self.ledger.events(kind=of)]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "ledger.db")
    yield made
    made.ledger.close()


def test_what_happened_before_is_not_told_and_all_after_is_told_once(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "ledger.db", "svc")
    with ledger.begin() as tx:
        for n in range(300):
            tx.event(float(n), "champion", "r", f"old {n}")
    world = World(tmp_path / "ledger.db")
    world.look()
    assert world.told == []
    for n in range(250):  # more than are read at once
        world.event(f"new {n}")
    world.look()
    world.look()
    world.again("two" if world.clock.advance(60) else "")
    world.look()
    assert world.told == [f"new {n}" for n in range(250)]


def test_a_receiver_that_is_away_is_tried_again_later_and_later(world: World) -> None:
    world.notifier.failing = AWAY
    world.event("first")
    tries = []
    for _ in range(3000):
        before = standing(world.ledger, "hook")
        world.look(1.0)
        after = standing(world.ledger, "hook")
        assert before is not None
        assert after is not None
        if after.tries > before.tries:
            tries.append(world.clock.now())
    waits = [b - a for a, b in itertools.pairwise(tries)]
    assert waits[:9] == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert set(waits[9:]) == {300}
    assert world.kinds("notify") == ["notify.failing"]  # said once, to the others
    assert [e.kind for e in world.other.events] == ["notify.failing"]
    world.notifier.failing = None
    world.event("second")
    world.look(300.0)
    assert world.told[:2] == ["first", "second"]
    world.look()
    assert [e.kind for e in world.other.events] == ["notify.failing", "notify.well"]
    assert all(e.kind == "champion" for e in world.notifier.events)  # never told of itself


def test_what_a_receiver_asks_for_is_waited(world: World) -> None:
    world.notifier.failing = Undelivered("the receiver answers 429", wait_s=120.0)
    world.event("first")
    world.look()
    world.notifier.failing = None
    world.look(119.0)
    assert world.told == []
    world.look(1.0)
    assert world.told == ["first"]


def test_an_event_is_given_up_after_a_day_and_that_is_an_event(world: World) -> None:
    world.notifier.failing = AWAY
    world.event("first")
    world.event("second")
    world.look()
    world.clock.advance(3600.0)
    world.event("an hour later")
    world.look()
    world.look(23 * 3600.0 - 1.0)
    assert world.kinds("notify.given_up") == []
    world.look(301.0)
    (given_up,) = world.ledger.events(kind="notify.given_up")
    assert "2 events" in given_up.text
    assert given_up.subject == "hook"
    world.notifier.failing = None
    world.look(300.0)
    assert world.told == ["an hour later"]
    state = standing(world.ledger, "hook")
    assert state is not None
    assert state.lost == 2
    assert state.tries == 0


def test_a_controller_that_was_down_for_days_tries_before_it_gives_up(world: World) -> None:
    world.event("before the stop")
    world.notifier.failing = AWAY
    world.look()
    world.event("before the stop too")
    world.clock.advance(5 * 86_400.0)
    world.notifier.failing = None
    world.again("two")
    world.look()
    assert world.told == ["before the stop", "before the stop too"]


def test_no_storm_when_a_channel_comes_back_after_a_long_time(world: World) -> None:
    world.event("told")
    world.look()
    for _ in range(200):  # meanwhile it is not configured, and nobody looks
        world.clock.advance(3600.0)
        world.event("meanwhile")
    world.again("two")
    world.look()
    assert 1 < len(world.told) <= 26  # of the last day
    (given_up,) = world.ledger.events(kind="notify.given_up")
    assert f"{201 - len(world.told)} events" in given_up.text


def test_an_event_that_the_receiver_refuses_holds_up_no_other(world: World) -> None:
    world.event("refused")
    world.event("fine")
    real = world.notifier.send

    def send(event: Event) -> None:
        if event.text == "refused":
            raise Undelivered("the receiver answers 422", retriable=False)
        real(event)

    world.notifier.send = send  # type: ignore[method-assign]
    world.look()
    assert world.told == ["fine"]
    (given_up,) = world.ledger.events(kind="notify.given_up")
    assert "422" in given_up.text


def test_one_that_is_gone_is_left_alone_until_it_is_elsewhere(world: World) -> None:
    world.notifier.failing = Undelivered("the receiver answers 410", gone=True)
    world.event("first")
    world.look()
    assert world.kinds("notify") == ["notify.gone"]
    world.notifier.failing = None
    world.again("one")
    world.look(10_000.0)
    assert world.told == []
    world.target = "b"
    world.clock.advance(60)
    world.again("two")
    world.look()
    assert world.told == ["first"]


def test_a_defect_of_a_notifier_is_a_failure_like_another(world: World) -> None:
    world.notifier.failing = ZeroDivisionError("a defect")
    world.event("first")
    world.look()
    world.notifier.failing = None
    world.look(1.0)
    assert world.told == ["first"]


def test_who_lost_the_lease_is_silent(world: World) -> None:
    old = world.delivery
    world.clock.advance(60.0)
    world.event("first")
    world.again("two")
    with pytest.raises(Conflict):
        old.look()  # it may have sent it once, but goes no further
    assert len(world.told) <= 1
    world.look()
    assert set(world.told) == {"first"}
    old.lead(None)
    world.event("second")
    old.look()
    assert "second" not in world.told


def test_a_ledger_that_cannot_be_written_makes_nobody_hear_it_twice(world: World) -> None:
    world.event("first")
    with world.ledger.engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER full BEFORE UPDATE ON consumers"
            " BEGIN SELECT RAISE(ABORT, 'disk full'); END"
        )
    world.look()
    world.look()
    assert world.told == ["first"]
    with world.ledger.engine.begin() as connection:
        connection.exec_driver_sql("DROP TRIGGER full")
    world.event("second")
    world.look()
    world.clock.advance(60.0)
    world.again("two")
    world.look()
    assert world.told == ["first", "second"]


# ------------------------------------------------------------------------------------ what is told


def an_event(kind: str, text: str = "t", **data: object) -> Event:
    return Event(
        at=1.5, service_id="s", kind=kind, subject="f1", actor="a", text=text, data=data, event_id=7
    )


@pytest.mark.parametrize(
    ("event", "name", "told"),
    [
        (an_event("finding"), "finding", True),
        (an_event("finding.cleared"), "finding.cleared", False),
        (an_event("plan", action="tell"), "plan.tell", True),
        (an_event("plan", action="watch"), "plan.watch", False),
        (an_event("update.phase", to="failed"), "update.phase.failed", True),
        (an_event("update.phase", to="train"), "update.phase.train", False),
        (an_event("rollout.rolled_back"), "rollout.rolled_back", True),
        (an_event("rollout.step"), "rollout.step", False),
        (an_event("rollout.asked"), "rollout.asked", True),
        (an_event("update.asked"), "update.asked", True),
        (an_event("update.phase", to="approve"), "update.phase.approve", False),
        (an_event("champion.down"), "champion.down", True),
        (an_event("brake.rollback"), "brake.rollback", True),
        (an_event("routing"), "routing", False),
    ],
)
def test_what_the_person_on_call_hears_of(event: Event, name: str, told: bool) -> None:
    assert name_of(event) == name
    assert wanted(event, ON_CALL) is told


def test_words_of_users_stay_here() -> None:
    quoting = "prompts moved: things like 'my mother in Kassel'"
    for kind in ("finding", "diagnosis", "plan", "trigger.skipped", "finding.again"):
        sent = payload(an_event(kind, quoting, signal="prompts", action="tell", sample="Kassel"))
        assert "Kassel" not in str(sent)
        assert "f1" in sent["text"]
    failed = an_event("update.phase", quoting, to="failed", **{"from": "train"})
    assert "Kassel" not in str(payload(failed))
    assert words(an_event("champion", "a is champion")) == "a is champion"
    assert "data" not in payload(an_event("champion"))


def test_an_event_keeps_its_id_and_another_ledgers_has_another() -> None:
    event = an_event("champion")
    assert message_id(event) == message_id(an_event("champion", "in other words"))
    assert message_id(event) != message_id(replace(event, at=2.5))
