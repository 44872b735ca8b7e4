"""Whatever happens, in whatever order: the real controller and ledger over twins, and what holds
after every look.

The machine alone has such a test of its own (``test_rollout_machine``); this one adds what lies
around it: commands, the brake, gateways, workers, restarts, clocks, update after update.
"""

from __future__ import annotations

import itertools
import logging
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tests.rolling import Rolling

from intonaco import brake, rollout_commands
from intonaco.codec import encode
from intonaco.errors import IntonacoError
from intonaco.serving.gateway.routing import check_table
from intonaco.types import (
    Assessment,
    Phase,
    Rollout,
    RolloutStatus,
    RoutingTable,
    StepKind,
)

PROVEN = (Assessment.NON_INFERIOR, Assessment.SUPERIOR)
ROLLOUT = ("pause", "resume", "abort", "promote", "skip", "approve", "retry")
COMMANDS = (*(f"rollout.{c}" for c in ROLLOUT), "rollback", "freeze", "unfreeze", "update.cancel")

SOON = st.sampled_from([None, 0.0, 1.0, 6.0])  # how long after it the controller looks, if now
RELEASES = st.sampled_from(["first", "second", "third"])


def canary(weight: float) -> dict[str, Any]:
    return {"weight": weight, "min_seconds": 5, "min_units": 5}


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    """A ``rollout`` section, with steps of any kinds in an order that makes sense."""
    waits: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
        [
            {"kind": "approve", "deadline_s": 60},
            {"kind": "approve", "deadline_s": 60, "on_timeout": "hold"},
            {"kind": "approve"},
            {"kind": "pause", "min_seconds": 5},
            {"kind": "pause", "min_seconds": None},
            {"kind": "analysis"},
        ]
    )
    steps: list[dict[str, Any]] = [{"kind": "stage"}] if draw(st.booleans()) else []
    if draw(st.booleans()):
        steps.append({"kind": "shadow", "weight": 0.3, "min_seconds": 5, "min_units": 5})
    weights = sorted(draw(st.sets(st.sampled_from([0.1, 0.5, 1.0]), min_size=1)))
    for weight in weights:
        steps += draw(st.lists(waits, max_size=1))
        steps.append(canary(weight))
    strategy = draw(st.sampled_from(["canary", "canary", "blue_green", "shadow_only"]))
    return {
        "steps": steps,
        "strategy": strategy,
        "baseline": strategy == "canary" and weights[0] <= 0.5 and draw(st.booleans()),
        "bake_seconds": draw(st.sampled_from([0, 20])),
        "holdback": draw(st.sampled_from([0.0, 0.1])),
        "max_seconds": draw(st.sampled_from([100, 100_000])),
        "on_inconclusive": draw(st.sampled_from(["abort", "hold"])),
        "stuck_seconds": draw(st.sampled_from([0, 50])),
        "drain_seconds": 10,
    }


