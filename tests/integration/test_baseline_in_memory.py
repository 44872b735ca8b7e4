"""The equal baseline arm through the real controller over in-memory twins: who is served by whom at
each share, when the workers of the slice come and go, and that they never cost a user anything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from tests.assessed import assessed
from tests.rolling import Rolling

from intonaco.readmodel.rollouts import rollout_card
from intonaco.rollout import baseline
from intonaco.rollout.baseline_analysis import BaselineAnalysis
from intonaco.types import Arm, Assessment, RolloutStatus

STEPS: list[dict[str, Any]] = [
    {"kind": "shadow", "weight": 0.5, "min_seconds": 5, "min_units": 0},
    {"weight": 0.2, "min_seconds": 10, "min_units": 0},
    {"weight": 0.5, "min_seconds": 10, "min_units": 0},
    {"weight": 0.8, "min_seconds": 10, "min_units": 0},
    {"weight": 1.0, "min_seconds": 10, "min_units": 0},
]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("template") / "made"


RESTARTED = pytest.mark.parametrize("world", [False, True], indirect=True, ids=["steady", "killed"])


@pytest.fixture
def world(request: pytest.FixtureRequest, tmp_path: Path, template: Path) -> Iterator[Rolling]:
    made = Rolling(
        tmp_path / "service",
        template,
        steps=STEPS,
        baseline=True,
        metrics=["errors", "latency", "end_to_end"],
        holdback=0.0,
    )
    if getattr(request, "param", False):  # killed before every second look
        tick, looks = made.tick, count()

        def killed(seconds: float = 1.0) -> None:
            if next(looks) % 2:
                made.restart()
            tick(seconds)

        made.tick = killed  # type: ignore[method-assign]
    with patch.object(
        BaselineAnalysis, "assess", lambda a: assessed(a.metrics, made.evidence.found)
    ):
        yield made
    made.close()


def arms(world: Rolling) -> dict[str, Arm]:
    assert world.router.table is not None
    return {a.role.value: a for a in world.router.table.arms}


def workers(world: Rolling) -> dict[str, int]:
    return {r: len(w) for r, w in world.serving._polls.items()}


def only_own(world: Rolling) -> bool:
    """Whether the champion has its own workers and no others."""
    champion = str(world.ledger.champion())
    return workers(world).get(champion) == 1 and world.ledger.setting(baseline.SETTING) is None


@RESTARTED
def test_each_share_has_its_arms(world: Rolling) -> None:
    world.begin()
    world.until(lambda: world.ledger.active_rollout() is not None)
    world.until(lambda: bool(world.rollout.history))
    assert world.rollout.baseline == 1
    assert "equal slices only" in world.rollout.notice
    assert set(arms(world)) == {"champion", "shadow"}
    assert workers(world) == {world.first: 2, world.second: 1}  # as new as the challenger
    assert len(arms(world)["champion"].urls) == 1
    seen: dict[int, dict[str, float]] = {}
    while world.rollout.promoted_at is None:
        world.tick()
        if not world.rollout.status.final and world.rollout.promoted_at is None:
            seen[world.rollout.step] = {r: a.weight for r, a in arms(world).items()}
    assert seen == {
        0: {"champion": 1.0, "shadow": 0.5},
        1: {"champion": 0.6, "challenger": 0.2, "baseline": 0.2},
        2: {"champion": 0.0, "challenger": 0.5, "baseline": 0.5},
        3: {"champion": pytest.approx(0.2), "challenger": 0.8},
        4: {"champion": 0.0, "challenger": 1.0},
    }
    tables = [t for t in world.router.applied if any(a.role == "baseline" for a in t.arms)]
    for table in tables:
        urls = {a.role.value: a.urls for a in table.arms}
        assert len(urls["champion"]) == len(urls["baseline"]) == len(urls["challenger"]) == 1
        assert not {*urls["champion"]} & {*urls["baseline"]}
    world.until(lambda: world.rollout.status is RolloutStatus.PROMOTED)
    world.until(lambda: world.first not in workers(world))
    assert workers(world) == {world.second: 1}
    assert world.serving.most == 3


def test_above_one_half_its_workers_go_at_once(world: Rolling) -> None:
    world.to_step(3)
    world.until(lambda: only_own(world), ticks=5)
    assert workers(world) == {world.first: 1, world.second: 1}
    assert world.rollout.step == 3


@RESTARTED
@pytest.mark.parametrize(("how", "step"), [("abort", 0), ("harm", 1), ("trip", 2)])
def test_going_back_takes_the_slice_out_in_the_same_table(
    world: Rolling, how: str, step: int
) -> None:
    world.to_step(step)
    epoch = world.router.table.epoch if world.router.table else 0
    if how == "harm":
        world.evidence.found = Assessment.HARMFUL
    elif how == "abort":
        world.submit("rollout.abort", reason="enough")
    else:
        world.router.trip(world.second, world.clock.now())
    world.until(lambda: world.rollout.status is RolloutStatus.ROLLED_BACK, ticks=4)
    assert world.router.table is not None
    assert world.router.table.epoch == epoch + 1
    assert [a.role.value for a in world.router.table.arms] == ["champion"]
    assert len(world.router.table.arms[0].urls) == 1
    world.until(lambda: only_own(world))
    world.until(lambda: workers(world) == {world.first: 1})
    assert len(world.router.applied) == epoch + 1


def test_it_waits_for_workers_that_do_not_come_up_and_serves_on(world: Rolling) -> None:
    """The champion keeps its own: it is ready, may be gone back to, and is not started again."""
    world.begin()
    world.until(lambda: world.ledger.active_rollout() is not None)
    world.until(lambda: workers(world).get(world.first) == 2)
    status = world.serving.status

    def without_the_last(release: str) -> Any:
        found = status(release)
        if release == world.first and found.replicas == 2:
            return replace(found, ready=False, urls=found.urls[:1], error="worker 1 ended: no room")
        return found

    with patch.object(
        type(world.serving), "status", lambda self, release: without_the_last(release)
    ):
        for _ in range(30):
            world.tick()
        assert world.rollout.step == 0
        waiting = world.rollout.history[-1].decision
        assert "0 of 1 workers of the equal baseline to be ready (worker 1 ended" in waiting
        assert set(arms(world)) == {"champion", "shadow"}
        assert world.events("champion.down") == []
        # Anybody may go back all the same, at once.
        world.submit("rollout.abort", reason="too long")
        world.until(lambda: world.rollout.status is RolloutStatus.ROLLED_BACK, ticks=3)
        assert arms(world)["champion"].weight == 1.0
        world.until(lambda: only_own(world))


def test_a_slice_whose_worker_ends_is_left_to_the_champion_until_it_is_back(
    world: Rolling,
) -> None:
    world.to_step(1)
    polls = world.serving._polls[world.first]
    world.serving.polls_until_ready = 3
    polls[1] = -3  # its worker ended and loads again
    world.tick()
    assert {r: a.weight for r, a in arms(world).items()} == {"champion": 0.8, "challenger": 0.2}
    assert arms(world)["champion"].urls == (f"memory://{world.first[:10]}",)
    world.until(lambda: "baseline" in arms(world), ticks=8)
    assert arms(world)["champion"].weight == 0.6


def test_a_champion_whose_own_worker_ends_gets_the_others(world: Rolling) -> None:
    world.to_step(1)
    world.serving.polls_until_ready = 3
    world.serving._polls[world.first][0] = -3
    world.tick()
    assert {r: a.weight for r, a in arms(world).items()} == {"champion": 0.8, "challenger": 0.2}
    assert len(arms(world)["champion"].urls) == 1
    world.until(lambda: "baseline" in arms(world), ticks=8)
    assert len(arms(world)["champion"].urls) == len(arms(world)["baseline"].urls) == 1


def test_people_see_the_slice(world: Rolling) -> None:
    world.to_step(1)
    card = rollout_card(world.ledger, world.rollout, world.clock.now())
    assert card["baseline"] == 1
    assert card["course"][-1]["shares"] == {"champion": 0.6, "challenger": 0.2, "baseline": 0.2}


def test_a_refused_update_gives_the_workers_back(world: Rolling) -> None:
    """They come with the staged challenger, before anybody approved."""
    asks = world.parts.config.model_copy(
        update={"approval": world.parts.config.approval.model_copy(update={"mode": "ask"})}
    )
    object.__setattr__(world.parts, "config", asks)
    world.restart()
    world.begin()
    world.until(lambda: workers(world).get(world.first) == 2)
    world.until(lambda: world.updates()[-1].phase == "approve")
    assert len(arms(world)["champion"].urls) == 1
    world.submit("update.reject", update=world.updates()[-1].update_id, reason="no")
    world.until(lambda: only_own(world))
