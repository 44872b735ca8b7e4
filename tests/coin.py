"""A detector that fires at exactly the rate that it is allowed: the sharpest null there is."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping
from typing import Any

from intonaco.monitoring.detectors import DetectorSettings
from intonaco.types import Json

RANDOM = random.Random(0)  # of all coins; tests seed it


class Coin:
    """Fires at each update with probability exp(-threshold), once it is armed."""

    def __init__(self, threshold: float, reference: int) -> None:
        self.threshold = threshold
        self.reference = reference
        self.reset()

    @classmethod
    def of(cls, settings: DetectorSettings) -> Coin:
        return cls(settings.threshold, settings.reference)

    def reset(self) -> None:
        self.n = 0
        self.fired = False

    @property
    def armed(self) -> bool:
        return self.n >= self.reference

    @property
    def evidence(self) -> float:
        return self.threshold if self.fired else 0.0

    @property
    def drift_detected(self) -> bool:
        return self.fired

    def update(self, x: Any, **_: Any) -> bool:
        armed, self.n = self.armed, self.n + 1
        self.fired |= armed and RANDOM.random() < math.exp(-self.threshold)
        return self.fired

    def update_many(self, xs: Iterable[Any]) -> bool:
        for x in xs:
            self.update(x)
        return self.fired

    def state(self) -> Mapping[str, Json]:
        return {"n": self.n, "fired": self.fired}

    def restore(self, state: Mapping[str, Json]) -> None:
        self.n, self.fired = state["n"], state["fired"]
