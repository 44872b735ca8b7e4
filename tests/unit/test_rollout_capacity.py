"""How many workers each release has while one replaces the other: whatever is lost on the way, the
limits hold, and it comes to an end."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intonaco import config
from intonaco.config import resolve_limits
from intonaco.errors import ConfigError
from intonaco.rollout.capacity import Side, can_take, handed_back, next_sizes, waves
from intonaco.types import Capacity


@pytest.mark.parametrize(
    ("replicas", "surge", "unavailable", "limits"),
    [
        (4, 1, 0, (1, 0)),
        (10, "25%", "25%", (3, 2)),
        (1, "25%", "25%", (1, 0)),
        (3, "0%", 1, (0, 1)),
    ],
)
def test_percentages_are_rounded_as_kubernetes_does(
    replicas: int, surge: int | str, unavailable: int | str, limits: tuple[int, int]
) -> None:
    assert resolve_limits(replicas, surge, unavailable) == limits


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rollout: {strategy: rolling, max_surge: 0}", "both 0 workers"),
        ("rollout: {strategy: rolling, max_unavailable: 1}", "nobody would answer"),
        ("rollout: {strategy: rolling, max_surge: 110%}", "max_surge"),
        ("rollout: {strategy: rolling, holdback: 0.1}", "leaves the previous one no workers"),
        ("rollout: {max_surge: 2}", "read by strategy rolling only"),
        ("rollout: {strategy: canary, force: true}", "read by strategy in_place only"),
        ("rollout: {strategy: in_place}", "Say force: true if that is meant"),
        ("rollout: {steps: [{kind: replace}]}", "adds it itself"),
        (
            "rollout: {strategy: in_place, force: true}\nserving: {share_base: true}",
            "serving.share_base is on",
        ),
    ],
)
def test_what_cannot_work_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config.parse(f"service: s\n{text}\n")


def capacities() -> st.SearchStrategy[Capacity]:
    def made(total: int, surge: int, unavailable: int) -> Capacity:
        short = min(unavailable, total - 1)
        return Capacity(
            total=total, surge=surge if surge + short else 1, unavailable=short, challenger=0
        )

    return st.builds(made, st.integers(1, 9), st.integers(0, 4), st.integers(0, 4))


@given(capacities())
def test_waves_rise_to_all(capacity: Capacity) -> None:
    found = waves(capacity)
    assert found[-1] == capacity.total
    steps = [b - a for a, b in zip((0, *found), found, strict=False)]
    assert all(0 < step <= capacity.surge + capacity.unavailable for step in steps)


class Workers:
    """Of both releases, started and ended one look at a time; some take long."""

    def __init__(self, capacity: Capacity, late: list[bool]) -> None:
        self.capacity, self.late = capacity, iter(late)
        self.old = [True] * capacity.total  # whether each answers
        self.new: list[bool] = []
        self.ending = {"old": 0, "new": 0}
        self.share = 0  # workers' worth of users of the new one, as the gateways follow it

    def look(self, target: int, *, back: bool, keep: int) -> None:
        c = self.capacity
        old = Side(
            size=len(self.old), ending=self.ending["old"], ready=sum(self.old),
            users=self.share < c.total,
        )  # fmt: skip
        new = Side(
            size=len(self.new), ending=self.ending["new"], ready=sum(self.new),
            users=self.share > 0,
        )  # fmt: skip
        growing, shrinking = (old, new) if back else (new, old)
        moved = c.total - self.share if back else self.share
        sizes = next_sizes(c, growing, shrinking, target=target, moved=moved, keep=keep)
        assert sizes.growing >= growing.size
        assert sizes.shrinking <= shrinking.size
        names = ("old", "new") if back else ("new", "old")
        rising, falling = (self.old, self.new) if back else (self.new, self.old)
        rising.extend([False] * (sizes.growing - len(rising)))
        self.ending[names[1]] += len(falling) - sizes.shrinking
        del falling[sizes.shrinking :]
        self.check()
        for kind in self.ending:  # what is late comes at another look
            self.ending[kind] -= self.ending[kind] > 0 and not next(self.late, False)
        for side in (self.old, self.new):
            for k, up in enumerate(side):
                side[k] = up or not next(self.late, False)

    def check(self) -> None:
        c = self.capacity
        there = len(self.old) + len(self.new) + sum(self.ending.values())
        assert there <= c.total + c.surge
        assert sum(self.old) + sum(self.new) >= c.total - c.unavailable
        if self.share < c.total:
            assert sum(self.old) >= 1
        if self.share > 0:
            assert sum(self.new) >= 1


@settings(max_examples=150, deadline=None)
@given(capacities(), st.lists(st.booleans(), max_size=40), st.integers(0, 9))
def test_the_limits_hold_forwards_and_back(capacity: Capacity, late: list[bool], turn: int) -> None:
    at = Workers(capacity, late)
    for number, wave in enumerate(waves(capacity)):
        if number == turn:
            break
        for _ in range(200):
            at.look(wave, back=False, keep=max(1, capacity.surge))
            if can_take(capacity, sum(at.new), wave):
                break
        else:
            raise AssertionError("the wave never came")
        at.share = wave
    challenger = replace(capacity, challenger=at.share)
    for _ in range(400):
        at.look(capacity.total, back=True, keep=0)
        challenger = replace(challenger, challenger=handed_back(challenger, sum(at.old)))
        at.share = min(at.share, challenger.challenger)
        if can_take(capacity, sum(at.old), capacity.total) and at.share == 0:
            return
    raise AssertionError("it never came back")
