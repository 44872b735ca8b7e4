"""A release that breaks at 50 % of users, on real processes: nobody sees it, and a second after the
third failure nobody is sent to it, with the controller alive or killed just before. No scorer: the
breaker needs none."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from rollback import bench
from rollback.plane import running


@pytest.mark.slow
def test_nobody_sees_a_release_break(tmp_path: Path) -> None:
    names = ("hard", "hard_controller_killed")
    faults = {f"{name}-0": bench.FAULTS[name] for name in names}
    with running(tmp_path / "workspace", faults, scorer=False, rate=10.0) as plane:
        for drill in faults:
            case = bench.drill(plane, drill)
            assert case.seconds <= 1.0, case
            assert case.tries >= bench.SOUND
        statuses = plane.users.statuses
    assert set(statuses) == {"200"}
    assert statuses["200"] > 2 * bench.SOUND
