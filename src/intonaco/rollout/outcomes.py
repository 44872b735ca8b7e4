"""What one record says of the arm that it was assigned to. Every outcome is a loss: up is worse.

Users are judged by assignment, a release's health by its own attempt: a challenger that failed and
was shielded by the champion has failed.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Mapping

from intonaco.types import Attempt, Json, Outcome, Record, ScoredRecord

ERRORS, SLOW, CLIP_SCORE = "errors", "slow", "clip_score"
METRICS = (ERRORS, SLOW, CLIP_SCORE)

_FAILURES = (Outcome.ERROR, Outcome.TIMEOUT, Outcome.REJECTED)


def key_of(*parts: str) -> str:
    """Eight bytes, in hexadecimal, that stand for a unit or a prompt in stored state."""
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=8).hexdigest()


def started(record: Record) -> float:
    """When the request was first sent to a worker."""
    return min((a.started_at for a in record.attempts), default=record.at)


def ended(record: Record) -> float:
    """When its last attempt was over."""
    return max((a.started_at + a.seconds for a in record.attempts), default=record.at)


def own_attempts(record: Record) -> tuple[Attempt, ...]:
    """The attempts at the arm that the record was assigned to; all of a shadow's."""
    if record.shadow_of is not None:
        return record.attempts
    return tuple(a for a in record.attempts if a.arm == record.assigned_arm)


def error(record: Record) -> float | None:
    """1 if the assigned arm could not answer, else 0; None if it was not asked a fair question (a
    request that is itself wrong, a shadow copy that was shed under load)."""
    own = own_attempts(record)
    outcomes = {a.outcome for a in own}
    if any(a.outcome is Outcome.INVALID for a in record.attempts):
        return None
    if Outcome.OK in outcomes:
        return 0.0
    if record.shadow_of is not None:
        return 1.0 if outcomes & {Outcome.ERROR, Outcome.TIMEOUT} else None
    if own:
        return 1.0 if outcomes & set(_FAILURES) else 0.0  # else: the user hung up
    if 400 <= record.status < 500:
        return None
    return 1.0


class Medians:
    """Median service time (s) of the champion in each request class.

    ``fixed`` ones were set beforehand. A class without one learns it from champion attempts, always
    from those seen before the one that is judged, so that the limit is predictable. Both are state:
    a restart moves no limit.
    """

    def __init__(self, fixed: Mapping[str, float], *, needed: int = 20, kept: int = 200) -> None:
        self._fixed = dict(fixed)
        self._needed, self._kept = needed, kept
        self._learned: dict[str, list[float]] = {}

    def get(self, request_class: str) -> float | None:
        """None while too little is known."""
        if request_class in self._fixed:
            return self._fixed[request_class]
        times = self._learned.get(request_class, [])
        return statistics.median(times) if len(times) >= self._needed else None

    def learn(self, record: Record) -> None:
        """Take a record of the champion's."""
        if record.request_class in self._fixed or len(self._learned) >= 1000:
            return
        times = self._learned.setdefault(record.request_class, [])
        for attempt in own_attempts(record):
            if attempt.outcome is Outcome.OK and len(times) < self._kept:
                times.append(_duration(attempt))

    def state(self) -> Json:
        return {
            "fixed": dict(self._fixed),
            "learned": {k: list(v) for k, v in self._learned.items()},
        }

    def restore(self, state: Mapping[str, Json]) -> None:
        self._fixed = {k: float(v) for k, v in state["fixed"].items()}
        self._learned = {k: [float(t) for t in v] for k, v in state["learned"].items()}


def _duration(attempt: Attempt) -> float:
    done = attempt.outcome is Outcome.OK and attempt.service_seconds > 0
    return attempt.service_seconds if done else attempt.seconds


def outcomes(
    item: ScoredRecord,
    metrics: tuple[str, ...],
    *,
    medians: Medians,
    slower_than: float,
    score_range: tuple[float, float],
) -> dict[str, float] | None:
    """Losses in [0, 1] of the metrics that this record can be judged on; None if it is no fair
    question at all."""
    failed = error(item.record)
    if failed is None:
        return None
    found = {ERRORS: failed}
    median = medians.get(item.record.request_class)
    own = own_attempts(item.record)
    if median is not None and own:
        found[SLOW] = float(_duration(own[0]) > slower_than * median)
    if "clip" in item.scores:
        low, high = score_range
        score = min(max(item.scores["clip"], low), high)
        found[CLIP_SCORE] = (high - score) / (high - low)
    return {m: found[m] for m in metrics if m in found}
