"""What can go wrong around a rollout, told to the whole controller over twins of every seam."""

from __future__ import annotations

import json
import logging
import re
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError
from tests.rolling import CONFIG, Rolling
from tests.traffic import Traffic

from intonaco import beginning, brake, commands, emergency, loop, rollout_commands
from intonaco.codec import encode
from intonaco.config import parse
from intonaco.errors import BackendError, Conflict
from intonaco.ledger import Effect, Ledger, store
from intonaco.segment_log import SegmentWriter
from intonaco.types import (
    ArmRole,
    Assessment,
    Finding,
    Phase,
    RolloutStatus,
    RoutingTable,
    Verdict,
)

ROLLED_BACK, PROMOTED = RolloutStatus.ROLLED_BACK, RolloutStatus.PROMOTED
Make = Callable[..., Rolling]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("template") / "service"


@pytest.fixture
def make(tmp_path: Path, template: Path) -> Iterator[Make]:
    made: list[Rolling] = []

    def another(**rollout: Any) -> Rolling:
        made.append(Rolling(tmp_path / f"service-{len(made)}", template, **rollout))
        return made[-1]

    yield another
    for service in made:
        service.close()


@pytest.fixture
def service(make: Make) -> Rolling:
    return make()


def over(service: Rolling) -> Callable[[], bool]:
    return lambda: service.updates()[-1].phase.final


def refusals(service: Rolling) -> list[tuple[str, str]]:
    return [(e.actor, e.text) for e in service.events("rollout.refused")]


