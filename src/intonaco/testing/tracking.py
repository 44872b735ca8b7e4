"""Twin and conformance checks of the Tracker seam."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

from intonaco.protocols import Tracker
from intonaco.testing import require
from intonaco.types import Json

Points = Mapping[str, list[tuple[int, float]]]  # metric -> (step, value), in order


class MemoryTracker:
    """A tracker in memory."""

    def __init__(self) -> None:
        self.params: dict[str, dict[str, Json]] = {}
        self.metrics: dict[str, dict[str, list[tuple[int, float]]]] = {}
        self.artifacts: dict[str, list[Path]] = {}

    def log(
        self,
        run: str,
        *,
        params: Mapping[str, Json] | None = None,
        metrics: Mapping[str, float] | None = None,
        step: int | None = None,
        artifacts: Path | None = None,
    ) -> None:
        mine = self.params.setdefault(run, {})
        for name, value in (params or {}).items():
            mine.setdefault(name, value)
        series = self.metrics.setdefault(run, {})
        for name, number in (metrics or {}).items():
            series.setdefault(name, []).append((step or 0, float(number)))
        if artifacts is not None:
            self.artifacts.setdefault(run, []).append(artifacts)

    def points(self, run: str) -> Points:
        return self.metrics.get(run, {})


def check_tracker(
    tracker: Tracker, folder: Path, points: Callable[[str], Points] | None = None
) -> None:
    """Logs what a service logs and what it might by mistake: none of it may raise.

    ``folder``: an empty folder to make artifacts in. ``points``: reads a run's metrics back, where
    the engine can. Raises AssertionError.
    """
    artifact = folder / "report"
    artifact.mkdir()
    (artifact / "report.html").write_text("<p>report</p>")
    try:
        tracker.log("update-1/fine_tune")
        tracker.log("update-1/fine_tune", params={"steps": 100, "lora": {"rank": 4}, "none": None})
        tracker.log("update-1/fine_tune", params={"steps": 200}, metrics={"gate.kept": 1.0})
        for step in range(3):
            tracker.log("update-1/fine_tune", metrics={"loss": 1 / (step + 1)}, step=step)
        tracker.log("update-1/full", metrics={"loss": 7.0}, step=9)
        tracker.log("update-1/full", metrics={"not a number": math.nan, "no end": math.inf})
        tracker.log("update-1/full", metrics={f"slice/{i}": float(i) for i in range(250)})
        tracker.log("update-1/full", params={f"p{i}": "x" * 10_000 for i in range(120)})
        tracker.log("update-1/full", metrics={"odd: name! (%)": 1.0})
        tracker.log("a run's name", metrics={"loss": 1.0})
        tracker.log("update-1/full", artifacts=artifact)
        tracker.log("update-1/full", artifacts=artifact / "report.html")
        tracker.log("update-1/full", artifacts=folder / "not there")
        tracker.log("update-1/full", metrics={"after": 2.0}, step=10)
    except Exception as error:
        raise AssertionError(f"a tracker raised {error!r}") from error
    if points is None:
        return
    losses = points("update-1/fine_tune")["loss"]
    require(losses == [(0, 1.0), (1, 0.5), (2, 1 / 3)], f"the loss came back as {losses}")
    require(
        points("update-1/fine_tune")["gate.kept"] == [(0, 1.0)],
        "a changed parameter took the metrics of its call with it",
    )
    other = points("update-1/full")
    require(other["loss"] == [(9, 7.0)], f"two runs are mixed up: {other['loss']}")
    require(other["slice/249"] == [(0, 249.0)], "a large batch is not whole")
    require(other["after"] == [(10, 2.0)], "a refused call stopped the calls after it")
