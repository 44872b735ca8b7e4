"""Gateways of one workspace share table and trips through its files."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from intonaco.errors import Conflict, StorageError
from intonaco.messages import table_digest
from intonaco.serving.gateway import state as module
from intonaco.serving.gateway.state import GatewayState
from intonaco.types import Arm, ArmRole, RoutingTable
from intonaco.workspace import Workspace

OLD, NEW = "a" * 64, "b" * 64


def table(epoch: int, *, untrip: tuple[str, ...] = (), salt: str = "s") -> RoutingTable:
    arms = (
        Arm(name="champion", role=ArmRole.CHAMPION, release=OLD, urls=("http://o",), weight=0.75),
        Arm(
            name="challenger:x",
            role=ArmRole.CHALLENGER,
            release=NEW,
            urls=("http://n",),
            weight=0.25,
        ),
    )
    return RoutingTable(service_id="s", epoch=epoch, salt=salt, arms=arms, untrip=untrip)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def gateway(workspace: Workspace) -> GatewayState:
    state = GatewayState(workspace, 3)
    state.load()
    return state


def trip(state: GatewayState, release: str = NEW, at: float = 1.0) -> None:
    for i in range(3):
        state.hard_failure(release, at + i, unit=f"u{i}", prompt="p", reason="500")


def test_a_trip_in_one_is_in_force_in_the_other(workspace: Workspace) -> None:
    a, b = gateway(workspace), gateway(workspace)
    a.apply(table(1))
    trip(a)
    assert b.tripped() == set()
    b.look()
    assert b.table == a.table
    assert b.tripped() == {NEW}
    assert b.observed().weights == {"champion": 1.0, "challenger:x": 0.0}
    assert b.trips() == a.trips()


def test_failures_are_counted_by_each_gateway_for_itself(workspace: Workspace) -> None:
    a, b = gateway(workspace), gateway(workspace)
    for state in (a, b):
        for i in range(2):
            state.hard_failure(NEW, float(i), unit=f"u{i}", prompt="p", reason="500")
        state.look()
    assert a.tripped() == b.tripped() == set()


def test_trips_of_two_at_once_are_both_kept(workspace: Workspace) -> None:
    a, b = gateway(workspace), gateway(workspace)
    trip(a)
    trip(b, OLD)  # before it has looked
    assert b.tripped() == {OLD, NEW}
    a.look()
    assert a.tripped() == {OLD, NEW}


def test_only_a_newer_table_unties_and_it_does_so_everywhere(workspace: Workspace) -> None:
    a, b, c = (gateway(workspace) for _ in range(3))
    a.apply(table(1))
    trip(a)
    b.apply(table(2))
    assert b.tripped() == {NEW}
    with pytest.raises(Conflict):
        a.apply(table(1, untrip=(NEW,)))
    b.apply(table(3, untrip=(NEW,)))
    b.apply(table(4))  # ``a`` and ``c`` never see table 3
    for state in (a, c):
        state.look()
        assert state.table == table(4)
        assert state.tripped() == set()


def test_failures_from_before_an_untrip_trip_nothing_after_it(workspace: Workspace) -> None:
    a, b = gateway(workspace), gateway(workspace)
    a.apply(table(1))
    b.look()
    for i in range(2):
        b.hard_failure(NEW, float(i), unit=f"u{i}", prompt="p", reason="500")
    a.apply(table(2, untrip=(NEW,)))
    b.hard_failure(NEW, 3.0, unit="u3", prompt="p", reason="500")
    assert b.table == table(2, untrip=(NEW,))
    assert b.tripped() == set()
    assert gateway(workspace).tripped() == set()


def test_older_tables_are_refused_by_each(workspace: Workspace) -> None:
    a, b = gateway(workspace), gateway(workspace)
    a.apply(table(5))
    with pytest.raises(Conflict, match="older"):
        b.apply(table(4))
    with pytest.raises(Conflict, match="another table"):
        b.apply(table(5, salt="other"))
    b.apply(table(5))
    assert b.table == table(5)


def test_a_restart_comes_back_to_the_same(workspace: Workspace) -> None:
    a = gateway(workspace)
    a.apply(table(7))
    trip(a)
    back = gateway(workspace)
    assert (back.table, back.trips()) == (a.table, a.trips())


def test_killed_between_the_two_files_an_untrip_still_counts(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = gateway(workspace)
    a.apply(table(1))
    trip(a)

    def killed(self: GatewayState) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(GatewayState, "_save_trips", killed)
    with pytest.raises(KeyboardInterrupt):
        a.apply(table(2, untrip=(NEW,)))
    monkeypatch.undo()
    back = gateway(workspace)
    assert back.table == table(2, untrip=(NEW,))
    assert back.tripped() == set()


def test_a_full_disk_holds_up_neither_trip_nor_table(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = gateway(workspace), gateway(workspace)
    a.apply(table(1))

    def full(path: Path, data: bytes | str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_atomic", full)
    trip(a)
    assert a.tripped() == {NEW}
    a.apply(table(2))
    assert a.table == table(2)
    a.look()
    assert a.tripped() == {NEW}
    monkeypatch.undo()
    b.apply(table(3))  # what others write in the meantime does not undo it
    a.look()
    assert (a.table, a.tripped()) == (table(3), {NEW})
    a.apply(table(4))
    b.look()
    assert b.tripped() == {NEW}
    a.apply(table(5, untrip=(NEW,)))
    assert a.tripped() == set()


def test_files_that_cannot_be_read_change_nothing_later_and_stop_a_start(
    workspace: Workspace,
) -> None:
    a = gateway(workspace)
    a.apply(table(1))
    (workspace.run / "routing.json").write_text("{")
    a.look()
    assert a.table == table(1)
    with pytest.raises(StorageError):
        gateway(workspace)
    a.apply(table(2))
    assert gateway(workspace).table == table(2)


def test_a_sibling_that_hangs_with_the_lock_holds_nobody_up(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOCK_S", 0.02)
    a = gateway(workspace)
    a.apply(table(1))
    with (workspace.run / "gateways.lock").open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        a.apply(table(2))
        trip(a)
    assert gateway(workspace).tripped() == {NEW}


def test_a_table_that_was_followed_before_closes_no_breaker_again(workspace: Workspace) -> None:
    """The file of the table is an older one; that of the trips knows better."""
    a = gateway(workspace)
    a.apply(table(1))
    before = (workspace.run / "routing.json").read_bytes()
    newer = table(2, untrip=(NEW,))
    a.apply(newer)
    trip(a)
    (workspace.run / "routing.json").write_bytes(before)
    b = gateway(workspace)
    assert b.observed().epoch == 1
    assert b.tripped() == {NEW}
    trip(b, OLD, at=9.0)  # it writes the trips, with the epoch that they had
    b.apply(newer)
    assert b.tripped() == {NEW, OLD}
    assert gateway(workspace).tripped() == {NEW, OLD}
    b.apply(table(3, untrip=(NEW, OLD)))
    assert b.tripped() == set()


def test_a_gateway_names_the_table_that_it_follows(workspace: Workspace) -> None:
    state = gateway(workspace)
    assert state.observed().table == ""
    state.apply(table(1))
    assert state.observed().table == table_digest(table(1))
    assert table_digest(table(1)) not in (table_digest(table(2)), table_digest(table(1, salt="x")))
