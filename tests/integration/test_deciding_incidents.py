"""One change of the world is one incident: findings that arrive later join it and start nothing
twice; what is new in them gets a plan of its own. The real controller over twins."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.integration.test_loop_in_memory import World
from tests.traffic import Traffic
from tests.unit.test_decision_diagnosis import NEW, finding, prompts

from intonaco.codec import encode
from intonaco.segment_log import SegmentWriter
from intonaco.types import Action, Cause, Diagnosis, Factor, Finding, Phase, Plan


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    made.first_release()
    yield made
    made.close()


def fire(world: World, *findings: Finding, ago: float = 60.0) -> None:
    """Findings as the monitors would write them, of a change that long ago."""
    now = world.clock.now()
    with world.ledger.begin() as tx:
        for number, one in enumerate(findings):
            one = replace(
                one,
                finding_id=f"{one.finding_id}-{now:.0f}-{number}",
                service_id="svc",
                at=now,
                since_at=now - ago,
                request=-1000,  # long settled
                release=world.ledger.champion(),
            )
            tx.put(one, id=one.finding_id, at=now, status="new")


def told(world: World) -> list[tuple[Cause, Action]]:
    """Plans that the policy made, in order."""
    return [(p.cause, p.action) for p in world.ledger.all(Plan) if p.diagnosis_id is not None]


def diagnosed(world: World) -> list[Diagnosis]:
    return world.ledger.all(Diagnosis, status="incident")


def settle(world: World, ticks: int = 4) -> None:
    for _ in range(ticks):
        world.tick()
    assert world.ledger.all(Finding, status="new") == []


def test_a_later_sign_of_the_same_incident_starts_nothing(world: World) -> None:
    fire(world, prompts(*NEW))
    settle(world)
    first = diagnosed(world)
    assert [d.cause for d in first] == [Cause.CONCEPT_DRIFT]
    plans = told(world)
    fire(world, finding("clip_score", 0.8, 0.55, clusters=NEW), ago=120.0)
    settle(world)
    after = diagnosed(world)
    assert [d.diagnosis_id for d in after] == [d.diagnosis_id for d in first]
    assert [f.signal for f in after[0].findings] == ["prompts", "clip_score"]
    assert told(world) == plans
    kinds = [e.kind for e in world.ledger.events(kind="diagnosis")]
    assert kinds == ["diagnosis", "diagnosis.updated"]


def test_a_later_sign_of_another_cause_gets_a_plan_of_its_own(world: World) -> None:
    fire(world, prompts(*NEW))
    settle(world)
    fire(world, finding("latency", of="latency"), ago=120.0)
    settle(world)
    latest = diagnosed(world)[-1]
    assert latest.cause is Cause.CONCEPT_DRIFT
    assert latest.also == (Cause.PERFORMANCE_DEGRADATION,)
    assert latest.incident == diagnosed(world)[0].diagnosis_id
    causes = [cause for cause, _ in told(world)]
    assert causes == [Cause.CONCEPT_DRIFT, Cause.PERFORMANCE_DEGRADATION]
    plan = world.ledger.all(Plan)[-1]
    assert plan.action in (Action.TELL, Action.WATCH)
    part = world.ledger.get(Diagnosis, str(plan.diagnosis_id))
    assert part.cause is Cause.PERFORMANCE_DEGRADATION


def test_what_begins_later_is_another_incident(world: World) -> None:
    fire(world, prompts(*NEW))
    settle(world)
    world.tick(600)
    fire(world, finding("latency", of="latency"), ago=60.0)
    settle(world)
    assert [d.cause for d in diagnosed(world)] == [
        Cause.CONCEPT_DRIFT,
        Cause.PERFORMANCE_DEGRADATION,
    ]
    assert len({d.incident for d in diagnosed(world)}) == 2


def test_a_signal_that_flaps_is_told_once(world: World) -> None:
    silence = finding("scorer", of="scorer", unit="s", text="Nothing was scored.")
    for _ in range(4):
        world.tick(120)
        fire(world, silence, ago=70.0)
        settle(world)
    assert told(world) == [(Cause.UNKNOWN, Action.TELL)]
    assert len(diagnosed(world)) == 1
    world.tick(4000)
    fire(world, silence, ago=70.0)
    settle(world)
    assert told(world) == [(Cause.UNKNOWN, Action.TELL)] * 2


def test_what_an_update_kept_waiting_is_judged_after_it(world: World) -> None:
    update = world.technique()
    fire(world, finding("errors", of="errors"))
    world.tick()
    world.tick()
    waiting = world.ledger.all(Finding, status="waiting")
    assert [f.signal for f in waiting] == ["errors"]
    assert told(world) == [(Cause.PERFORMANCE_DEGRADATION, Action.TELL)]  # a person need not wait
    assert world.command("update.cancel", update=update.update_id)["ok"]
    world.until(lambda: world.updates()[-1].phase.final)
    assert world.updates()[-1].phase is Phase.CANCELLED
    settle(world)
    assert world.ledger.all(Finding, status="waiting") == []
    assert told(world)[-1] == (Cause.PERFORMANCE_DEGRADATION, Action.TELL)


def test_records_tell_what_is_behind_it_also_after_a_restart(tmp_path: Path) -> None:
    """Failures under an unchanged release, read from the log of scored records as the controller
    reads it, with the controller thrown away after every second tick."""
    world = World(tmp_path, restarts=True)
    champion = world.first_release()
    world.tick(7200)  # long after the release took over
    traffic = Traffic(seed=1, release=champion, at=world.clock.now(), phrase=0.25)
    scores = SegmentWriter(world.workspace.scores, "scorer")

    def feed(n: int, **how: float) -> None:
        for item in traffic.many(n, **how):
            scores.append(encode(item))
        for _ in range(n // 500 + 3):  # so many are read in a tick
            world.tick(max(1.0, (traffic.at - world.clock.now()) / 2))

    feed(2300)
    assert world.ledger.all(Finding) == []
    feed(400, failing=0.3)
    settle(world)
    assert [f.signal for f in world.ledger.all(Finding)] == ["errors"]
    diagnosis = diagnosed(world)[-1]
    assert diagnosis.cause is Cause.PERFORMANCE_DEGRADATION
    assert diagnosis.factor is Factor.INFRASTRUCTURE
    assert "the queue did not grow" in diagnosis.excluded[Factor.QUEUEING]
    event = world.ledger.events(kind="diagnosis")[-1]
    assert event.data["factor"] == "infrastructure"
    assert told(world) == [(Cause.PERFORMANCE_DEGRADATION, Action.TELL)]
    world.close()
    scores.close()
