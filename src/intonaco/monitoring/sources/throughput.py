"""Whether the workers keep up with what is asked of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from intonaco.config import Signal
from intonaco.monitoring.signals import champion_attempts
from intonaco.monitoring.sources.base import Reading, Seen, Source
from intonaco.types import Finding, Json, Outcome, Tally

BUSY = "rate_limit_exceeded"
FORGET = 0.8  # of what was learned of the speed, a reading


class Throughput(Source):
    """1 for a stretch of ``every_s`` seconds in which more images were asked for than the workers
    could make, else 0.

    Demand is what ended, what was refused because the service was busy, and by how much the number
    of images being made grew. Capacity is the number of workers times the images that a second of
    a worker's time makes at the batch sizes of now. Where the service normally keeps up, the
    reading is 0 by day and by night, however much traffic swings.
    """

    direction = "up"
    stream = "rate"
    per_request = False

    def __init__(self, name: str, signal: Signal) -> None:
        super().__init__(name, signal)
        self._from: float | None = None
        self._demand = 0.0
        self._flying: dict[str, int] = {}  # by gateway
        self._images = 0.0
        self._work = 0.0  # seconds of workers' time that these took
        self.demand: float | None = None  # images a second, of the last stretch
        self.capacity: float | None = None

    def of_record(self, seen: Seen) -> Iterable[Reading]:
        for attempt in champion_attempts(seen.item.record, seen.release):
            if attempt.outcome is Outcome.OK and attempt.service_seconds > 0:
                self._images += 1.0
                self._work += attempt.service_seconds / max(1, attempt.batch_size)
        return ()

    def of_tally(self, tally: Tally) -> Iterable[Reading]:
        before = self._flying.get(tally.gateway, 0)
        self._flying[tally.gateway] = tally.in_flight
        self._demand += tally.images + tally.in_flight - before + tally.refused.get(BUSY, 0)
        return ()

    def tick(self, now: float) -> Iterable[Reading]:
        if self._from is None:
            self._from = now
        seconds = now - self._from
        if seconds < self.signal.every_s:
            return ()
        demand, self._from, self._demand = max(0.0, self._demand) / seconds, now, 0.0
        if not self.workers or not self._work:
            self.demand = self.capacity = None
            return ()  # no data: nothing is known of what the workers can do
        self.demand, self.capacity = demand, self.workers * self._images / self._work
        self._images *= FORGET
        self._work *= FORGET
        return (Reading(value=float(self.demand > self.capacity), at=now),)

    def text(self, finding: Finding) -> str:
        now = ""
        if self.demand is not None and self.capacity is not None:
            now = f"; last {self.demand:.2g} images/s were asked for and {self.capacity:.2g} can be"
            now += " made"
        return (
            f"In {finding.value_now:.0%} of the time more is asked for than the workers can make "
            f"(before: {finding.value_before:.0%}){now}"
        )

    def state(self) -> Mapping[str, Json]:
        return {
            "from": self._from,
            "demand": self._demand,
            "flying": dict(self._flying),
            "images": self._images,
            "work": self._work,
            "last": [self.demand, self.capacity],
        }

    def restore(self, state: Mapping[str, Json]) -> None:
        self._from = state["from"]
        self._demand = float(state["demand"])
        self._flying = dict(state["flying"])
        self._images, self._work = float(state["images"]), float(state["work"])
        self.demand, self.capacity = state["last"]
