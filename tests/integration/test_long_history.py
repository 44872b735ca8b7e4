"""A controller that has run for years looks as fast as one that began today."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.integration.test_loop_in_memory import World

from intonaco import codec
from intonaco.decision.incidents import HEADLINE
from intonaco.ledger import store
from intonaco.types import (
    Cause,
    Diagnosis,
    Finding,
    Phase,
    Rollout,
    RolloutStatus,
    Update,
)

YEARS = 300  # updates that have been


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def decoded(world: World, monkeypatch: pytest.MonkeyPatch, ticks: int = 5) -> int:
    """Documents that so many ticks read."""
    read = 0
    real = codec.decode

    def count(cls: Any, text: str) -> Any:
        nonlocal read
        read += 1
        return real(cls, text)

    with monkeypatch.context() as patch:
        patch.setattr(store, "decode", count)
        for _ in range(ticks):
            world.tick()
    return read


def grow_old(world: World) -> None:
    """Give the service a past of promoted updates and rollbacks, each with what led to it."""
    model = world.ledger.all(Update)[0]
    rollout = world.ledger.all(Rollout)[0]
    champion = world.ledger.champion()
    with world.ledger.begin() as tx:
        for k in range(YEARS):
            at = 1000.0 * k
            finding = Finding(
                finding_id=f"f{k}",
                service_id="svc",
                signal="prompts",
                detector="embedding",
                at=at,
                request=k,
                armed_at=0,
                since=k,
                since_at=at,
                evidence=10.0,
                threshold=5.0,
                value_before=0.0,
                value_now=1.0,
                unit="distance",
                direction="moved",
                release="older",
                text="it moved",
            )
            tx.put(
                finding, id=finding.finding_id, at=at, status="cleared" if k % 2 else "diagnosed"
            )
            diagnosis = Diagnosis(
                diagnosis_id=f"d{k}", service_id="svc", at=at, cause=Cause.CONCEPT_DRIFT,
                reason="why", findings=(finding,),
            )  # fmt: skip
            tx.put(diagnosis, id=diagnosis.diagnosis_id, at=at, status=HEADLINE)
            plan = replace(model.plan, plan_id=f"p{k}", diagnosis_id=f"d{k}")
            ended = replace(
                model, update_id=f"u{k}", plan=plan, phase=Phase.PROMOTED, created_at=at
            )
            tx.update(ended)
            status = RolloutStatus.ROLLED_BACK if k % 3 == 0 else RolloutStatus.PROMOTED
            tx.rollout(replace(rollout, rollout_id=f"r{k}", started_at=at, status=status))
    assert world.ledger.champion() == champion


def test_ticks_read_what_is_going_on_not_all_that_ever_was(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.first_release()
    world.until(lambda: world.ledger.active_rollout() is None)
    young = decoded(world, monkeypatch)
    grow_old(world)
    assert decoded(world, monkeypatch) <= young + 5 * 12  # at each tick some of the newest
    world.technique()
    world.until(lambda: world.ledger.active_rollout() is not None)
    assert decoded(world, monkeypatch) < YEARS / 2


def test_champion_and_previous_are_found_without_their_predecessors(world: World) -> None:
    ledger = world.ledger
    assert (ledger.champion(), ledger.previous()) == (None, None)
    for k in range(3):
        with ledger.begin() as tx:
            tx.crown(f"r{k}", 10.0 * k, "better")
    assert (ledger.champion(), ledger.previous()) == ("r2", "r1")
    assert (ledger.tenures()[0].release_id, ledger.tenures()[0].until) == ("r0", 10.0)
