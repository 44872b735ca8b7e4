"""How long the champion takes, within a request class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from intonaco.config import Signal
from intonaco.monitoring.signals import LatencyClasses
from intonaco.monitoring.sources.base import Reading, Seen, Source, reading
from intonaco.types import Finding, Json


class Latency(Source):
    """1 for a request that took more than ``slower_than`` times its class's usual time, else 0."""

    stream = "rate"
    direction = "up"

    def __init__(self, name: str, signal: Signal) -> None:
        super().__init__(name, signal)
        self._classes = LatencyClasses(slower_than=signal.slower_than, learn=self.learns)

    @property
    def learns(self) -> int:
        return max(20, min(100, self.signal.reference // 2))

    def of_record(self, seen: Seen) -> Iterable[Reading]:
        value = self._classes.slow(seen.item.record, seen.release)
        return () if value is None else (reading(seen, value),)

    def text(self, finding: Finding) -> str:
        usual = " or ".join(f"{m:.2g} s" for m in sorted(self._classes.medians.values())[:3])
        return (
            f"{finding.value_now:.1%} of requests now take more than {self.signal.slower_than:g} "
            f"times the usual {usual} (before: {finding.value_before:.1%})"
        )

    def state(self) -> Mapping[str, Json]:
        return self._classes.state()

    def restore(self, state: Mapping[str, Json]) -> None:
        self._classes.restore(state)
