"""Probe rounds through the controller's tick: what draws them is a stand-in, all else is real."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.watched import Watched as World

from intonaco import commands
from intonaco.protocols import Matrix
from intonaco.types import Diagnosis, Plan


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def test_a_new_champions_answers_are_stored_and_drawn_again_each_hour(world: World) -> None:
    first = world.round()
    assert first is not None
    assert (first.why, first.ok, first.missing) == ("champion", None, {})
    assert len(world.drawn) == 6, "once one by one, once all at once"
    assert world.round(3000.0) is None
    second = world.round(700.0)
    assert second is not None
    assert (second.why, second.ok) == ("schedule", True)
    assert set(second.measures.values()) == {"bits"}
    assert world.findings() == []
    assert world.ledger.wanted_effects() == []


def test_a_restart_neither_skips_nor_doubles_a_round(world: World) -> None:
    world.round()
    world.clock.advance(3600.0)
    assert world.controller.tick()  # asks for the round
    asked = world.ledger.wanted_effects()
    assert len(asked) == 1
    world.controller._threads.shutdown(wait=True)
    world.controller = world.new_controller()
    for _ in range(4):
        world.tick()
    assert [r.why for r in world.rounds()] == ["schedule", "champion"]
    # Five hours without a controller are one round, not five.
    world.controller = world.new_controller()
    assert world.round(5 * 3600.0) is not None
    assert world.round(10.0) is None
    assert len(world.rounds()) == 3


def test_a_change_is_found_in_one_round_told_once_and_diagnosed(world: World) -> None:
    world.round()
    world.round(3600.0)
    good_at = world.rounds()[0].at
    world.shift = 1
    bad = world.round(3600.0)
    assert bad is not None
    assert bad.ok is False
    assert len(bad.changed) == 3
    (finding,) = world.findings()
    assert (finding.of, finding.signal) == ("probe", "probes")
    assert finding.evidence > finding.threshold == 0.0
    assert good_at <= finding.since_at < bad.at, "between the last good round and this one"
    assert finding.facts["changed"] == list(bad.changed)
    for before, now in finding.facts["images"].values():
        assert (world.root / before).read_bytes() != (world.root / now).read_bytes()
    (diagnosis,) = world.ledger.all(Diagnosis)
    assert diagnosis.cause == "quality_decline"
    (plan,) = world.ledger.all(Plan)
    assert plan.action == "tell", "retraining would learn the fault"
    world.round(3600.0)
    assert len(world.findings()) == 1, "the same change is told once"
    world.shift = 0
    world.round(3600.0)
    assert [e.kind for e in world.ledger.events(kind="probe")] == ["probe.good"]
    world.shift = 9
    world.round(3600.0)
    assert len(world.findings()) == 2


def test_another_batch_size_is_rounding_and_then_held_to_the_bit(world: World) -> None:
    world.round()
    world.size, world.rounding = 4, 1
    near = world.round(3600.0)
    assert near is not None
    assert (near.ok, set(near.measures.values())) == (True, {"pixels"})
    again = world.round(3600.0)
    assert again is not None
    assert set(again.measures.values()) == {"bits"}
    world.rounding = 2
    changed = world.round(3600.0)
    assert changed is not None
    assert changed.ok is False


def test_what_cannot_be_drawn_is_not_measured_and_never_fine(world: World) -> None:
    world.round()
    world.busy = True
    skipped = world.round(3600.0)
    assert skipped is not None
    assert skipped.ok is None
    assert set(skipped.missing.values()) == {"too many users wait"}
    assert len(world.drawn) == 6, "the rest is not asked for"
    world.busy, world.dead = False, True
    world.clock.advance(3600.0)
    for _ in range(12):
        world.tick(3.0)
    kinds = [e.kind for e in world.ledger.events(kind="probe")]
    assert kinds == ["probe.unmeasured"], "told once, not each hour"
    assert world.findings() == []
    world.dead = False
    assert world.round(3600.0) is not None
    assert [e.kind for e in world.ledger.events(kind="probe")][-1] == "probe.good"


def test_another_machine_is_compared_by_distance_and_then_keeps_its_own(world: World) -> None:
    world.round()
    world.serving.device = "cpu, B, 1 thread"
    moved = world.round(3600.0)
    assert moved is not None
    assert (moved.ok, set(moved.measures.values())) == (True, {"pixels"})
    assert moved.stored_under is not None
    assert "another device (cpu, B, 1 thread)" in moved.text
    own = world.round(3600.0)
    assert own is not None
    assert (own.stored_under, set(own.measures.values())) == (None, {"bits"})
    world.serving.device, world.shift = "cuda, C", 40
    other = world.round(3600.0)
    assert other is not None
    assert other.ok is False, "a machine that draws something else is a change"


def test_an_extractor_says_how_far_pictures_are_apart(world: World, tmp_path: Path) -> None:
    world.serving.device = "cuda, C"  # no bits are promised there

    def embed_images(pngs: Sequence[bytes]) -> Matrix:
        rows = [np.asarray(Image.open(io.BytesIO(p)), dtype=float).ravel() for p in pngs]
        return np.stack(rows)

    world.parts = replace(world.parts, embed_images=embed_images)
    world.controller = world.new_controller()
    world.round()
    near = world.round(3600.0)
    assert near is not None
    assert (near.ok, set(near.measures.values())) == (True, {"embedding"})


def test_probes_by_hand_of_any_release_that_is_known(world: World) -> None:
    world.round()
    number = commands.submit(world.ledger, world.clock.now(), "probe", "ann", {})
    world.tick()
    world.tick()
    outcome = world.ledger.command_outcome(number)
    assert outcome is not None
    assert outcome["ok"]
    assert world.rounds()[0].why == "asked"
    assert world.rounds()[0].ok is True
    number = commands.submit(
        world.ledger, world.clock.now(), "probe", "ann", {"release": "no such"}
    )
    world.tick()
    refused = world.ledger.command_outcome(number)
    assert refused is not None
    assert not refused["ok"]


def test_without_a_schedule_there_are_only_the_stored_answers(tmp_path: Path) -> None:
    world = World(tmp_path, every=0.0)
    assert world.round() is not None
    assert world.round(7 * 86_400.0) is None
    world.close()