class AnyOrder(RuleBasedStateMachine):
    """One service's life."""

    folder: Path
    numbers = itertools.count()

    @initialize(given=configurations())
    def begin(self, given: dict[str, Any]) -> None:
        root = self.folder / f"service-{next(self.numbers)}"
        self.s = Rolling(root, self.folder / "template", **given)
        self.final: dict[str, str] = {}
        self.seen = (0, 0)
        self.tables: list[RoutingTable] = []
        self.asked: dict[str, int] = {}
        self.people = (f"p{n}" for n in itertools.count())
        self.s.tick()
        self.s.begin()
        self.s.until(lambda: self.running() is not None)

    def teardown(self) -> None:
        if hasattr(self, "s"):
            self.s.close()
            shutil.rmtree(self.s.root)

    # ------------------------------------------------------------------ what happens outside

    @rule(
        found=st.sampled_from([*PROVEN, *Assessment]),
        units=st.sampled_from([0, 100, 100]),
        then=SOON,
    )
    def evidence(self, found: Assessment, units: int, then: float | None) -> None:
        self.s.evidence.found, self.s.evidence.units = found, units
        self.look(then)

    @rule(times=st.integers(1, 8))
    def all_is_well(self, times: int) -> None:
        s = self.s
        s.evidence.found, s.evidence.units = Assessment.NON_INFERIOR, 100
        s.serving.failing.clear()
        s.router.lost = False
        if s.ledger.setting("frozen"):
            s.submit("unfreeze")
        for _ in range(times):
            self.look(6.0)

    @rule(which=RELEASES, how=st.sampled_from(["die", "fail"]), then=SOON)
    def a_worker_ends(self, which: str, how: str, then: float | None) -> None:
        release = getattr(self.s, which)
        if how == "die":
            self.s.serving.die(release)
        else:
            self.s.serving.failing[release] = "out of memory"
        self.look(then)

    @precondition(lambda self: self.running() is not None)
    @rule()
    def the_breaker_trips(self) -> None:
        table, rollout = self.s.router.table, self.running()
        # A gateway trips nobody who answers for all, nor whom it does not know.
        if table is not None and rollout is not None:
            known = {a.release for a in table.arms} - {table.stable().release}
            if rollout.challenger in known:
                self.s.router.trip(rollout.challenger, self.s.clock.now())
                self.look(1.0)

    @rule(lost=st.booleans(), then=SOON)
    def the_gateways(self, lost: bool, then: float | None) -> None:
        self.s.router.lost = lost
        self.look(then)

    @rule(back=st.integers(1, 3))
    def a_gateway_comes_back_with_an_old_table(self, back: int) -> None:
        if self.tables:
            self.s.router.table = self.tables[-min(back, len(self.tables))]

    @rule(ahead=st.integers(0, 3))
    def somebody_applies_a_table_of_his_own(self, ahead: int) -> None:
        table = self.s.router.table
        if table is not None:
            arms = tuple(replace(a, weight=1.0 / len(table.arms)) for a in table.arms)
            self.s.router.table = replace(table, epoch=table.epoch + ahead, arms=arms, untrip=())

    # ------------------------------------------------------------------ people

    @rule(kinds=st.lists(st.sampled_from(COMMANDS), min_size=1, max_size=3), then=SOON)
    def commands(self, kinds: list[str], then: float | None) -> None:
        for kind in kinds:
            person = next(self.people)
            updates = self.s.updates()
            arguments = {"update": updates[-1].update_id} if updates else {"update": "none"}
            asked = self.s.submit(kind, actor=person, **(arguments if "update" in kind else {}))
            if kind.startswith("rollout.") and kind != "rollout.retry":
                self.asked[person] = asked
        self.look(then)

    @precondition(lambda self: self.running() is not None)
    @rule(kinds=st.lists(st.sampled_from(ROLLOUT[:-1]), min_size=1, max_size=3), then=SOON)
    def commands_for_it(self, kinds: list[str], then: float | None) -> None:
        for kind in kinds:
            person = next(self.people)
            self.asked[person] = self.s.submit(f"rollout.{kind}", actor=person)
        self.look(then)

    @precondition(lambda self: self.running() is not None)
    @rule(kind=st.sampled_from(["rollback", "abort"]))
    def the_brake_on_it(self, kind: str) -> None:
        self.brake(kind)

    @precondition(lambda self: self.waits_for_a_person())
    @rule(then=SOON)
    def a_person_goes_on(self, then: float | None) -> None:
        person = next(self.people)
        rollout = self.running()
        assert rollout is not None
        waits = rollout.steps[rollout.step].kind is StepKind.APPROVE
        self.asked[person] = self.s.submit(
            "rollout.approve" if waits else "rollout.resume", actor=person
        )
        self.look(then)

    @rule(to=RELEASES)
    def rollback_to(self, to: str) -> None:
        self.s.submit("rollback", to=getattr(self.s, to))

    @rule(which=RELEASES)
    def an_update(self, which: str) -> None:
        if not self.s.ledger.active_updates():
            self.s.begin(getattr(self.s, which))

    @rule(kind=st.sampled_from(["rollback", "abort", "freeze", "unfreeze"]))
    def the_brake(self, kind: str) -> None:
        self.brake(kind)

    def brake(self, kind: str) -> None:
        s = self.s
        try:
            if kind == "rollback":
                brake.rollback(s.parts, None, "brake")
            elif kind == "abort":
                brake.abort(s.parts, "brake")
            else:
                brake.switch(s.parts, kind, "brake")
        except IntonacoError:
            return
        if kind in ("rollback", "abort") and not s.router.lost:
            table = s.router.table
            assert table is not None
            assert [a.weight for a in table.arms] == [1.0]
            target = table.arms[0].release
            s.serving.failing.pop(target, None)
            s.tick(0.0)
            if not s.ledger.active_rollout():
                assert s.shares() == {target: 1.0}, "the brake is not undone"
                assert s.ledger.champion() == target

    # ------------------------------------------------------------------ time

    @rule(seconds=st.sampled_from([0.0, 1.0, 6.0, 6.0, 30.0]), times=st.integers(1, 8))
    def time_passes(self, seconds: float, times: int) -> None:
        for _ in range(times):
            self.look(seconds)

    @rule(jump=st.sampled_from([-3600.0, 86_400.0]))
    def the_clock_jumps(self, jump: float) -> None:
        before = self.running()
        self.look(jump)
        after = self.s.ledger.find(Rollout, before.rollout_id) if before is not None else None
        if before is not None and after is not None and after.step > before.step:
            step = before.steps[before.step]
            hurried = [e for e in self.s.events("rollout.step") if e.actor.startswith("p")]
            assert not step.min_seconds or hurried or self.waited(before), "time did not pass"

    def waited(self, rollout: Rollout) -> bool:
        """Whether the step's time was over before the clock jumped."""
        step = rollout.steps[rollout.step]
        return self.now - rollout.step_since >= (step.min_seconds or 0.0)

    @rule()
    def the_controller_is_killed(self) -> None:
        self.s.restart()

    # ------------------------------------------------------------------ a look

    def running(self) -> Rollout | None:
        return self.s.ledger.active_rollout() if hasattr(self, "s") else None

    def waits_for_a_person(self) -> bool:
        rollout = self.running()
        step = rollout.steps[rollout.step] if rollout is not None and rollout.history else None
        return step is not None and step.kind in (StepKind.APPROVE, StepKind.PAUSE)

    def look(self, seconds: float | None) -> None:
        if seconds is None:
            return
        s = self.s
        self.now = s.clock.now()
        before, champion = self.running(), s.ledger.champion()
        approved = self._approved()
        table = s.router.table
        if not s.router.lost and table is not None:
            self.tables.append(table)
        s.tick(seconds)
        if before is None:
            return
        after = s.ledger.get(Rollout, before.rollout_id)
        if after.promoted_at is not None and before.promoted_at is None:
            assert before.champion is None or s.evidence.found in PROVEN
            assert s.ledger.champion() in (after.challenger, champion)
        left = [k.kind for k in before.steps[before.step : after.step]] if before.history else []
        assert left.count(StepKind.APPROVE) <= self._approved() - approved
        alone = before.champion is None
        # A trip that nobody tells of is acted on by the gateways alone.
        harmed = s.evidence.found is Assessment.HARMFUL or any(
            t.release == before.challenger and t.at >= before.started_at
            for t in ([] if s.router.lost else s.router.trips.values())
        )
        if harmed and not alone:
            assert before.champion is not None
            ready = s.serving.status(before.champion).ready
            dead = bool(s.serving.status(before.challenger).error)
            assert after.status.final or after.returning or not (ready or dead)
            # Another update may have begun with it in the same look, which then has no users yet.
            if ready and not s.router.lost and before.champion != before.challenger:
                assert self._share(before.challenger) == 0.0

    def _share(self, release: str) -> float:
        table, weights = self.s.router.table, self.s.router.observed().weights
        arms = table.arms if table is not None else ()
        return sum(weights[a.name] for a in arms if a.release == release)

    def _approved(self) -> int:
        return sum("approved by" in e.text for e in self.s.events("rollout"))

    # ------------------------------------------------------------------ what holds

    @invariant()
    def there_is_one_champion(self) -> None:
        if hasattr(self, "s"):
            assert [t.until for t in self.s.ledger.tenures()].count(None) == 1

    @invariant()
    def tables_can_be_followed_and_epochs_grow(self) -> None:
        if not hasattr(self, "s"):
            return
        tables = [table for _, table in self.s.ledger.routing_history()]
        check_table(tables[-1])
        epochs = [table.epoch for table in tables]
        assert epochs == sorted(set(epochs))

    @invariant()
    def what_is_final_stays_as_it_is(self) -> None:
        if not hasattr(self, "s"):
            return
        for rollout in self.s.ledger.all(Rollout):
            text = encode(rollout)
            if rollout.status.final:
                assert self.final.setdefault(rollout.rollout_id, text) == text
                assert rollout.reason
                assert rollout.verdict is not None
                lasted = [(h.left_at, h.entered_at) for h in rollout.history[:-1]]
                assert all(a is not None and a - b >= 0.0 for a, b in lasted)
        assert sum(not r.status.final for r in self.s.ledger.all(Rollout)) <= 1
        for update in self.s.updates():
            if update.phase is Phase.PROMOTED and update.rollout_id is not None:
                rollout = self.s.ledger.get(Rollout, update.rollout_id)
                assert rollout.status is RolloutStatus.PROMOTED

    @invariant()
    def events_are_only_added(self) -> None:
        if not hasattr(self, "s"):
            return
        count, size = self.seen
        events = self.s.ledger.events(limit=100_000)
        assert sum(len(encode(e)) for e in events[:count]) == size
        self.seen = len(events), sum(len(encode(e)) for e in events)

    @invariant()
    def every_command_is_answered(self) -> None:
        if not hasattr(self, "s") or not self.asked:
            return
        waiting = {
            said["actor"]
            for rollout in self.s.ledger.all(Rollout)
            for said in rollout_commands.asked(self.s.ledger, rollout.rollout_id)
        }
        told = {e.actor for e in self.s.events("rollout")}
        for person, number in list(self.asked.items()):
            outcome = self.s.ledger.command_outcome(number)
            if outcome is None or person in waiting:
                continue
            assert not outcome["ok"] or person in told, f"{person}: {outcome}"
            del self.asked[person]

    @invariant()
    def who_has_users_is_not_retired(self) -> None:
        if not hasattr(self, "s"):
            return
        assert ("retire", self.s.ledger.champion()) not in self.s.serving.calls[self.calls() :]
        self._calls = len(self.s.serving.calls)

    def calls(self) -> int:
        return getattr(self, "_calls", 0)


def tried(folder: Path, examples: int, steps: int, *, again: bool) -> None:
    """``again``: the same orders each time, else others."""
    AnyOrder.folder = folder
    run_state_machine_as_test(
        AnyOrder,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=again,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.fixture
def folder() -> Any:
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)
    logging.disable(logging.NOTSET)


@pytest.mark.timeout(900)
def test_in_any_order(folder: Path) -> None:
    tried(folder, examples=15, steps=30, again=True)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_in_any_order_for_long(folder: Path) -> None:
    tried(folder, examples=1500, steps=60, again=False)
