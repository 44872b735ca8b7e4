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
    """Its evidence at each update exceeds a limit l with probability exp(-l), once it is armed."""

    def __init__(self, threshold: float, reference: int) -> None:
        self.threshold = threshold
        self.reference = reference
        self.reset()

    @classmethod
    def of(cls, settings: DetectorSettings) -> Coin:
        return cls(settings.threshold, settings.reference)

    def reset(self) -> None:
        self.n = 0
        self.evidence = 0.0

    @property
    def armed(self) -> bool:
        return self.n >= self.reference

    @property
    def drift_detected(self) -> bool:
        return self.evidence >= self.threshold

    def update(self, x: Any, **_: Any) -> bool:
        self.evidence = -math.log(1.0 - RANDOM.random()) if self.armed else 0.0
        self.n += 1
        return self.drift_detected

    def update_many(self, xs: Iterable[Any]) -> bool:
        for x in xs:
            self.update(x)
        return self.drift_detected

    def state(self) -> Mapping[str, Json]:
        return {"n": self.n, "evidence": self.evidence}

    def restore(self, state: Mapping[str, Json]) -> None:
        self.n, self.evidence = state["n"], state["evidence"]
