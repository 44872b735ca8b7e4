"""The registry's aliases: set at every change, looked at now and then, set back when moved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from intonaco.aliases import ASSERT_SECONDS, RETRY_SECONDS, follow
from intonaco.registry.none import NullRegistry
from intonaco.testing.registry import MemoryRegistry, sample_release
from intonaco.types import Json

from .test_loop_in_memory import World, two_champions


class Counted(MemoryRegistry):
    """Counts looks."""

    looks = 0

    def history(self) -> Sequence[Mapping[str, Json]]:
        self.looks += 1
        return super().history()


def looks(world: World) -> int:
    assert isinstance(world.registry, Counted)
    return world.registry.looks


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    made.registry = Counted()
    made.parts = replace(made.parts, registry=made.registry)
    made.controller = made._controller()
    yield made
    made.close()


def settled(world: World) -> None:
    for _ in range(3):
        world.tick(0.0)
        if (running := world.controller.aliases._running) is not None:
            running.exception()  # waits for the thread


def told(world: World) -> list[str]:
    return [e.text for e in world.ledger.events(kind="registry.moved")]


def test_an_alias_that_was_moved_is_set_back_and_told_once(world: World) -> None:
    first, second = two_champions(world)
    settled(world)
    right = {"champion": second, "previous": first}
    assert world.registry.aliases == right
    assert told(world) == []  # what the service did itself was moved by nobody
    world.registry.set_alias("champion", first)
    world.registry.set_alias("previous", None)
    world.registry.set_alias("challenger", first)
    before = looks(world)
    for _ in range(20):
        world.tick()
    assert looks(world) == before  # no call at every tick
    world.clock.advance(ASSERT_SECONDS)
    settled(world)
    assert world.registry.aliases == right
    assert len(told(world)) == 3
    assert "alias previous was gone" in " ".join(told(world))
    world.clock.advance(ASSERT_SECONDS)
    settled(world)
    assert len(told(world)) == 3


def test_a_controller_that_starts_looks_at_once(world: World) -> None:
    first = world.first_release()
    settled(world)
    world.registry.set_alias("champion", None)
    world.controller.close()
    world.controller = world._controller()
    settled(world)
    assert world.registry.aliases["champion"] == first
    assert len(told(world)) == 1


def test_a_registry_that_is_down_is_asked_now_and_then(world: World) -> None:
    first = world.first_release()
    settled(world)
    world.registry.aliases.clear()
    world.registry.down = True
    world.clock.advance(ASSERT_SECONDS)
    settled(world)
    before = looks(world)
    for _ in range(10):
        world.tick()
    assert looks(world) == before
    world.registry.down = False
    world.clock.advance(RETRY_SECONDS)
    settled(world)
    assert world.registry.aliases["champion"] == first


def test_a_change_that_was_killed_half_way_is_nobodys_hand(tmp_path: Path) -> None:
    registry = MemoryRegistry()
    old, new = (sample_release(tmp_path / str(n), steps=n) for n in (1, 2))
    for release, folder in ((old, "1"), (new, "2")):
        registry.register(release, tmp_path / folder, {})
    a, b = old.release_id, new.release_id
    told, asked = (a, b, None), (b, None, a)
    registry.set_alias("champion", b)  # the first of the change; then it was killed
    registry.set_alias("challenger", b)
    assert follow(registry, asked, [told, asked]) == []
    assert registry.aliases == {"champion": b, "previous": a}
    registry.set_alias("champion", a)
    (moved,) = follow(registry, asked, [asked])
    assert (moved.alias, moved.found, moved.meant) == ("champion", a, b)


def test_a_registry_that_forgot_the_release_was_steered_by_nobody() -> None:
    registry = NullRegistry()  # as after a restart of the process
    wanted = ("a" * 64, None, None)
    assert follow(registry, wanted, [wanted]) == []
