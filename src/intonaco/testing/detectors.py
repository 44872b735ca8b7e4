"""Twin and conformance checks of the Detector seam.

The checks are about the interface. What a detector is worth, its false alarms and its delay, is
measured by seeded simulation, not by them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from intonaco.protocols import Detector
from intonaco.testing import require
from intonaco.types import Json


class ScriptedDetector:
    """Fires at its ``fire_at``-th value, whatever the values are (0: never). Its evidence rises
    evenly to the threshold and stays there. The null baseline that a real detector must beat."""

    threshold = math.log(100)

    def __init__(self, fire_at: int = 0) -> None:
        self.fire_at = fire_at
        self.seen = 0

    @property
    def evidence(self) -> float:
        if self.fire_at == 0:
            return 0.0
        return self.threshold * min(1.0, self.seen / self.fire_at)

    @property
    def drift_detected(self) -> bool:
        return 0 < self.fire_at <= self.seen

    def update(
        self,
        x: Any,
        *,
        session: str | None = None,
        topic: str | None = None,
        at: float | None = None,
    ) -> bool:
        self.seen += 1
        return self.drift_detected

    def update_many(self, xs: Iterable[Any]) -> bool:
        for x in xs:
            self.update(x)
        return self.drift_detected

    def reset(self) -> None:
        self.seen = 0

    def state(self) -> Mapping[str, Json]:
        return {"seen": self.seen}

    def restore(self, state: Mapping[str, Json]) -> None:
        self.seen = state["seen"]


def check_detector(
    make: Callable[[], Detector], quiet: Sequence[Any], moved: Sequence[Any]
) -> None:
    """Runs a detector through the protocol.

    ``quiet``: values on which it must not fire; ``moved``: values that, after the quiet ones, must
    make it fire. Raises AssertionError.
    """
    one = make()
    require(math.isfinite(one.threshold), f"the threshold is {one.threshold}")
    require(not one.drift_detected, "a new detector has fired")
    require(one.evidence < one.threshold, "a new detector is over its threshold")
    for x in quiet:
        fired = one.update(x)
        require(isinstance(fired, bool), f"update gives {fired!r}, not a bool")
        require(not fired, "it fired on the quiet values")
    alarms = 0
    for number, x in enumerate(moved, 1):
        fired = one.update(x, session=f"session {number}", topic="t", at=float(number))
        require(fired == one.drift_detected, "update and drift_detected disagree")
        require(
            fired == (one.evidence >= one.threshold),
            "it fires elsewhere than where the evidence reaches the threshold",
        )
        alarms += fired
    require(alarms > 0, f"it did not fire within {len(moved)} moved values")

    many = make()
    many.update_many(quiet)
    require(not many.drift_detected, "update_many fires where update does not")
    require(many.update_many(moved), "update_many does not fire where update does")

    whole, first = make(), make()
    values = [*quiet, *moved]
    half = len(quiet) + len(moved) // 2
    for x in values[:half]:
        whole.update(x)
        first.update(x)
    second = make()
    second.restore(json.loads(json.dumps(first.state())))
    require(second.evidence == first.evidence, "restore of a state gives other evidence")
    for x in values[half:]:
        require(
            whole.update(x) == second.update(x) and whole.evidence == second.evidence,
            "a restored detector goes another way than one that was never stopped",
        )

    whole.reset()
    require(not whole.drift_detected, "reset does not take the alarm back")
    for x in quiet:
        require(not whole.update(x), "it fires on the quiet values after a reset")
