"""The ledger: all or none, fenced, migrated to exactly the tables that the code names."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from intonaco.errors import Conflict, NotFound, StorageError
from intonaco.ledger import Effect, Ledger
from intonaco.ledger.schema import metadata
from intonaco.types import (
    Action,
    Arm,
    ArmRole,
    Cause,
    Phase,
    Plan,
    RoutingTable,
    SignalStatus,
    Update,
)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger.open(tmp_path / "ledger.db", "svc")
    yield opened
    opened.close()


def an_update(update_id: str = "u1", phase: Phase = Phase.TRAIN) -> Update:
    plan = Plan(
        plan_id="p1",
        service_id="svc",
        at=1.0,
        action=Action.FINE_TUNE,
        cause=Cause.CONCEPT_DRIFT,
        reason="because",
    )
    return Update(
        update_id=update_id,
        service_id="svc",
        plan=plan,
        phase=phase,
        created_at=1.0,
        phase_since=1.0,
        champion=None,
        candidates=(),
    )


def test_migrations_give_the_tables_of_the_schema(ledger: Ledger) -> None:
    with ledger.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_opening_again_keeps_what_was_written(tmp_path: Path) -> None:
    first = Ledger.open(tmp_path / "l.db", "svc")
    with first.begin() as tx:
        tx.event(1.0, "test", "x", "hello")
    first.close()
    again = Ledger.open(tmp_path / "l.db", "svc")
    assert [e.text for e in again.events()] == ["hello"]
    again.close()


def test_a_newer_ledger_is_refused(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "l.db", "svc")
    with ledger.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    ledger.close()
    with pytest.raises(StorageError, match="9999"):
        Ledger.open(tmp_path / "l.db", "svc")


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "l.db").write_text("not a database, but long enough to be looked at" * 50)
    with pytest.raises(StorageError, match="cannot be opened"):
        Ledger.open(tmp_path / "l.db", "svc")


def test_state_and_event_are_written_together_or_not_at_all(ledger: Ledger) -> None:
    def write_and_fail() -> None:
        with ledger.begin() as tx:
            tx.update(an_update())
            tx.event(1.0, "update.phase", "u1", "training")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_and_fail()
    assert ledger.events() == []
    with pytest.raises(NotFound):
        ledger.get(Update, "u1")


def test_active_updates_are_those_not_final(ledger: Ledger) -> None:
    with ledger.begin() as tx:
        tx.update(an_update("u1"))
        tx.update(an_update("u2", Phase.PROMOTED))
    assert [u.update_id for u in ledger.active_updates()] == ["u1"]
    with ledger.begin() as tx:
        tx.update(an_update("u1", Phase.FAILED))
    assert ledger.active_updates() == []


def test_services_do_not_see_each_other(ledger: Ledger) -> None:
    other = Ledger(ledger.engine, "other")
    with ledger.begin() as tx:
        tx.update(an_update())
        tx.crown("r1", 1.0, "first")
        tx.event(1.0, "test", "x", "mine")
    assert other.all(Update) == []
    assert other.champion() is None
    assert other.events() == []


def test_an_effect_is_asked_for_once(ledger: Ledger) -> None:
    effect = Effect(key="svc:u1:train:1", kind="train", subject="u1", payload={"a": 1})
    with ledger.begin() as tx:
        tx.want(effect, 1.0)
    with ledger.begin() as tx:
        tx.finish_effect(effect.key, 2.0, result={"done": True})
        tx.want(effect, 3.0)
    status = ledger.effects("u1")[effect.key]
    assert (status.status, status.result) == ("done", {"done": True})
    assert ledger.wanted_effects() == []


def test_a_controller_that_lost_its_lease_cannot_write(ledger: Ledger) -> None:
    with ledger.begin() as tx:
        mine = tx.lease("a", 0.0, 10.0)
        assert tx.lease("b", 5.0, 10.0) is None
        assert tx.lease("a", 5.0, 10.0) == mine
    with ledger.begin() as tx:
        theirs = tx.lease("b", 20.0, 10.0)
    assert theirs is not None
    with pytest.raises(Conflict), ledger.begin(fence=mine) as tx:
        tx.event(21.0, "test", "x", "late")
    with ledger.begin(fence=theirs) as tx:
        tx.event(21.0, "test", "x", "in time")
    assert [e.text for e in ledger.events()] == ["in time"]


def test_tenures_say_who_was_champion_when(ledger: Ledger) -> None:
    with ledger.begin() as tx:
        tx.crown("r1", 1.0, "first")
        tx.crown("r2", 5.0, "better")
    assert ledger.champion() == "r2"
    assert ledger.previous() == "r1"
    assert [(t.release_id, t.since, t.until) for t in ledger.tenures()] == [
        ("r1", 1.0, 5.0),
        ("r2", 5.0, None),
    ]


def test_a_routing_epoch_is_given_once(ledger: Ledger) -> None:
    arm = Arm(name="champion", role=ArmRole.CHAMPION, release="r1", urls=("u",), weight=1.0)
    table = RoutingTable(service_id="svc", epoch=1, salt="s", arms=(arm,))
    with ledger.begin() as tx:
        tx.routing(table, 1.0)
    with pytest.raises(Conflict), ledger.begin() as tx:
        tx.routing(table, 2.0)
    assert ledger.latest_routing() == table


def test_money_is_reserved_until_it_is_settled(ledger: Ledger) -> None:
    with ledger.begin() as tx:
        tx.money(1.0, "u1", "reserve", 5.0)
        tx.money(1.0, "u2", "reserve", 7.0)
    assert ledger.spent() == (0.0, 12.0)
    with ledger.begin() as tx:
        tx.money(2.0, "u1", "settle", 4.0)
    assert ledger.spent() == (4.0, 7.0)


def test_commands_wait_until_they_are_taken(ledger: Ledger) -> None:
    with ledger.begin() as tx:
        number = tx.command(1.0, "rollback", "ann", {"to": "r1"})
    (command,) = ledger.new_commands()
    assert (command.kind, command.actor, command.arguments) == ("rollback", "ann", {"to": "r1"})
    assert ledger.command_outcome(number) is None
    with ledger.begin() as tx:
        tx.take_command(number, 2.0, {"ok": True})
    assert ledger.new_commands() == []
    assert ledger.command_outcome(number) == {"ok": True}


def test_signals_settings_and_consumers_come_back(ledger: Ledger) -> None:
    point = SignalStatus(
        signal="prompts",
        detector="e",
        armed=True,
        armed_at=3,
        requests=9,
        value=0.1,
        reference=0.0,
        evidence=1.0,
        threshold=9.0,
        firing=False,
    )
    with ledger.begin() as tx:
        tx.signals(1.0, [point])
        tx.set("frozen", True)
        tx.commit_consumer("monitor", {"scorer/1.jsonl": 10}, {"n": 1}, 1.0)
    assert ledger.signal_points() == [(1.0, [point])]
    assert ledger.setting("frozen") is True
    assert ledger.consumer("monitor") == ({"scorer/1.jsonl": 10}, {"n": 1})


def test_old_signal_points_are_thinned(ledger: Ledger) -> None:
    """A point every 30 s for 60 hours, thinned every second hour."""
    hour, hours = 3600.0, 60
    other = Ledger(ledger.engine, "other")
    with other.begin() as tx:
        tx.signals(1.0, [])
    for begun in range(0, hours, 2):
        with ledger.begin() as tx:
            for k in range(240):
                tx.signals(begun * hour + k * 30.0, [])
            tx.thin_signals((begun + 2) * hour)
    now = hours * hour
    at = [when for when, _ in ledger.signal_points(limit=10**6)]

    def apart(first: float, last: float) -> list[float]:
        """Between the points of that age, in hours."""
        those = [a for a in at if now - first * hour <= a <= now - last * hour]
        return [b - a for a, b in pairwise(those)]

    assert set(apart(0.5, 0)) == {30.0}
    assert len(apart(0.5, 0)) == 59
    assert set(apart(48, 0.6)) == {60.0}
    assert set(apart(60, 48.1)) == {3600.0}
    assert len(apart(60, 48.1)) == 10
    with ledger.begin() as tx:
        tx.thin_signals(now)
    assert [when for when, _ in ledger.signal_points(limit=10**6)] == at, "again changes nothing"
    with ledger.begin() as tx:
        tx.thin_signals(now + 31 * 24 * hour)
    assert ledger.signal_points() == [], "older than a month"
    assert len(other.signal_points()) == 1, "another service's are left alone"


def test_the_lease_of_a_dead_holder_is_not_waited_for(ledger: Ledger) -> None:
    assert ledger.lease_holder() is None
    with ledger.begin() as tx:
        first = tx.lease("host:1", 0.0, 10.0)
    assert ledger.lease_holder() == "host:1"
    with ledger.begin() as tx:
        assert tx.lease("brake:2", 1.0, 10.0, dead="host:9") is None
        second = tx.lease("brake:2", 1.0, 10.0, dead="host:1")
    assert first is not None
    assert second == first + 1
    with pytest.raises(Conflict), ledger.begin(fence=first):
        pass


def test_an_id_may_be_given_by_its_beginning(ledger: Ledger) -> None:
    with ledger.begin() as tx:
        tx.update(an_update("abc123"))
        tx.update(an_update("abd456"))
    assert ledger.get(Update, "abc").update_id == "abc123"
    assert ledger.find(Update, "ab") is None
