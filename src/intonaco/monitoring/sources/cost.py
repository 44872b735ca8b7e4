"""What an image costs, within a request class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from intonaco.config import Signal
from intonaco.monitoring.signals import LatencyClasses
from intonaco.monitoring.sources.base import Reading, Seen, Source, reading
from intonaco.types import Finding, Json


class Cost(Source):
    """An image's share of the device's time, c times the usual of its class, given to the detector
    as c/(1 + c): 0.5 is the usual. The price of an hour multiplies both and so does not matter
    here; in money it is in the windows of traffic."""

    unit = "times the usual"

    def __init__(self, name: str, signal: Signal) -> None:
        super().__init__(name, signal)
        self._classes = LatencyClasses(slower_than=1.0, learn=self.learns, part="device")

    @property
    def learns(self) -> int:
        return max(20, min(100, self.signal.reference // 2))

    @property
    def tolerance(self) -> float:
        return self.signal.tolerance / 4.0  # the slope of c/(1 + c) at 1

    def of_record(self, seen: Seen) -> Iterable[Reading]:
        times = self._classes.ratio(seen.item.record, seen.release)
        return () if times is None else (reading(seen, times / (1.0 + times)),)

    def raw(self, value: float) -> float:
        return value / max(1e-9, 1.0 - value)

    def text(self, finding: Finding) -> str:
        return (
            f"An image now takes {finding.value_now:.2f} times the usual share of the device's "
            f"time (before: {finding.value_before:.2f})"
        )

    def state(self) -> Mapping[str, Json]:
        return self._classes.state()

    def restore(self, state: Mapping[str, Json]) -> None:
        self._classes.restore(state)
