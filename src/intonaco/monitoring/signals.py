"""What each signal reads off a scored record. Pure, except that latency learns its medians."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

from intonaco.types import Attempt, Json, Outcome, Record, ScoredRecord

OWN_ARMS = ("champion", "baseline")  # the two arms that the present champion answers
FAILURES = (Outcome.ERROR, Outcome.TIMEOUT)
CLASSES = 64  # request classes (edits apart, size, steps) whose latency is watched
SHORTEST = 0.001  # seconds; what is usually shorter is compared with this


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


def seconds_of(record: Record, release: str | None, part: str = "service") -> float | None:
    """Seconds that the champion took for a part of this image; None if it made none, or if nobody
    told. ``part``: "service", "queue", "encode", "denoise", "decode"; "total": end to end;
    "device": this image's share of the device's time."""
    attempt = next(
        (
            a
            for a in champion_attempts(record, release)
            if a.outcome is Outcome.OK and a.service_seconds > 0
        ),
        None,
    )
    if attempt is None:
        return None
    if part == "total":
        return record.seconds if record.status == 200 else None
    if part == "device":
        return attempt.gpu_seconds or attempt.service_seconds / max(1, attempt.batch_size)
    seconds = float(getattr(attempt, f"{part}_seconds"))
    return seconds if seconds > 0 or part == "queue" else None


@dataclass(slots=True)
class LatencyClasses:
    """Compares a request with the usual of its class: the median of the class's first ``learn``
    requests, a millisecond at least, so that a queue that was empty can be compared with. A class
    says nothing until it has learned."""

    slower_than: float
    learn: int
    part: str = "service"
    medians: dict[str, float] = field(default_factory=dict)
    _learning: dict[str, list[float]] = field(default_factory=dict)

    def slow(self, record: Record, release: str | None) -> float | None:
        """1 if it took more than ``slower_than`` times the usual, 0 if not, None unknown."""
        ratio = self.ratio(record, release)
        return None if ratio is None else float(ratio > self.slower_than)

    def ratio(self, record: Record, release: str | None) -> float | None:
        """How many times the usual it took, None unknown."""
        seconds = seconds_of(record, release, self.part)
        if seconds is None:
            return None
        name = record.request_class
        median = self.medians.get(name)
        if median is not None:
            return seconds / max(median, SHORTEST)
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
