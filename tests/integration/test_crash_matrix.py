"""The controller is killed at every point of four updates, and nothing differs in the end.

A point is before or after a call to the outside (jobs, workers, gateways, registry, notification)
or a commit. The story: a first release; a second that goes through stage, shadow, canary, approval,
everybody and promotion, and is rolled back while it bakes; its retry, which is promoted; and a way
back asked for by a person. The outside refuses what would harm a user: a routing table whose shares
do not sum to 1 or whose workers do not answer, the retirement of a release that has users. Told
once more of three workers that roll, and of an equal baseline arm, it refuses the end of a worker
that has users, too, and one worker too many.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from tests.crashing import Point, killed_at, points_of, run

EVERY = 240  # of the points in the default run


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def rolled(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[Point]]:
    """The same story told of a rolling rollout of three workers."""
    root = tmp_path_factory.mktemp("reference") / "rolled"
    ended, killed = run(root, story="rolling")
    assert killed == 0
    return ended, points_of(root)


@pytest.fixture(scope="module")
def sliced(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[Point]]:
    """The same story told with an equal baseline arm."""
    root = tmp_path_factory.mktemp("reference") / "sliced"
    ended, killed = run(root, story="baseline")
    assert killed == 0
    return ended, points_of(root)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[Point]]:
    """How it ends when nobody kills it, and the points it passes."""
    root = tmp_path_factory.mktemp("reference") / "service"
    ended, killed = run(root)
    assert killed == 0
    return ended, points_of(root)


def test_the_story_is_the_one_that_is_told(
    undisturbed: tuple[dict[str, Any], list[Point]],
) -> None:
    ended, points = undisturbed
    phases = [phase for phase, _, _ in ended["updates"]]
    assert phases == ["promoted", "rolled_back", "promoted", "promoted"]
    first, second = ended["tenures"][:2]
    assert ended["tenures"] == [first, second, first, second, first]
    baked = [status for status, *_ in ended["rollouts"]]
    assert baked == ["promoted", "rolled_back", "promoted", "promoted"]
    assert ended["rollouts"][1][3][-2:] == ["promote", "bake"]
    kinds = {
        name.split("(")[0].removeprefix("before ").removeprefix("after ") for name, _ in points
    }
    assert kinds >= {
        "a commit",
        "training.submit",
        "training.poll",
        "serving.deploy",
        "serving.drain",
        "serving.retire",
        "router.apply",
        "router.observed",
        "registry.register",
        "registry.set_alias",
        "notifier.send",
    }


def test_killed_now_and_then(
    undisturbed: tuple[dict[str, Any], list[Point]], tmp_path: Path
) -> None:
    matrix(undisturbed, tmp_path, every=EVERY)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_killed_everywhere(
    undisturbed: tuple[dict[str, Any], list[Point]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    points = matrix(undisturbed, tmp_path, every=1)
    with capsys.disabled():
        print(f"\ncrash matrix: {points} points, all passed")


def test_workers_roll_in_the_same_story(rolled: tuple[dict[str, Any], list[Point]]) -> None:
    ended, points = rolled
    assert [phase for phase, _, _ in ended["updates"]] == [
        "promoted", "rolled_back", "promoted", "promoted",
    ]  # fmt: skip
    kinds = ended["rollouts"][1][3]
    assert kinds == ["shadow", "approve", "canary", "canary", "canary", "promote", "bake"]
    scaled = [count for name, count in points if name.startswith("after serving.scale")]
    assert len(scaled) >= 12


def test_killed_now_and_then_while_workers_roll(
    rolled: tuple[dict[str, Any], list[Point]], tmp_path: Path
) -> None:
    """At some of the points where workers are started or ended, and now and then."""
    ended, points = rolled
    scaling = [p for p in points if "serving.scale" in p[0]]
    chosen = [*scaling[3::9], *points[EVERY :: 4 * EVERY]]
    matrix((ended, chosen), tmp_path, every=1, story="rolling")


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_killed_everywhere_while_workers_roll(
    rolled: tuple[dict[str, Any], list[Point]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    points = matrix(rolled, tmp_path, every=1, story="rolling")
    with capsys.disabled():
        print(f"\ncrash matrix, rolling: {points} points, all passed")


def test_an_equal_slice_comes_and_goes_in_the_same_story(
    sliced: tuple[dict[str, Any], list[Point]],
) -> None:
    ended, points = sliced
    assert [phase for phase, _, _ in ended["updates"]] == [
        "promoted", "rolled_back", "promoted", "promoted",
    ]  # fmt: skip
    kinds = ended["rollouts"][1][3]
    assert kinds == ["canary", "canary", "approve", "canary", "promote", "bake"]
    scaled = [count for name, count in points if name.startswith("after serving.scale")]
    assert len(scaled) == 4  # up and down, in each of the two that compare
    assert list(ended["workers"].values()) == [1]


def test_killed_now_and_then_with_an_equal_slice(
    sliced: tuple[dict[str, Any], list[Point]], tmp_path: Path
) -> None:
    """At the points where its workers are started and ended, and now and then."""
    ended, points = sliced
    scaling = [p for p in points if "serving.scale" in p[0]]
    chosen = [*scaling[::3], *points[EVERY // 2 :: 4 * EVERY]]
    matrix((ended, chosen), tmp_path, every=1, story="baseline")


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_killed_everywhere_with_an_equal_slice(
    sliced: tuple[dict[str, Any], list[Point]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    points = matrix(sliced, tmp_path, every=1, story="baseline")
    with capsys.disabled():
        print(f"\ncrash matrix, equal slice: {points} points, all passed")


def matrix(
    undisturbed: tuple[dict[str, Any], list[Point]],
    folder: Path,
    *,
    every: int,
    story: str = "canary",
) -> int:
    """Kill at every so manieth point; how many there were."""
    expected, points = undisturbed
    chosen = points[::every]
    told = {point: killed_at(folder / "service", point, expected, story) for point in chosen}
    failed = {point: wrong for point, wrong in told.items() if wrong}
    assert failed == {}, f"{len(failed)} of {len(chosen)} points"
    return len(chosen)
