"""Null baseline: an alarm after so many updates, whatever they say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from intonaco.monitoring.detectors.settings import DetectorSettings
from intonaco.types import Json


class PeriodicDetector:
    """Fires at the ``every``-th update after a reset. What any real detector must beat, behind the
    same interface: it keeps its false-alarm rate and knows nothing.

    >>> detector = PeriodicDetector(every=3)
    >>> [detector.update(x) for x in "abcd"]
    [False, False, True, True]
    """

    name = "periodic"
    armed = True

    def __init__(self, *, every: int) -> None:
        self.every = every
        self.threshold = float(every)
        self._n = 0

    @classmethod
    def of(cls, settings: DetectorSettings) -> PeriodicDetector:
        settings.chosen(cls.name)
        return cls(every=max(1, round(settings.requests_between_false_alarms)))

    @property
    def evidence(self) -> float:
        """The number of updates: no evidence of anything."""
        return float(self._n)

    @property
    def drift_detected(self) -> bool:
        return self._n >= self.every

    @property
    def since(self) -> int:
        return max(0, self._n - 1)

    def reset(self) -> None:
        self._n = 0

    def update(
        self,
        x: Any,
        *,
        session: str | None = None,
        topic: str | None = None,
        at: float | None = None,
    ) -> bool:
        self._n += 1
        return self.drift_detected

    def update_many(self, xs: Iterable[Any]) -> bool:
        for x in xs:
            self.update(x)
        return self.drift_detected

    def state(self) -> Mapping[str, Json]:
        return {"n": self._n}

    def restore(self, state: Mapping[str, Json]) -> None:
        self._n = int(state["n"])
