"""A rollout's evidence from events in one order: who is new, and what each test is told. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from intonaco.rollout.evidence import Evidence, Unit, evidence_of, split_keys
from intonaco.rollout.outcomes import CLIP_SCORE
from intonaco.types import Json


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Event:
    """A unit (``weight`` in (0, 1)), a champion's request that was not randomised (``weight`` 0) or
    a shadow pair (``weight`` None), with losses or differences of losses. Ordered by start."""

    start: float
    seq: int
    unit: str
    weight: float | None
    challenger: bool
    topic: str
    request_class: str
    values: Mapping[str, float]
    request: str = ""  # its id, where people may have said something of it


class Lane:
    """Evidence per metric from events in one order."""

    def __init__(self, points: Mapping[str, tuple[float, float]], max_units: int) -> None:
        self.evidence: dict[str, Evidence] = {
            m: evidence_of(m, tolerance=tolerance, margin=margin)
            for m, (tolerance, margin) in points.items()
        }
        self.units = [0, 0]  # champion, challenger
        self._seen: set[str] = set()
        self._max_units = max_units

    def take(self, event: Event) -> bool:
        """Whether it is a pair or a unit's first request."""
        new = self._count(event)
        known = new or event.unit in self._seen
        for metric, value in event.values.items():
            if known and event.weight != 0:
                unit = Unit(
                    key=event.unit,
                    value=value,
                    weight=event.weight,
                    challenger=event.challenger,
                    topic=event.topic if metric == CLIP_SCORE else None,
                    request_class=event.request_class,
                    first=new,
                )
                self.evidence[metric].take(unit)
            if event.weight is not None and not event.challenger:
                self.evidence[metric].learn(value, event.request_class)
        return new

    def _count(self, event: Event) -> bool:
        if event.weight is None:
            return True
        if not event.weight or event.unit in self._seen or len(self._seen) >= self._max_units:
            return False
        self._seen.add(event.unit)
        self.units[event.challenger] += 1
        return True

    def state(self) -> Json:
        return {
            "evidence": {m: e.state() for m, e in self.evidence.items()},
            "units": list(self.units),
            "seen": "".join(sorted(self._seen)),
        }

    def restore(self, state: Mapping[str, Json]) -> None:
        for metric, evidence in self.evidence.items():
            evidence.restore(state["evidence"][metric])
        self.units = [int(n) for n in state["units"]]
        self._seen = split_keys(state["seen"])
