"""What one record says of the arm that it was assigned to. Every outcome is a loss: up is worse.

Shares and scores are losses in [0, 1]; a latency is in seconds, a cost in multiples of the usual.

Users are judged by assignment, a release's health by its own attempt: a challenger that failed and
was shielded by the champion has failed.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Mapping

from intonaco.config import ONLINE_METRICS
from intonaco.types import Attempt, Json, Outcome, Record, ScoredRecord

ERRORS, LATENCY, CLIP_SCORE, SLOW, COST, FEEDBACK, END_TO_END = ONLINE_METRICS
BOUNDED = (ERRORS, SLOW, CLIP_SCORE)  # losses in [0, 1], which shadow pairs can be compared by

_KINDS = 1000
_GIVEN_UP = (499, 504)  # by the user, by us
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
    """The champion's median of something, in seconds, in each kind of request: at first its service
    time in each request class.

    ``fixed`` ones were set beforehand. A kind without one learns it from champion records, always
    from those seen before the one that is judged, so that the limit is predictable. Both are state:
    a restart moves no limit.
    """

    def __init__(self, fixed: Mapping[str, float], *, needed: int = 20, kept: int = 200) -> None:
        self._fixed = dict(fixed)
        self._needed, self._kept = needed, kept
        self._learned: dict[str, list[float]] = {}

    def get(self, kind: str) -> float | None:
        """None while too little is known."""
        if kind in self._fixed:
            return self._fixed[kind]
        times = self._learned.get(kind, [])
        return statistics.median(times) if len(times) >= self._needed else None

    def learn(self, record: Record) -> None:
        """Take the service times of a record of the champion's."""
        for attempt in own_attempts(record):
            if attempt.outcome is Outcome.OK:
                self.take(_duration(attempt), record.request_class)

    def take(self, seconds: float, kind: str) -> None:
        """Take one value of the champion's."""
        if kind in self._fixed:
            return
        if kind not in self._learned and len(self._learned) >= _KINDS:
            return
        times = self._learned.setdefault(kind, [])
        if len(times) < self._kept:
            times.append(seconds)

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


def latency(record: Record) -> float | None:
    """Service time of the assigned arm in seconds; of a request that was given up, by us or by the
    user, the time until then. None of one that failed: how long a failure takes is no service."""
    ended_by = (Outcome.OK, Outcome.TIMEOUT, Outcome.CANCELLED)
    found = next((_duration(a) for a in own_attempts(record) if a.outcome in ended_by), None)
    # A clock that was set back between start and end leaves no time, and no reason to stop.
    return found if found is not None and 0 <= found < math.inf else None


def waited(record: Record) -> float | None:
    """Seconds that the user waited for an answer, or until it was given up; queues, and whoever
    stepped in for the assigned arm, included. None of a request that failed, which is an error, and
    of a copy, for which nobody waits."""
    answered = record.shadow_of is None and (record.status == 200 or record.status in _GIVEN_UP)
    return record.seconds if answered and 0 <= record.seconds < math.inf else None


def device_seconds(record: Record) -> tuple[str, float] | None:
    """This image's share of the device's time on the assigned arm, in seconds, which times the
    price of a second is its cost, and what it is comparable with: its class in a batch of its
    size, since images in a full batch are cheaper. None of an arm that made none."""
    for a in own_attempts(record):
        if a.outcome is Outcome.OK and a.service_seconds > 0:
            # as windows of traffic and the signal ``cost`` reckon it
            share = a.gpu_seconds or a.service_seconds / max(1, a.batch_size)
            if not 0 < share < math.inf:
                return None
            return f"{record.request_class} batch {max(1, a.padded_size)}", share
    return None


def outcomes(
    item: ScoredRecord,
    metrics: tuple[str, ...],
    *,
    medians: Medians,
    slower_than: float,
    score_range: tuple[float, float],
    usual: Medians | None = None,
) -> dict[str, float] | None:
    """Losses of the metrics that this record can be judged on; None if it is no fair question at
    all. ``usual``: of ``device_seconds``."""
    failed = error(item.record)
    if failed is None:
        return None
    found = {ERRORS: failed}
    median = medians.get(item.record.request_class)
    own = own_attempts(item.record)
    if median is not None and own:
        found[SLOW] = float(_duration(own[0]) > slower_than * median)
    seconds, device = latency(item.record), device_seconds(item.record)
    if seconds is not None:
        found[LATENCY] = seconds
    if (whole := waited(item.record)) is not None:
        found[END_TO_END] = whole
    if device is not None and usual is not None:
        normal = usual.get(device[0])
        if normal is not None and normal > 0:
            found[COST] = device[1] / normal
    if "clip" in item.scores:
        low, high = score_range
        score = min(max(item.scores["clip"], low), high)
        found[CLIP_SCORE] = (high - score) / (high - low)
    return {m: found[m] for m in metrics if m in found}
