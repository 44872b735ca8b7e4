"""What is a detector worth? False alarms, delay, misses and cost on recorded streams. Pure: streams
and a processor clock in, figures out.

The protocol. A detector first sees a **reference**, a stream without a change, until it is armed.
Then it sees each stream that is to be judged, every one from the same armed state. An alarm before
the change, or on a stream without one, is a false alarm, after which the detector goes on from the
armed state again. The **delay** is the number of requests from the first after the change to the
one that fires, both counted; a stream that ends before is a **miss**. All requests count, also
those that the detector leaves out as repeats.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intonaco.errors import ConfigError
from intonaco.protocols import Detector

CONFIDENCE = 0.95  # of each one-sided Poisson bound

CpuClock = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """``x`` [n, d] or [n]; ``at`` [n] seconds or None; ``session`` [n] or None; ``change_at``: the
    index of the first request after the change, None for a stream without one."""

    x: NDArray[Any]
    at: NDArray[np.float64] | None = None
    session: Sequence[str] | None = None
    change_at: int | None = None

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What came of some streams. ``null_events``: requests without a change behind them, on which
    ``false_alarms`` were raised. ``cpu_seconds`` are of ``timed_events`` requests."""

    streams: int = 0
    null_events: int = 0
    false_alarms: int = 0
    delays: tuple[int, ...] = ()
    misses: int = 0
    cpu_seconds: float = 0.0
    timed_events: int = 0
    state_bytes: int = 0

    def __add__(self, other: Score) -> Score:
        return Score(
            streams=self.streams + other.streams,
            null_events=self.null_events + other.null_events,
            false_alarms=self.false_alarms + other.false_alarms,
            delays=self.delays + other.delays,
            misses=self.misses + other.misses,
            cpu_seconds=self.cpu_seconds + other.cpu_seconds,
            timed_events=self.timed_events + other.timed_events,
            state_bytes=max(self.state_bytes, other.state_bytes),
        )

    @property
    def alarms_per_10k(self) -> float:
        """False alarms in 10,000 requests; NaN without any request."""
        return 1e4 * self.false_alarms / self.null_events if self.null_events else math.nan

    @property
    def bounds_per_10k(self) -> tuple[float, float]:
        """Lower and upper one-sided 95 % bounds of that rate."""
        if not self.null_events:
            return 0.0, math.inf
        low, high = poisson_bounds(self.false_alarms)
        return 1e4 * low / self.null_events, 1e4 * high / self.null_events

    def keeps(self, requests_between_false_alarms: float) -> bool:
        """Whether the lower bound does not exceed the budget. No data is no pass."""
        if not self.null_events:
            return False
        return self.bounds_per_10k[0] <= 1e4 / requests_between_false_alarms

    @property
    def median_delay(self) -> float:
        """Median over all streams with a change, a miss as infinite; NaN if there is none."""
        return self._delay(0.5)

    @property
    def p90_delay(self) -> float:
        return self._delay(0.9)

    def _delay(self, q: float) -> float:
        every = sorted([*map(float, self.delays), *[math.inf] * self.misses])
        if not every:
            return math.nan
        if q == 0.5:
            return statistics.median(every)
        return every[min(len(every) - 1, math.ceil(q * len(every)) - 1)]

    @property
    def us_per_event(self) -> float:
        """Microseconds of processor time a request."""
        return 1e6 * self.cpu_seconds / self.timed_events if self.timed_events else math.nan


class Evaluation:
    """A detector armed by ``reference``, ready to be judged on any number of streams.

    ``detector`` must be fresh. Raises ConfigError if the reference did not arm it.
    """

    def __init__(self, detector: Detector, reference: Recorded, cpu: CpuClock) -> None:
        self.detector = detector
        self._cpu = cpu
        self._streams = 0
        seconds, _ = self._feed(reference, 0, len(reference), until_alarm=False)
        if not getattr(detector, "armed", True):
            raise ConfigError(
                f"reference: its {len(reference)} requests did not arm the detector",
                hint="configure a shorter reference or record a longer one",
            )
        self._armed = detector.state()
        self.reference_score = Score(
            cpu_seconds=seconds,
            timed_events=len(reference),
            state_bytes=len(json.dumps(self._armed)),
        )

    def score(self, stream: Recorded) -> Score:
        """Judge one stream, from the armed state."""
        self._streams += 1
        self._rearm()
        end = len(stream) if stream.change_at is None else min(stream.change_at, len(stream))
        score = Score(streams=1, null_events=end)
        at = 0
        while at < end:
            seconds, fired = self._feed(stream, at, end)
            score = self._timed(score, seconds, (end if fired is None else fired + 1) - at)
            if fired is None:
                break
            score = replace(score, false_alarms=score.false_alarms + 1)
            self._rearm()
            at = fired + 1
        if stream.change_at is not None:
            seconds, fired = self._feed(stream, end, len(stream))
            score = self._timed(score, seconds, (len(stream) if fired is None else fired + 1) - end)
            if fired is None:
                score = replace(score, misses=1)
            else:
                score = replace(score, delays=(fired + 1 - end,))
        return replace(score, state_bytes=len(json.dumps(self.detector.state())))

    @staticmethod
    def _timed(score: Score, seconds: float, events: int) -> Score:
        return replace(
            score,
            cpu_seconds=score.cpu_seconds + seconds,
            timed_events=score.timed_events + events,
        )

    def _rearm(self) -> None:
        rearm = getattr(self.detector, "rearm", None)
        if rearm is not None:
            rearm()
        else:
            self.detector.restore(self._armed)

    def _feed(
        self, stream: Recorded, start: int, end: int, *, until_alarm: bool = True
    ) -> tuple[float, int | None]:
        """(processor seconds, index of the request that fired)."""
        at = [None] * len(stream) if stream.at is None else stream.at.tolist()
        prefix = f"{self._streams}/"
        who = stream.session
        sessions = [None] * len(stream) if who is None else [f"{prefix}{s}" for s in who]
        x, update = stream.x, self.detector.update
        began = self._cpu()
        for i in range(start, end):
            if update(x[i], session=sessions[i], at=at[i]) and until_alarm:
                return self._cpu() - began, i
        return self._cpu() - began, None


def total(scores: Iterable[Score]) -> Score:
    """All of them together."""
    return sum(scores, Score())


def poisson_bounds(count: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """One-sided lower and upper bounds of a Poisson mean of which ``count`` was seen.

    Garwood, Biometrika 28, 1936; by bisection of the distribution function.
    """

    def below(mean: float, n: int) -> float:  # P(N <= n)
        return math.fsum(
            math.exp(i * math.log(mean) - mean - math.lgamma(i + 1)) for i in range(n + 1)
        )

    def solve(n: int, wanted: float) -> float:
        low, high = 1e-9, 10.0 + 4.0 * (n + 1)
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if below(middle, n) > wanted else (low, middle)
        return (low + high) / 2

    lower = 0.0 if count == 0 else solve(count - 1, confidence)
    return lower, solve(count, 1.0 - confidence)
