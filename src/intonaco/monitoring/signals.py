"""What each signal reads off a scored record. Pure, except that latency learns its medians."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

from intonaco.types import Attempt, Json, Outcome, Record, ScoredRecord

OWN_ARMS = ("champion", "baseline")  # the two arms that the present champion answers
FAILURES = (Outcome.ERROR, Outcome.TIMEOUT)
CLASSES = 64  # request classes (edits apart, size, steps) whose latency is watched


def is_user_request(record: Record) -> bool:
    return not record.probe and record.shadow_of is None


def champion_attempts(record: Record, release: str | None) -> tuple[Attempt, ...]:
    """Attempts that say something about the champion: of users assigned to it (not of those whom
    the canary shield sent there), on its arms, and by ``release`` where that is known."""
    if record.assigned_arm not in OWN_ARMS:
        return ()
    return tuple(a for a in record.attempts if a.arm in OWN_ARMS and release in (None, a.release))


def failed(record: Record, release: str | None) -> float | None:
    """1 if the champion failed this request at least once, 0 if not, None if it says nothing: a
    wrong or cancelled request, or no attempt. A full or draining worker is a failure only when
    nobody served the request."""
    outcomes = [a.outcome for a in champion_attempts(record, release)]
    if any(o in FAILURES for o in outcomes):
        return 1.0
    if Outcome.REJECTED in outcomes and record.served_by is None:
        return 1.0
    return 0.0 if Outcome.OK in outcomes else None


def champion_made(item: ScoredRecord, release: str | None) -> bool:
    """Whether the champion made this record's image, for a user assigned to it."""
    return any(
        a.outcome is Outcome.OK and a.release == item.record.served_by
        for a in champion_attempts(item.record, release)
    )


def champion_score(item: ScoredRecord, name: str, release: str | None) -> float | None:
    """Raw score of an image that the champion made for a user assigned to it."""
    return item.scores.get(name) if champion_made(item, release) else None


@dataclass(slots=True)
class LatencyClasses:
    """Says whether a request was slow for its class: longer than ``slower_than`` times the median
    of the class's first ``learn`` requests. A class says nothing until it has learned."""

    slower_than: float
    learn: int
    medians: dict[str, float] = field(default_factory=dict)
    _learning: dict[str, list[float]] = field(default_factory=dict)

    def slow(self, record: Record, release: str | None) -> float | None:
        """1 slow, 0 not, None unknown."""
        seconds = next(
            (
                a.service_seconds
                for a in champion_attempts(record, release)
                if a.outcome is Outcome.OK and a.service_seconds > 0
            ),
            None,
        )
        if seconds is None:
            return None
        name = record.request_class
        median = self.medians.get(name)
        if median is not None:
            return float(seconds > self.slower_than * median)
        if name not in self._learning and len(self._learning) + len(self.medians) >= CLASSES:
            return None
        seen = self._learning.setdefault(name, [])
        seen.append(seconds)
        if len(seen) >= self.learn:
            self.medians[name] = statistics.median(seen)
            del self._learning[name]
        return None

    def state(self) -> Mapping[str, Json]:
        return {
            "medians": dict(self.medians),
            "learning": {k: list(v) for k, v in self._learning.items()},
        }

    def restore(self, state: Mapping[str, Json]) -> None:
        self.medians = {str(k): float(v) for k, v in state["medians"].items()}
        self._learning = {str(k): [float(s) for s in v] for k, v in state["learning"].items()}
