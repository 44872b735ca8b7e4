"""E-detector for the mean of a bounded stream."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from intonaco.errors import ConfigError
from intonaco.monitoring.detectors.mixture import STAKES, Mixture, slack_of
from intonaco.monitoring.detectors.settings import DetectorSettings, Direction
from intonaco.types import Json


class MeanDetector:
    """Shiryaev-Roberts e-detector for a scalar in [0, 1]: a score, or 0 and 1 for a rate.

    The first ``reference`` updates say what is normal; from then on it is armed. Values outside
    [0, 1] are clipped, because the guarantee rests on the bound. Bets on a fall take values above
    the reference's largest as that one, bets on a rise likewise below: they lose less on any one
    value, so they may stake more, and a stream that fills little of [0, 1] is watched as closely
    as one that fills it.

    ``threshold``: log of the mean number of updates to a false alarm. ``tolerance``: a shift of the
    mean up to this is normal. ``z``: how many standard errors of the reference mean count as
    normal; with 3.5 a reference is too narrow in about one of 2,000 cases.

    >>> import random
    >>> rng = random.Random(1)
    >>> detector = MeanDetector(threshold=math.log(10_000), reference=500, direction="down")
    >>> any(detector.update(rng.uniform(0.6, 0.8)) for _ in range(1500))
    False
    >>> any(detector.update(rng.uniform(0.5, 0.7)) for _ in range(200))
    True
    >>> 1450 < detector.since < 1550
    True

    Shin, Ramdas & Rinaldo, "E-detectors", arXiv 2203.03532.
    """

    name = "e-mean"

    def __init__(
        self,
        *,
        threshold: float,
        reference: int = 2000,
        tolerance: float = 0.0,
        direction: Direction = "both",
        z: float = 3.5,
    ) -> None:
        if reference < 2:
            raise ConfigError(f"reference: at least 2 updates are needed (given: {reference})")
        self.threshold = threshold
        self.reference = reference
        self.tolerance = tolerance
        self.direction: Direction = direction
        self.z = z
        self.reset()

    @classmethod
    def of(cls, settings: DetectorSettings) -> MeanDetector:
        return cls(
            threshold=settings.threshold,
            reference=settings.reference,
            tolerance=settings.tolerance,
            direction=settings.direction,
        )

    def reset(self) -> None:
        """Forget all, the reference too."""
        self._n = 0
        self._fired = False
        self._sum = 0.0
        self._sum_squares = 0.0
        self._low = 1.0
        self._high = 0.0
        self._armed_at = 0
        self._recent = math.nan
        self._mixture: Mixture | None = None

    @property
    def armed(self) -> bool:
        return self._mixture is not None

    @property
    def updates(self) -> int:
        return self._n

    @property
    def evidence(self) -> float:
        return self._mixture.evidence if self._mixture else -math.inf

    @property
    def drift_detected(self) -> bool:
        """Whether it fired; it stays so until ``reset``."""
        return self._fired

    @property
    def since(self) -> int:
        """Estimate of the update at which the change began."""
        return self._armed_at + self._mixture.since if self._mixture else self._n

    @property
    def reference_value(self) -> float | None:
        """Mean of the reference."""
        return self._sum / self.reference if self._mixture else None

    @property
    def value(self) -> float | None:
        """Mean of about the last hundred updates."""
        return None if math.isnan(self._recent) else self._recent

    def update(
        self,
        x: Any,
        *,
        session: str | None = None,
        topic: str | None = None,
        at: float | None = None,
    ) -> bool:
        value = min(max(float(x), 0.0), 1.0)
        self._n += 1
        rate = max(0.01, 1.0 / self._n)
        previous = 0.0 if math.isnan(self._recent) else self._recent
        self._recent = previous + rate * (value - previous)
        if self._mixture is None:
            self._sum += value
            self._sum_squares += value * value
            self._low = min(self._low, value)
            self._high = max(self._high, value)
            if self._n >= self.reference:
                self._arm()
            return False
        if self._fired:
            return True  # evidence and date stay those of the alarm
        self._fired |= (
            self._mixture.update(np.array([min(value, self._high), max(value, self._low)]))
            >= self.threshold
        )
        return self.drift_detected

    def update_many(self, xs: Iterable[Any]) -> bool:
        for x in xs:
            self.update(x)
        return self.drift_detected

    def _arm(self) -> None:
        n = self.reference
        mean = self._sum / n
        variance = max(self._sum_squares / n - mean * mean, 0.0) * n / (n - 1)
        slack = float(slack_of(variance, n, self.z)) + self.tolerance
        sides = {"up": (1.0,), "down": (-1.0,), "both": (1.0, -1.0)}[self.direction]
        sign = np.repeat(sides, len(STAKES))
        self._mixture = Mixture(
            index=(sign > 0).astype(np.int64),  # feature 0: for a fall, feature 1: for a rise
            sign=sign,
            stake=np.tile(STAKES, len(sides)),
            weight=np.ones(len(sign)),
            mean=np.full(2, mean),
            slack=np.full(2, slack),
            low=np.array([0.0, self._low]),
            high=np.array([self._high, 1.0]),
        )
        self._armed_at = self._n

    def state(self) -> Mapping[str, Json]:
        return {
            "n": self._n,
            "fired": self._fired,
            "sum": self._sum,
            "sum_squares": self._sum_squares,
            "low": self._low,
            "high": self._high,
            "armed_at": self._armed_at,
            "recent": None if math.isnan(self._recent) else self._recent,
            "mixture": self._mixture.state() if self._mixture else None,
        }

    def restore(self, state: Mapping[str, Json]) -> None:
        self._n = int(state["n"])
        self._fired = bool(state["fired"])
        self._sum = float(state["sum"])
        self._sum_squares = float(state["sum_squares"])
        self._low = float(state["low"])
        self._high = float(state["high"])
        self._armed_at = int(state["armed_at"])
        self._recent = math.nan if state["recent"] is None else float(state["recent"])
        self._mixture = Mixture.of_state(state["mixture"]) if state["mixture"] else None
