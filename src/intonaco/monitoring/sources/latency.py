"""How long the champion takes, within a request class and batch size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from intonaco.config import Signal
from intonaco.monitoring.signals import LatencyClasses
from intonaco.monitoring.sources.base import Reading, Seen, Source, Stream, reading
from intonaco.types import Finding, Json

NAMES = {"service": "", "total": " end to end", "queue": " in the queue"}


class Latency(Source):
    """Times of one part of a request, against the usual of its class and, of the work itself, of
    its batch size, so that users who ask for larger pictures, and batches that fill up, are no
    regression.

    ``reading: slow``: 1 for a request that took more than ``slower_than`` times the usual, else 0,
    for detectors of a mean. ``reading: ratio``: how many times the usual it took, for detectors of
    quantiles, which see a small slowing of all requests too.
    """

    stream: Stream = "rate"
    direction = "up"

    def __init__(self, name: str, signal: Signal) -> None:
        super().__init__(name, signal)
        self.ratios = signal.reading == "ratio"
        self.stream = "positive" if self.ratios else "rate"
        self._classes = LatencyClasses(
            slower_than=signal.slower_than,
            learn=self.learns,
            part=signal.part,
            reference=max(20, signal.reference - self.learns),
        )

    @property
    def learns(self) -> int:
        return max(20, min(100, self.signal.reference // 2))

    def of_record(self, seen: Seen) -> Iterable[Reading]:
        record = seen.item.record
        take = self._classes.ratio if self.ratios else self._classes.slow
        value = take(record, seen.release)
        return () if value is None else (reading(seen, value),)

    def text(self, finding: Finding) -> str:
        known = {
            f"{m:.2g} s": m for sizes in self._classes.medians.values() for m in sizes.values()
        }
        usual = " or ".join(sorted(known, key=lambda text: known[text])[:3])
        part = NAMES.get(self.signal.part, f" for {self.signal.part}")
        if self.ratios:
            return (
                f"Requests now take {finding.value_now:.2f} times the usual {usual}{part} "
                f"(before: {finding.value_before:.2f})"
            )
        return (
            f"{finding.value_now:.1%} of requests now take more than {self.signal.slower_than:g} "
            f"times the usual {usual}{part} (before: {finding.value_before:.1%})"
        )

    def state(self) -> Mapping[str, Json]:
        return self._classes.state()

    def restore(self, state: Mapping[str, Json]) -> None:
        self._classes.restore(state)
