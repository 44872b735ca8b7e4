"""Scores of the champion's pictures by any head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from intonaco.config import Signal
from intonaco.monitoring.signals import champion_score
from intonaco.monitoring.sources.base import Reading, Seen, Source, reading
from intonaco.types import Finding, Json

WIDER = 3.0  # see ``Score``


class Score(Source):
    """Values of the head ``signal.score``, brought into 0 to 1 by ``signal.range``.

    Without a range they are learned from the first values: their middle 90 %, three times as far
    again on both sides. What lies outside is cut off there, as the detectors' guarantee needs;
    a move beyond it is seen all the same.
    """

    unit = "score"
    extracted = True
    repeats = False
    of_heads = True

    def __init__(self, name: str, signal: Signal) -> None:
        super().__init__(name, signal)
        self._head = signal.score or ""
        self._range = signal.range
        self._first: list[float] = []

    @property
    def learns(self) -> int:
        if self.signal.range is not None:
            return 0
        return max(20, min(100, self.signal.reference // 4))

    @property
    def tolerance(self) -> float:
        """In the head's own units only where the range is given; else learned too late to be of
        use, and a share of what the values span."""
        if self.signal.range is None:
            return self.signal.tolerance
        return self.signal.tolerance / (self.signal.range[1] - self.signal.range[0])

    def of_record(self, seen: Seen) -> Iterable[Reading]:
        value = champion_score(seen.item, self._head, seen.release)
        if value is None:
            return ()
        if self._range is None:
            if not seen.repeat:
                self._learn(value)
            return ()
        low, high = self._range
        return (reading(seen, min(max((value - low) / (high - low), 0.0), 1.0)),)

    def _learn(self, value: float) -> None:
        self._first.append(value)
        if len(self._first) < self.learns:
            return
        low, high = (float(q) for q in np.quantile(self._first, (0.05, 0.95)))
        span = (high - low) or max(abs(high), 1.0)
        self._range = (low - WIDER * span, high + WIDER * span)
        self._first = []

    def raw(self, value: float) -> float:
        low, high = self._range or (0.0, 1.0)
        return low + value * (high - low)

    def text(self, finding: Finding) -> str:
        verb = "fell" if finding.value_now < finding.value_before else "rose"
        return (
            f"{self._head} {verb} from {finding.value_before:.3g} to {finding.value_now:.3g} since "
            f"request {finding.since}"
        )

    def state(self) -> Mapping[str, Json]:
        return {
            "range": None if self._range is None else list(self._range),
            "first": list(self._first),
        }

    def restore(self, state: Mapping[str, Json]) -> None:
        known = state["range"]
        if self.signal.range is None:
            self._range = None if known is None else (float(known[0]), float(known[1]))
        self._first = [float(v) for v in state["first"]]


class Safety(Source):
    """1 for a picture that the head ``signal.score`` holds to be unsafe, else 0."""

    stream = "rate"
    direction = "up"
    extracted = True
    of_heads = True

    def of_record(self, seen: Seen) -> Iterable[Reading]:
        value = champion_score(seen.item, self.signal.score or "", seen.release)
        return () if value is None else (reading(seen, float(value > self.signal.unsafe_above)),)

    def text(self, finding: Finding) -> str:
        return (
            f"{finding.value_now:.1%} of the champion's pictures are now held to be unsafe "
            f"(before: {finding.value_before:.1%})"
        )