@contextmanager
def locked(service: Rolling) -> Iterator[sqlite3.Connection]:
    """Somebody else writes, and does not end."""
    other = sqlite3.connect(service.workspace.ledger, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        yield other
    finally:
        other.rollback()
        other.close()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a lock."""
    monkeypatch.setattr(store, "BUSY_S", 0.01)
    monkeypatch.setattr(brake, "WAIT_S", 0.01)


# ------------------------------------------------------------------ abort, death, silence


@pytest.mark.parametrize("step", [2, 3, 4], ids=["everybody", "promote", "bake"])
def test_abort_during_the_promotion(service: Rolling, step: int) -> None:
    service.to_step(step)
    assert service.shares()[service.second] >= 0.9
    assert service.command("rollout.abort", reason="ugly")["ok"]
    assert service.shares() == {service.first: 1.0}
    assert service.rollout.status is ROLLED_BACK
    assert service.rollout.reason == "aborted by ann: ugly"
    service.until(over(service))
    assert service.updates()[-1].phase is Phase.ROLLED_BACK
    assert service.ledger.champion() == service.first
    assert [t.until for t in service.ledger.tenures()].count(None) == 1


def test_the_champion_dies_during_the_canary(service: Rolling) -> None:
    service.to_step(1)
    service.serving.failing[service.first] = "lost its device"
    for _ in range(5):
        service.tick()
    assert service.shares() == {service.first: 0.5, service.second: 0.5}
    assert service.serving.calls.count(("deploy", service.first)) > 1
    service.evidence.found = Assessment.HARMFUL
    service.tick()
    assert service.rollout.returning  # the challenger answers, the champion would not
    assert service.shares() == {service.first: 0.5, service.second: 0.5}
    del service.serving.failing[service.first]
    service.tick()
    assert service.shares() == {service.first: 1.0}
    assert service.rollout.status is ROLLED_BACK


def test_both_unhealthy(service: Rolling) -> None:
    service.to_step(1)
    service.serving.failing[service.first] = "lost its device"
    service.serving.die(service.second)
    service.tick()
    assert service.rollout.status is ROLLED_BACK  # nobody is worse off for going back
    for _ in range(80):
        service.tick()
    # Users would meet nobody at the champion, and the challenger's place is kept till then.
    assert ("retire", service.second) not in service.serving.calls
    assert service.ledger.champion() == service.first
    del service.serving.failing[service.first]
    service.tick()
    assert service.shares() == {service.first: 1.0}
    service.until(over(service))
    assert service.updates()[-1].phase is Phase.ROLLED_BACK
    assert ("retire", service.first) not in service.serving.calls


def test_a_champion_that_cannot_be_started_keeps_nobody_from_going_back(
    service: Rolling,
) -> None:
    """Its manifest is gone from the disk: what is said about it must not end the tick."""
    service.to_bake()
    shutil.rmtree(service.workspace.releases / service.second)
    service.serving.die(service.second)
    service.until(lambda: service.shares() == {service.first: 1.0}, ticks=3)
    assert service.ledger.champion() == service.first


def test_metrics_vanish(make: Make) -> None:
    service = make(max_seconds=4000)
    service.to_step(1)
    service.evidence.found = Assessment.NO_DATA
    service.evidence.units = 0
    for _ in range(30):
        service.tick(100.0)
    assert service.rollout.step == 1
    assert service.shares() == {service.first: 0.5, service.second: 0.5}
    while not service.rollout.status.final:
        service.tick(100.0)
    assert service.rollout.status is RolloutStatus.INCONCLUSIVE
    assert service.rollout.verdict is Verdict.INCONCLUSIVE
    assert "errors (no data)" in service.rollout.reason
    service.until(over(service))
    assert service.ledger.champion() == service.first


@pytest.mark.parametrize("step", [1, 4], ids=["canary", "bake"])
def test_a_dead_scorer_lets_nothing_pass(make: Make, step: int) -> None:
    """Proven before it died, and every step's time is over: still nobody goes on unseen."""
    service = make(bake_seconds=100)
    service.to_step(step)
    heartbeat = service.workspace.run / "scorer-heartbeat.json"
    heartbeat.parent.mkdir(exist_ok=True)
    heartbeat.write_text(json.dumps({"lag_bytes": 1000}))
    service.controller.watch.last_at = service.clock.now()
    while not service.events("finding"):
        service.evidence.units = 0  # nobody is judged meanwhile
        service.tick(5.0)
    service.evidence.units = 100
    for _ in range(20):
        service.tick(5.0)
    assert service.rollout.step == step
    assert not service.rollout.status.final
    said = [e.text for e in service.events("rollout.waiting")]
    assert said == ["waiting for the scorer, which is silent"]
    heartbeat.write_text(json.dumps({"lag_bytes": 0}))
    service.until(over(service), seconds=5.0)
    assert service.rollout.status is PROMOTED


def with_a_scorer(service: Rolling) -> Rolling:
    extractor = parse(f"{CONFIG}extractor: {{type: clip, path: e, digest: abc}}\n").extractor
    config = service.parts.config.model_copy(update={"extractor": extractor})
    service.parts = replace(service.parts, config=config)
    service.restart()
    return service


def test_where_nothing_scores_a_bake_waits_for_no_scores(make: Make) -> None:
    service = make(bake_seconds=5)
    service.to_bake()
    with closing(SegmentWriter(service.workspace.records, "gateway")) as records:
        records.append(encode(Traffic(at=service.clock.now()).ask().record))
    service.until(over(service), seconds=5.0)
    assert service.rollout.status is PROMOTED
    assert not service.events("finding")


@pytest.mark.parametrize("killed", [False, True], ids=["alive", "killed"])
def test_a_bake_shorter_than_a_silence_does_not_pass_unseen(make: Make, killed: bool) -> None:
    """The scorer died with nothing to do, as its heartbeat still says."""
    service = with_a_scorer(make(bake_seconds=5))
    traffic = Traffic(at=service.clock.now(), release=service.first)
    with closing(SegmentWriter(service.workspace.scores, "scorer")) as scores:
        scores.append(encode(traffic.ask()))
    service.to_bake()
    heartbeat = service.workspace.run / "scorer-heartbeat.json"
    heartbeat.parent.mkdir(exist_ok=True)
    heartbeat.write_text(json.dumps({"at": service.clock.now() - 30.0, "lag_bytes": 0}))
    traffic.at, traffic.release = service.clock.now(), service.second
    seen = traffic.ask()
    with closing(SegmentWriter(service.workspace.records, "gateway")) as records:
        records.append(encode(seen.record))
    for _ in range(4):
        service.tick(5.0)
        if killed:
            service.restart()
    assert not service.rollout.status.final
    (said,) = [e.text for e in service.events("rollout.waiting")]
    assert said == "waiting for the scores of what users were given in this time"
    assert not service.events("finding")
    service.until(lambda: service.events("finding"), seconds=5.0)  # what was stale is told
    with closing(SegmentWriter(service.workspace.scores, "scorer")) as scores:
        scores.append(encode(seen))
    heartbeat.write_text(json.dumps({"at": service.clock.now(), "lag_bytes": 0}))
    service.until(over(service), seconds=5.0)
    assert service.rollout.status is PROMOTED


def test_nobody_goes_on_before_what_was_written_meanwhile_is_read(
    service: Rolling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A controller that was away for the length of a bake comes back to a full log."""
    service.to_bake()
    service.restart()
    monkeypatch.setattr(type(service.controller.watch), "blind", "the records that wait")
    for _ in range(3):
        service.tick(100.0)
    assert not service.rollout.status.final
    monkeypatch.undo()
    service.until(over(service))
    assert service.rollout.status is PROMOTED


def test_what_breaks_elsewhere_keeps_nobody_from_going_back(
    service: Rolling, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.to_step(1)

    def broken(fence: int, now: float) -> None:
        raise ValueError("a detector divided by zero")

    monkeypatch.setattr(service.controller.triggers, "look", broken)
    for _ in range(30):
        with pytest.raises(ValueError, match="divided"):
            service.tick(5.0)
    assert service.rollout.step == 1, "nobody advances on what was not looked at"
    service.evidence.found = Assessment.HARMFUL
    with pytest.raises(ValueError, match="divided"):
        service.tick()
    assert service.shares() == {service.first: 1.0}


def test_a_finding_is_not_lost_with_the_write_that_failed(
    service: Rolling, monkeypatch: pytest.MonkeyPatch, hasty: None
) -> None:
    service.tick()
    watch = service.controller.watch
    finding = watch.monitor.dead_man("clip", service.clock.now(), 61.0, 60.0, "nothing")
    once = iter([finding])
    monkeypatch.setattr(watch.monitor, "silence", lambda *_: next(once, None))
    with locked(service), pytest.raises(OperationalError):
        service.controller.watch.look(1, service.clock.now())
    service.tick()
    assert [f.finding_id for f in service.ledger.all(Finding)] == [finding.finding_id]


# ------------------------------------------------------------------ by hand, behind our back


def by_hand(service: Rolling, *, epoch: int) -> RoutingTable:
    """Everybody to the challenger, by somebody's own table."""
    ours = service.router.table
    assert ours is not None
    arms = tuple(
        replace(a, weight=float(a.role is ArmRole.CHALLENGER), name=a.name) for a in ours.arms
    )
    return replace(ours, epoch=epoch, arms=arms, untrip=(), reason="by hand")


@pytest.mark.parametrize("ahead", [0, 1, 40])
def test_weights_changed_by_hand_are_asserted_again_and_told(service: Rolling, ahead: int) -> None:
    service.to_step(0)
    ours = service.ledger.latest_routing()
    assert ours is not None
    service.router.table = by_hand(service, epoch=ours.epoch + ahead)
    service.tick()
    assert service.shares() == {service.first: 0.8, service.second: 0.2}
    [told] = service.events("routing.foreign")
    assert "challenger" in told.text
    assert "100%" in told.text
    epochs = [table.epoch for _, table in service.ledger.routing_history()]
    assert epochs == sorted(set(epochs))
    for _ in range(5):
        service.tick()
    assert len(service.events("routing.foreign")) == 1, "it does not flap"
    latest = service.ledger.latest_routing()
    assert latest is not None
    assert service.router.table == latest


def test_a_step_does_not_count_while_gateways_follow_somebody_else(service: Rolling) -> None:
    service.to_step(0)
    ours = service.ledger.latest_routing()
    assert ours is not None
    stubborn = service.router
    stubborn.table = by_hand(service, epoch=ours.epoch)

    def refuse(table: RoutingTable) -> None:
        raise BackendError("no", backend="gateway", retriable=True)

    service.parts = replace(service.parts, router=_Deaf(stubborn, refuse))
    service.controller._threads.shutdown(wait=True)
    service.controller = service.another()
    for _ in range(30):
        service.tick()
    assert service.rollout.step == 0
    assert service.rollout.stuck_since is not None


class _Deaf:
    """Says what it follows, and follows nobody else."""

    def __init__(self, router: Any, apply: Callable[[RoutingTable], None]) -> None:
        self.apply = apply
        self.observed = router.observed


def test_weights_edited_in_the_database_are_asserted_again(service: Rolling) -> None:
    service.to_step(0)
    ours = service.ledger.latest_routing()
    assert ours is not None
    edited = by_hand(service, epoch=ours.epoch)
    with sqlite3.connect(service.workspace.ledger) as other:
        other.execute("UPDATE routing SET body = ? WHERE epoch = ?", (encode(edited), ours.epoch))
    other.close()
    service.tick()
    assert service.shares() == {service.first: 0.8, service.second: 0.2}
    assert len(service.events("routing.foreign")) == 1
    service.tick()
    assert len(service.events("routing.foreign")) == 1


def test_asserting_again_closes_no_breaker(service: Rolling) -> None:
    service.to_step(0)
    ours = service.ledger.latest_routing()
    assert ours is not None
    assert service.second in ours.untrip
    service.router.table = by_hand(service, epoch=ours.epoch + 1)
    service.router.trip(service.second, service.clock.now())
    service.evidence.found = Assessment.UNDECIDED
    service.tick()
    assert service.second in service.router.trips
    assert service.rollout.status is ROLLED_BACK
    assert service.shares() == {service.first: 1.0}


def test_a_gateway_that_comes_back_with_an_old_table(service: Rolling) -> None:
    service.tick()
    old = service.router.table
    service.to_step(1)
    service.router.table = old
    service.tick()
    assert service.shares() == {service.first: 0.5, service.second: 0.5}
    applied = len(service.router.applied)
    for _ in range(5):
        service.tick(0.1)
    assert len(service.router.applied) == applied
    assert service.events("routing.foreign") == []


# ------------------------------------------------------------------ clocks


@pytest.mark.parametrize("jump", [-3600.0, 86_400.0])
def test_the_clock_jumps_during_a_canary(service: Rolling, jump: float) -> None:
    service.to_step(0)
    began = service.rollout.history[0].entered_at
    service.tick(jump)
    assert service.rollout.step == 0, "no early promotion"
    [told] = service.events("rollout.clock")
    assert f"{jump:+.0f} s" in told.text
    for _ in range(4):
        service.tick()
    assert service.rollout.step == 0
    assert service.rollout.history[0].entered_at != began
    service.until(lambda: service.rollout.step == 1, ticks=12)
    service.until(over(service))
    assert service.rollout.status is PROMOTED
    lasted = [(h.left_at or 0.0) - h.entered_at for h in service.rollout.history]
    assert all(0.0 <= seconds < 60.0 for seconds in lasted), lasted
    assert service.rollout.ended_at is not None
    assert service.rollout.ended_at >= service.rollout.started_at


@pytest.mark.parametrize("jump", [-3600.0, 86_400.0])
def test_the_clock_jumps_during_an_approval(make: Make, jump: float) -> None:
    steps: list[dict[str, Any]] = [
        {"weight": 0.5, "min_seconds": 1, "min_units": 0},
        {"kind": "approve", "deadline_s": 100},
    ]
    service = make(steps=steps)
    service.to_step(1)
    service.tick(jump)
    for _ in range(50):
        service.tick()
    assert service.rollout.step == 1, "an approval is never skipped"
    assert not service.rollout.status.final, "nor is its deadline used up by a clock"
    assert service.command("rollout.approve")["ok"]
    service.until(over(service))
    assert service.rollout.status is PROMOTED


@pytest.mark.parametrize("jump", [-3600.0, 86_400.0])
def test_the_clock_jumps_during_a_bake(service: Rolling, jump: float) -> None:
    service.to_bake()
    service.tick(jump)
    for _ in range(15):
        service.tick()
    assert not service.rollout.status.final, "the bake lasts as long as it was asked to"
    service.until(over(service), ticks=10)
    assert service.rollout.status is PROMOTED


def test_a_breaker_that_tripped_after_the_clock_was_set_back(service: Rolling) -> None:
    service.to_step(1)
    service.tick(-3600.0)
    service.router.trip(service.second, service.clock.now())
    service.tick()
    assert service.rollout.status is ROLLED_BACK
    assert service.shares() == {service.first: 1.0}


def test_a_champion_that_dies_after_the_clock_was_set_back(service: Rolling) -> None:
    service.tick()
    service.serving.die(service.first)
    service.tick()
    service.clock.advance(-3600.0)
    service.serving.die(service.first)
    starts = service.serving.deployments[service.first]
    service.tick()
    service.tick()
    assert service.serving.deployments[service.first] > starts


def test_a_new_controller_need_not_wait_for_an_hour_that_was_set_back(service: Rolling) -> None:
    service.tick()
    service.clock.advance(-3600.0)
    other = service.another("two")
    assert other.tick()
    assert not service.controller.tick()
    other.close()


# ------------------------------------------------------------------ storage


def test_the_database_is_locked_by_somebody_else(
    service: Rolling, hasty: None, caplog: pytest.LogCaptureFixture
) -> None:
    """The controller's own loop: it survives, says so once, and goes on."""
    service.to_step(1)
    before = service.shares()
    stop = threading.Event()
    done = threading.Event()
    tick, ticks = service.controller.tick, []

    def counted() -> bool:
        ticks.append(1)
        if len(ticks) >= 4:
            done.set()
        return tick()

    service.controller.tick = counted  # type: ignore[method-assign]
    service.controller.close = lambda: None  # type: ignore[method-assign]
    stop.wait = lambda timeout=None: done.is_set() and stop.is_set()  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING, logger="intonaco.controller"):
        with locked(service):
            thread = threading.Thread(
                target=service.controller.run, args=(stop,), kwargs={"seconds": 0.0}
            )
            thread.start()
            assert done.wait(60.0)
            assert service.shares() == before
        while not service.events("controller.storage"):
            assert thread.is_alive()
        stop.set()
        thread.join()
    del service.controller.tick, service.controller.close
    said = [r.message for r in caplog.records if "locked" in r.message]
    assert said == ["nothing can be decided, gateways serve on: database is locked"]
    [told] = service.events("controller.storage")
    assert "nothing was decided then" in told.text
    service.until(over(service))
    assert service.rollout.status is PROMOTED


def test_a_locked_ledger_can_be_opened_and_read(service: Rolling, hasty: None) -> None:
    service.to_step(1)
    with locked(service):
        again = Ledger.open(service.workspace.ledger, "svc")
        assert again.champion() == service.first
        again.close()


@pytest.mark.parametrize("kind", ["rollback", "abort"])
@pytest.mark.parametrize("step", [1, 4], ids=["canary", "bake"])
def test_the_brake_with_the_ledger_locked(
    service: Rolling, hasty: None, kind: str, step: int
) -> None:
    service.to_step(step)
    service.submit("rollout.pause", actor="bob")
    with locked(service):
        if kind == "rollback":
            text = brake.rollback(service.parts, None, "ann", "ugly")
        else:
            text = brake.abort(service.parts, "ann", "ugly")
        assert "the ledger learns of it" in text
        assert service.shares() == {service.first: 1.0}
        with pytest.raises(OperationalError):
            service.controller.tick()
        assert service.shares() == {service.first: 1.0}
    epoch = service.router.table.epoch if service.router.table else 0
    for _ in range(3):
        service.tick()
        assert service.shares() == {service.first: 1.0}, "the brake is not undone"
    latest = service.ledger.latest_routing()
    assert latest is not None
    assert latest.epoch >= epoch
    assert emergency.waiting(service.workspace) == []
    assert service.rollout.status is ROLLED_BACK
    assert service.rollout.verdict is Verdict.FAIL
    assert service.rollout.reason == f"emergency {kind} by ann: ugly"
    assert service.ledger.champion() == service.first
    [told] = service.events(f"brake.{kind}")
    assert told.actor == "ann"
    assert service.events("routing.foreign") == []
    service.until(over(service))
    assert service.updates()[-1].phase is Phase.ROLLED_BACK
    assert ("retire", service.second) in service.serving.calls
    refused = service.events("command.refused") + service.events("rollout.refused")
    assert [e.actor for e in refused] == ["bob"], "what was pending is answered"


def test_freeze_with_the_ledger_locked(service: Rolling, hasty: None) -> None:
    service.to_step(0)
    with locked(service):
        assert "before it does anything" in brake.switch(service.parts, "freeze", "ann", "look")
    for _ in range(30):
        service.tick()
    assert service.rollout.step == 0
    [told] = service.events("brake.freeze")
    assert told.text == "freeze by ann: look"
    with locked(service):
        brake.switch(service.parts, "unfreeze", "ann")
    service.until(lambda: service.rollout.step == 1, ticks=3)


def test_the_brake_is_written_down_once(service: Rolling, hasty: None) -> None:
    """Killed after it was written down and before the note was deleted."""
    service.to_step(1)
    with locked(service):
        brake.abort(service.parts, "ann")
    [note] = emergency.waiting(service.workspace)
    text = note.read_bytes()
    service.tick()
    note.write_bytes(text)
    service.tick()
    assert len(service.events("brake.abort")) == 1
    assert emergency.waiting(service.workspace) == []


def test_a_note_that_cannot_be_read_is_put_aside(service: Rolling) -> None:
    file = service.workspace.ledger.parent / "emergency" / "0.json"
    file.parent.mkdir()
    file.write_text("{")
    service.tick()
    assert emergency.waiting(service.workspace) == []
    assert file.with_suffix(".unreadable").read_text() == "{"


def test_the_brake_cancels_what_was_to_be_compared_with_whom_it_left(service: Rolling) -> None:
    service.to_bake()
    service.until(over(service))
    plan = replace(service.updates()[-1].plan, plan_id="next", assemble={"name": "x"})
    with service.ledger.begin() as tx:
        update = loop.start(plan, service.ledger.champion(), service.clock.now())
        beginning.begin_update(service.parts, tx, update, service.clock.now())
    service.controller.close()
    assert "went back" in brake.rollback(service.parts, service.first, "ann")
    service.controller = service.another()
    service.until(lambda: service.ledger.get(type(update), update.update_id).phase.final)
    assert service.ledger.get(type(update), update.update_id).phase is Phase.CANCELLED
    assert service.ledger.champion() == service.first


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[None]:
    """A file system of that size at ``folder``; skips where nobody may mount one."""
    folder.mkdir()
    size = f"size={kilobytes}k"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "none", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(file: Path) -> None:
    with file.open("wb", buffering=0) as to:
        try:
            while to.write(bytes(4096)):
                pass
        except OSError:
            return


@pytest.mark.skipif(shutil.which("mount") is None, reason="there is no mount here")
def test_a_full_disk(tmp_path: Path, template: Path) -> None:
    """Nothing is decided and nothing is lost; the table that is followed stays; and it goes on."""
    with small_disk(tmp_path / "disk", 8000):
        service = Rolling(tmp_path / "disk" / "service", template)
        try:
            service.to_step(1)
            before, step = service.shares(), service.rollout.step_since
            ballast = tmp_path / "disk" / "ballast"
            fill(ballast)
            failed = 0
            while not failed:
                try:
                    service.submit("rollout.x")  # a command that is refused: an event each
                    service.tick()
                except (OperationalError, OSError):
                    failed += 1
            assert service.shares() == before
            # The emergency brake needs no disk.
            assert "the ledger learns of it" in brake.abort(service.parts, "ann")
            assert service.shares() == {service.first: 1.0}
            ballast.unlink()
            for _ in range(3):
                service.tick()
            assert service.rollout.step_since >= step
            assert service.shares() == {service.first: 1.0}
        finally:
            service.close()


# ------------------------------------------------------------------ people


def test_an_approval_of_a_step_that_comes_after_the_deadline(make: Make) -> None:
    steps: list[dict[str, Any]] = [
        {"weight": 0.5, "min_seconds": 1, "min_units": 0},
        {"kind": "approve", "deadline_s": 20},
    ]
    service = make(steps=steps)
    service.to_step(1)
    service.clock.advance(30.0)  # the controller was busy
    service.command("rollout.approve", reason="sorry")
    assert service.rollout.status is RolloutStatus.INCONCLUSIVE
    assert refusals(service) == [
        ("ann", "approve refused: it is over: nobody approved within 20 s")
    ]
    assert service.events("rollout.inconclusive")[0].actor == "controller"
    service.until(over(service))
    assert service.ledger.champion() == service.first


def test_an_approval_that_may_be_late_counts(make: Make) -> None:
    steps: list[dict[str, Any]] = [
        {"weight": 0.5, "min_seconds": 1, "min_units": 0},
        {"kind": "approve", "deadline_s": 20, "on_timeout": "hold"},
    ]
    service = make(steps=steps)
    service.to_step(1)
    service.clock.advance(30.0)
    service.command("rollout.approve", reason="sorry")
    assert service.rollout.step == 2
    assert refusals(service) == []
    assert len(service.events("rollout.overdue")) == 1


@pytest.mark.parametrize("late", [False, True])
def test_an_approval_of_an_update_counts_by_when_it_was_given(service: Rolling, late: bool) -> None:
    changed = service.parts.config.approval.model_copy(update={"mode": "ask", "timeout_s": 50.0})
    found = service.parts.config.model_copy(update={"approval": changed})
    service.parts = replace(service.parts, config=found)
    service.controller = service.another()
    service.begin()
    service.until(lambda: service.updates()[-1].phase is Phase.APPROVE)
    update = service.updates()[-1]
    service.clock.advance(60.0 if late else 40.0)
    number = service.submit("update.approve", update=update.update_id)
    service.clock.advance(60.0)
    service.tick()
    outcome = service.ledger.command_outcome(number)
    assert outcome is not None
    assert outcome["ok"] is not late
    service.until(lambda: service.updates()[-1].phase is not Phase.APPROVE, ticks=5)
    assert service.updates()[-1].phase is (Phase.REJECTED if late else Phase.ROLLOUT)


def test_a_command_given_twice_is_carried_out_once(service: Rolling) -> None:
    service.to_step(0)
    first, second = service.submit("rollout.pause"), service.submit("rollout.pause", actor="bob")
    service.tick()
    assert service.ledger.command_outcome(first)["ok"]  # type: ignore[index]
    assert service.ledger.command_outcome(second) == {
        "ok": False,
        "text": "ann has just asked for pause",
    }
    assert service.rollout.status is RolloutStatus.PAUSED
    assert len(service.events("rollout.paused")) == 1


def test_an_abort_wins_and_all_others_are_answered(service: Rolling) -> None:
    service.to_step(0)
    service.submit("rollout.promote", actor="bob")
    service.submit("rollout.pause", actor="eve")
    service.submit("rollout.abort", actor="ann", reason="stop")
    late = service.submit("rollout.resume", actor="joe")
    service.tick()
    assert service.rollout.status is ROLLED_BACK
    assert service.rollout.reason == "aborted by ann: stop"
    assert refusals(service) == [
        ("bob", "promote refused: ann aborts the rollout"),
        ("eve", "pause refused: ann aborts the rollout"),
    ]
    outcome = service.ledger.command_outcome(late)
    assert outcome is not None
    assert not outcome["ok"]


def test_commands_are_carried_out_in_their_order(service: Rolling) -> None:
    service.to_step(0)
    service.submit("rollout.skip", actor="bob")
    service.submit("rollout.pause", actor="eve")
    service.tick()
    service.tick()
    assert (service.rollout.step, service.rollout.status) == (1, RolloutStatus.PAUSED)
    done = [(e.kind, e.actor) for e in service.ledger.events(kind="rollout")][-2:]
    assert done == [("rollout.step", "bob"), ("rollout.paused", "eve")]


@pytest.mark.parametrize("restart", [False, True])
def test_commands_that_wait_when_it_ends_are_answered(service: Rolling, restart: bool) -> None:
    service.to_step(1)
    service.submit("rollout.skip", actor="bob")
    service.submit("rollout.pause", actor="eve")
    if restart:
        commands.take(service.parts, 1, service.clock.now())
        service.restart()
    service.evidence.found = Assessment.HARMFUL
    service.tick()
    assert service.rollout.status is ROLLED_BACK
    assert [actor for actor, _ in refusals(service)] == ["eve", "bob"]
    assert all("refused: it is over: harmful" in text for _, text in refusals(service))
    assert service.events("rollout.rolled_back")[0].actor == "controller"
    assert rollout_commands.asked(service.ledger, service.rollout.rollout_id) == []


def test_a_command_of_an_older_version_is_taken(service: Rolling) -> None:
    """It kept one command, not a list."""
    service.to_step(0)
    said = {"command": "pause", "actor": "ann", "reason": "", "at": service.clock.now()}
    with service.ledger.begin() as tx:
        tx.set(f"rollout:{service.rollout.rollout_id}", said)
    service.tick()
    assert service.rollout.status is RolloutStatus.PAUSED


def test_rollback_when_the_previous_release_is_retired(service: Rolling) -> None:
    service.to_bake()
    service.until(over(service))
    assert ("retire", service.first) in service.serving.calls
    service.serving.polls_until_ready = 5
    outcome = service.command("rollback", reason="ugly")
    assert outcome["text"] == (
        f"going back to {service.first[:10]}: it is not loaded; it is started, and users stay on "
        f"{service.second[:10]} until it answers"
    )
    while service.updates()[-1].phase is Phase.STAGE:
        assert service.shares() == {service.second: 1.0}
        service.tick()
    service.until(lambda: service.shares().get(service.first) == 1.0)
    assert service.updates()[-1].phase is not Phase.APPROVE
    service.until(over(service))
    assert service.ledger.champion() == service.first


def test_rollback_says_how_long_it_took_the_last_time(service: Rolling) -> None:
    service.to_bake()
    service.until(over(service))
    assert service.command("rollback")["ok"]
    service.until(over(service))
    text = service.command("rollback", to=service.second)["text"]
    assert re.search("until it answers, which took [1-5] s the last time$", text)


def test_rollback_needs_no_approval_and_passes_a_freeze(service: Rolling) -> None:
    changed = service.parts.config.approval.model_copy(update={"mode": "ask"})
    service.to_bake()
    service.until(over(service))
    found = service.parts.config.model_copy(update={"approval": changed})
    service.parts = replace(service.parts, config=found)
    service.controller = service.another()
    assert service.command("freeze")["ok"]
    assert service.command("rollback", reason="ugly")["ok"]
    service.until(over(service))
    assert service.ledger.champion() == service.first


def test_rollback_while_the_old_champion_drains(service: Rolling) -> None:
    service.to_bake()
    service.router.in_flight[service.first] = 1  # a long request
    service.until(lambda: service.rollout.status.final)
    service.tick()
    assert service.updates()[-1].phase is Phase.BAKE
    outcome = service.command("rollback", reason="ugly")
    assert outcome["ok"], outcome
    assert outcome["text"].endswith("it is warm")
    service.until(lambda: service.shares() == {service.first: 1.0}, ticks=5)
    service.until(over(service))
    assert [u.phase for u in service.updates()] == [Phase.PROMOTED, Phase.PROMOTED]
    assert ("retire", service.first) not in service.serving.calls
    assert service.ledger.champion() == service.first


def test_the_champion_is_never_retired(service: Rolling) -> None:
    service.tick()
    service.begin()
    update = service.updates()[-1]
    effect = Effect(
        key="x", kind="retire", subject=update.update_id, payload={"name": service.first}
    )
    service.clock.advance(10_000.0)
    outcome = service.controller.executor.run(effect)
    assert "is the champion" in str(outcome)
    assert ("retire", service.first) not in service.serving.calls


def test_challenger_and_champion_are_the_same_release(service: Rolling) -> None:
    """However it came to that: users notice nothing, and the release is not retired."""
    service.begin(service.first)
    service.serving.failing[service.first] = "it lost its device this very moment"
    service.until(over(service))
    assert service.updates()[-1].phase is Phase.FAILED
    assert "is the champion already" in service.updates()[-1].reason
    del service.serving.failing[service.first]
    for _ in range(10):
        service.tick()
    assert service.shares() == {service.first: 1.0}
    assert ("retire", service.first) not in service.serving.calls
    assert service.ledger.champion() == service.first


def test_what_is_champion_already_is_not_tried_again(service: Rolling) -> None:
    service.to_step(1)
    service.command("rollout.abort")
    service.until(over(service))
    with service.ledger.begin() as tx:  # somebody went there by the brake
        tx.crown(service.second, service.clock.now(), "by hand")
    outcome = service.command("rollout.retry")
    assert outcome == {"ok": False, "text": f"{service.second[:10]} is the champion already"}


def test_retry_during_the_bake(service: Rolling) -> None:
    service.to_bake()
    outcome = service.command("rollout.retry")
    assert not outcome["ok"]
    assert "an update is running" in outcome["text"]
    service.until(over(service))
    assert service.rollout.status is PROMOTED


# ------------------------------------------------------------------ two controllers


def test_a_controller_that_was_suspended_writes_nothing_more(
    service: Rolling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds its breath in the middle of a tick; another takes over, rolls back, and is done."""
    service.to_step(1)
    other = service.another("two")
    look = service.controller.watch.look

    def suspended(fence: int, now: float) -> None:
        service.clock.advance(60.0)
        service.evidence.found = Assessment.HARMFUL
        assert other.tick()
        service.evidence.found = Assessment.NON_INFERIOR
        look(fence, now)

    monkeypatch.setattr(service.controller.watch, "look", suspended)
    with pytest.raises(Conflict, match="taken over"):
        service.controller.tick()
    monkeypatch.undo()
    assert service.rollout.status is ROLLED_BACK
    assert service.shares() == {service.first: 1.0}
    assert not service.controller.tick(), "it stands by"
    assert len(service.events("rollout.rolled_back")) == 1
    service.controller, one = other, service.controller
    service.until(over(service))
    one.close()
    assert service.ledger.champion() == service.first
