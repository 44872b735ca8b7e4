"""For how long are users still sent to a release that breaks, and do they see it?

One service of real processes as `intonaco up` starts them (gateway, workers of a tiny diffusion
model, scorer, controller with a tick a second), 20 requests a second, each by another user. A
release that is made to break is rolled out again and again:

- `hard`: at 50 % of users, every request fails from one on; `hard_controller_killed`: the
  controller is killed (SIGKILL) just before that and stays dead; `hard_in_bake`: it breaks after
  its promotion, and the champion before it has to take everybody. Counted from the end of the third
  hard failure.
- `partial`: one request in four fails, at which the breaker never trips;
  `partial_controller_killed`: the controller is killed amid that and started again by the
  supervisor. Counted from the sequential test's decision.
- `command`: a person types `intonaco rollback`, at 50 % of users, with the controller killed, and
  in the bake. Counted from the start of that command.

Seconds go to the start of the last try of a user's request at that release, the worst of all runs
(`ROLLBACK_RUNS` of each, 3 if not set). `user_errors`: answers other than a picture, of all
`requests` that were sent. Fewer than three failed tries follow from probes, which the breaker sends
by itself.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import parts
from rollback import measured
from rollback.measured import Case
from rollback.plane import PATIENCE_S, Plane, running

from intonaco.types import Phase, Release

RUNS = int(os.environ.get("ROLLBACK_RUNS", "3"))
ROW = 3  # gateway.breaker_failures
SOUND = 40  # requests before a release breaks in its canary
SOUND_UNTIL_BAKE = 600
LATE_S = 2.0  # watched on, so that who is sent too late is seen

# A release's first request is the picture that it is staged with.
FAULTS: Mapping[str, str] = {
    "hard": f"errors:after={SOUND + 1}",
    "hard_controller_killed": f"errors:after={SOUND + 1}",
    "hard_in_bake": f"errors:after={SOUND_UNTIL_BAKE}",
    "partial": "errors:after=1,every=4",
    "partial_controller_killed": "errors:after=1,every=4",
    "command": "",
    "command_controller_killed": "",
    "command_in_bake": "",
}


def run() -> dict[str, float]:
    """Seconds, and numbers of requests."""
    faults = {f"{name}-{k}": fault for k in range(RUNS) for name, fault in FAULTS.items()}
    with (
        tempfile.TemporaryDirectory() as folder,
        running(Path(folder) / "workspace", faults, scorer=True) as plane,
    ):
        cases = [_told(drill(plane, name)) for name in faults]
        statuses = plane.users.statuses
    if set(statuses) - {"200"}:
        print("answers:", dict(statuses), file=sys.stderr)
    return measured.figures(cases, statuses)


def drill(plane: Plane, name: str) -> Case:
    """Roll the release of that name out and see it go. Raises RuntimeError if the story was
    another than the one it is to be."""
    scenario = name.rpartition("-")[0]
    release = plane.begin(name)
    try:
        since = _DRILLS[scenario](plane, release)
        time.sleep(LATE_S)
    finally:
        plane.revive()
    update = plane.until_ended(release.release_id)
    if update.phase is not Phase.ROLLED_BACK:
        raise RuntimeError(f"{name} ended {update.phase}: {update.reason}")
    found = measured.tries(plane.records(), release.release_id)
    return Case(scenario=scenario, since=since, last_at=found[-1].started_at, tries=len(found))


def _hard(plane: Plane, release: Release) -> float:
    _until_broken(plane, release)
    return _third(plane, release)


def _hard_controller_killed(plane: Plane, release: Release) -> float:
    _until_tried(plane, release, SOUND - 6)
    killed = plane.kill_controller()
    _until_broken(plane, release)
    first = measured.first_failure(plane.records(), release.release_id)
    if first is None or first < killed:
        raise RuntimeError("the release broke before the controller was killed")
    return _third(plane, release)


def _hard_in_bake(plane: Plane, release: Release) -> float:
    promoted = _until_baking(plane, release)
    _until_broken(plane, release)
    first = measured.first_failure(plane.records(), release.release_id)
    if first is None or first < promoted:
        raise RuntimeError("the release broke before it was promoted")
    return _third(plane, release)


def _partial(plane: Plane, release: Release) -> float:
    _until_decided(plane, release)
    return plane.rolled_back_at(release.release_id)


def _partial_controller_killed(plane: Plane, release: Release) -> float:
    _until_tried(plane, release, 20)
    plane.kill_controller()
    plane.revive()
    return _partial(plane, release)


def _command(plane: Plane, release: Release) -> float:
    _until_tried(plane, release, 20)
    return plane.rollback()


def _command_controller_killed(plane: Plane, release: Release) -> float:
    _until_tried(plane, release, 20)
    plane.kill_controller()
    return plane.rollback()


def _command_in_bake(plane: Plane, release: Release) -> float:
    _until_baking(plane, release)
    return plane.rollback()


_DRILLS: Mapping[str, Callable[[Plane, Release], float]] = {
    "hard": _hard,
    "hard_controller_killed": _hard_controller_killed,
    "hard_in_bake": _hard_in_bake,
    "partial": _partial,
    "partial_controller_killed": _partial_controller_killed,
    "command": _command,
    "command_controller_killed": _command_controller_killed,
    "command_in_bake": _command_in_bake,
}


# ------------------------------------------------------------------------------------ waiting


def _until_tried(plane: Plane, release: Release, count: int) -> None:
    parts.until(
        lambda: len(measured.tries(plane.records(), release.release_id)),
        lambda n: n >= count,
        "requests at the challenger",
        PATIENCE_S,
    )


def _until_broken(plane: Plane, release: Release) -> None:
    parts.until(
        lambda: measured.hard_failure(plane.records(), release.release_id, ROW),
        lambda at: at is not None,
        "the third failure",
        PATIENCE_S,
    )


def _until_baking(plane: Plane, release: Release) -> float:
    """When it was promoted."""
    rollout = parts.until(
        lambda: plane.rollout(release.release_id),
        lambda r: r is not None and (r.promoted_at is not None or r.status.final),
        "the promotion",
        PATIENCE_S,
    )
    if rollout is None or rollout.promoted_at is None:
        raise RuntimeError(f"it was not promoted: {rollout}")
    return rollout.promoted_at


def _until_decided(plane: Plane, release: Release) -> None:
    parts.until(
        lambda: plane.rollout(release.release_id),
        lambda r: r is not None and r.status.final,
        "the decision",
        PATIENCE_S,
    )


def _third(plane: Plane, release: Release) -> float:
    at = measured.hard_failure(plane.records(), release.release_id, ROW)
    assert at is not None
    return at


def _told(case: Case) -> Case:
    print(
        f"{case.scenario}: {case.seconds:.3f} s, {case.tries} tries at the release",
        file=sys.stderr,
        flush=True,
    )
    return case
