"""One signal under watch: its detector, how far it is, and when its change began."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from intonaco.config import Signal
from intonaco.errors import ConfigError
from intonaco.monitoring.detectors.arrays import pack, unpack
from intonaco.monitoring.detectors.registry import resolve
from intonaco.monitoring.detectors.settings import DetectorSettings
from intonaco.monitoring.pace import Pace
from intonaco.monitoring.silence import Silence
from intonaco.monitoring.sources import Reading, Source, source
from intonaco.protocols import Detector
from intonaco.types import Json, SignalStatus

NEVER = 1e250  # updates; detectors keep their evidence below about 1e280
MARKS = 512  # how far back a change can be dated, in detector updates


@dataclass(slots=True)
class Watch:
    """``seen``: requests that the signal had something to say about, repeats included. ``pace``:
    turns a budget on another clock into updates; None where ``requests_between_false_alarms``
    counts updates, or more than them, as it is. ``reason``: why the last answer was no number."""

    name: str
    signal: Signal
    requests_between_false_alarms: float
    pace: Pace | None = None
    detector: Detector = field(init=False)
    detector_name: str = field(init=False)
    source: Source = field(init=False)
    seen: int = 0
    updates: int = 0
    armed_at: int | None = None
    firing: bool = False
    silence: Silence = field(default_factory=Silence)
    reason: str = ""
    # seen, at, value and what is usual in its topic (NaN: not known), per update
    _marks: deque[tuple[int, float, float, float]] = field(init=False)

    def __post_init__(self) -> None:
        self.source = source(self.name, self.signal)
        self.detector_name, factory = resolve(
            self.signal.detector,
            stream=self.source.stream,
            given_topic=self.given_topic,
        )
        self.detector = factory(
            DetectorSettings(
                requests_between_false_alarms=self._detectors_own(),
                reference=max(20, self.signal.reference - self.source.learns),
                tolerance=self.source.tolerance,
                direction=self.signal.direction,
                sessions=False,
            )
        )
        self._marks = deque(maxlen=MARKS)
        if self.pace is not None and not math.isclose(
            self.detector.threshold, math.log(self._detectors_own())
        ):
            raise ConfigError(
                f"monitoring.signals.{self.name}: the threshold of {self.detector_name} is not the "
                "logarithm of a number of updates, so it cannot keep a budget per week, or one of "
                "requests for a signal that is not of requests",
                hint="choose an e-detector",
            )

    def _detectors_own(self) -> float:
        """Updates between false alarms as the detector is told. With a pace the limit on its
        evidence moves, so the detector is given one that it never reaches, and is judged here."""
        return self.requests_between_false_alarms if self.pace is None else NEVER

    @property
    def threshold(self) -> float:
        """Limit on the detector's evidence."""
        if self.pace is None:
            return self.detector.threshold
        return math.log(self.requests_between_false_alarms)

    @property
    def given_topic(self) -> bool:
        return self.signal.judged_given_topic

    @property
    def armed(self) -> bool:
        return bool(getattr(self.detector, "armed", True))

    def feed(self, reading: Reading, clock: float = 0.0) -> bool:
        """Give the detector one reading; True when it fires, once. A firing signal goes on showing
        its value, but what it says next would be about the same change. ``clock``: of the pace."""
        x, at = reading.value, reading.at
        session = reading.session
        topic = reading.topic if self.given_topic else None
        if self.firing:
            self.detector.update(x, session=session, topic=topic, at=at)
            return False
        value = float(x) if isinstance(x, (int, float)) else math.nan
        usual = self._usual(topic)
        self._marks.append((self.seen, at, value, math.nan if usual is None else usual))
        self.updates += 1
        if self.pace is not None:
            self._keep_pace(self.pace, clock)
        fired = self.detector.update(x, session=session, topic=topic, at=at)
        if self.armed_at is None and self.armed:
            self.armed_at = self.seen
            if self.pace is not None:
                self.pace.reference_ends(clock)
                self._raise_threshold(self.pace)
        if self.pace is not None:
            fired = self.detector.evidence >= self.threshold
        self.firing = fired and self.armed
        return self.firing

    def _keep_pace(self, pace: Pace, clock: float) -> None:
        pace.count(clock)
        if self.armed_at is not None:
            self._raise_threshold(pace)

    def _raise_threshold(self, pace: Pace) -> None:
        needed = pace.raised()
        if needed is not None:
            self.requests_between_false_alarms = max(2.0, needed)

    def since(self) -> tuple[int, float]:
        """Estimate of the request, in this signal's count, and of the time the change began."""
        seen, at, *_ = self._since_marks()[0]
        return seen, at

    def _usual(self, topic: str | None) -> float | None:
        tell = getattr(self.detector, "reference_of", None)
        return None if tell is None else tell(topic)

    def value_since(self) -> float | None:
        """Mean of the values since the change."""
        since = self._since_marks()
        known = [v for _, _, v, usual in since if not math.isnan(v) and not math.isnan(usual)]
        values = known or [v for _, _, v, _ in since if not math.isnan(v)]
        return sum(values) / len(values) if values else None

    def value_before(self) -> float | None:
        """What ``value_since`` would be were all as in the reference: judged given the topic, the
        usual of the topics that are asked for now, so that another mix of topics is no change."""
        known = [
            usual
            for _, _, v, usual in self._since_marks()
            if not math.isnan(v) and not math.isnan(usual)
        ]
        if known:
            return sum(known) / len(known)
        return getattr(self.detector, "reference_value", None)

    def _since_marks(self) -> list[tuple[int, float, float, float]]:
        marks = list(self._marks)
        since = getattr(self.detector, "since", None)
        if since is None:
            return marks[-100:]
        return marks[max(0, int(since) - (self.updates - len(marks))) :] or marks[-1:]

    def raw(self, value: float | None) -> float | None:
        """A detector's value in the signal's own units."""
        return None if value is None else self.source.raw(value)

    @property
    def reference_mean(self) -> float | None:
        """Of all that the reference is made of, in the signal's own units."""
        mean = getattr(self.detector, "reference_mean", None)
        return self.reference_value if mean is None else self.raw(mean)

    @property
    def reference_value(self) -> float | None:
        return self.raw(getattr(self.detector, "reference_value", None))

    def status(self) -> SignalStatus:
        evidence = self.detector.evidence
        return SignalStatus(
            signal=self.name,
            detector=self.detector_name,
            armed=self.armed,
            armed_at=self.armed_at,
            requests=self.seen,
            value=self.raw(getattr(self.detector, "value", None)),
            reference=self.reference_value,
            evidence=evidence if math.isfinite(evidence) else 0.0,
            threshold=self.threshold,
            firing=self.firing,
            last_at=self.silence.heard_at if self.updates else None,
            no_data=self.reason,
        )

    def state(self) -> Mapping[str, Json]:
        return {
            "detector_name": self.detector_name,
            "detector": self.detector.state(),
            "source": self.source.state(),
            "seen": self.seen,
            "updates": self.updates,
            "armed_at": self.armed_at,
            "firing": self.firing,
            "pace": None if self.pace is None else self.pace.state(),
            "silence": self.silence.state(),
            "reason": self.reason,
            "marks": pack(np.array(self._marks, dtype=np.float64).reshape(-1, 4)),
        }

    def restore(self, state: Mapping[str, Json]) -> None:
        self.detector.restore(state["detector"])
        self.source.restore(state["source"])
        self.seen = int(state["seen"])
        self.updates = int(state["updates"])
        self.armed_at = None if state["armed_at"] is None else int(state["armed_at"])
        self.firing = bool(state["firing"])
        self.silence = Silence.of_state(state.get("silence", [None, False]))
        self.reason = state.get("reason", "")
        if self.pace is not None and state.get("pace") is not None:
            self.pace.restore(state["pace"])
            if self.pace.told:
                self.requests_between_false_alarms = max(2.0, self.pace.told)
            elif self.armed_at is not None:
                self._raise_threshold(self.pace)
        rows = [(*row, math.nan)[:4] for row in unpack(state["marks"]).tolist()]  # once three
        self._marks = deque(((int(s), a, v, usual) for s, a, v, usual in rows), maxlen=MARKS)
