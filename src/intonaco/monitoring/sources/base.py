"""What every source of a signal has in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from numpy.typing import NDArray

from intonaco.config import Signal
from intonaco.monitoring.cohorts import Mature
from intonaco.types import Feedback, Finding, Json, Sample, ScoredRecord, Tally

# What the readings are, and with it which detectors can take them: vectors; numbers in [0, 1];
# of those, 0 and 1 or a share; positive numbers without a bound.
Stream = Literal["vector", "bounded", "rate", "positive"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A user's scored record and what the monitor knows of it. ``release``: the champion that is
    judged (None: whichever). ``row``: the prompt's unit vector [d], None if it has none.
    ``repeat``: the same session asked the same just before. ``topic``: group of the reference that
    the prompt belongs to, None before the groups are known."""

    item: ScoredRecord
    release: str | None
    row: NDArray[Any] | None = None
    repeat: bool = False
    topic: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One value for a signal's detector, as its source's ``stream`` says. ``session``: who caused
    it. ``at``: when, in seconds since 1970. ``topic``: what it is judged given."""

    value: Any
    at: float
    session: str | None = None
    topic: str | None = None


class Source:
    """Reads one signal's values off what happens. Override what the signal needs; each of
    ``of_record``, ``of_feedback``, ``of_cohort``, ``of_tally``, ``of_sample`` and ``tick`` gives
    the readings it completes, oldest first. ``workers``: how many serve the champion, 0 if that is
    not known.

    ``unit``: of the signal's values as people see them. ``direction``: "up", "down" or "moved",
    for signals that are watched on both sides: "" (what it did is seen from the values).
    ``extracted``: made by the extractor, so that it means nothing beside values of another one.
    ``repeats``: whether a session's repeats count. ``of_heads``: made by heads of the scorer, so
    that it means nothing beside values of others. ``stream``: what its readings are.
    ``per_request``: never more readings than requests, so that a budget given in requests holds.
    """

    unit: ClassVar[str] = "share"
    direction: ClassVar[str] = ""
    extracted: ClassVar[bool] = False
    repeats: ClassVar[bool] = True
    of_heads: ClassVar[bool] = False
    stream: Stream = "bounded"
    per_request: ClassVar[bool] = True

    def __init__(self, name: str, signal: Signal) -> None:
        self.name = name
        self.signal = signal
        self.workers = 0

    @property
    def learns(self) -> int:
        """Requests that it needs for itself before it gives the first reading."""
        return 0

    @property
    def silent_after(self) -> float | None:
        """Seconds without data that are a finding; None: none are."""
        return self.signal.silent_after_s

    @property
    def tolerance(self) -> float:
        """The configured tolerance in units of the readings."""
        return self.signal.tolerance

    def of_record(self, seen: Seen) -> Iterable[Reading]:
        return ()

    def of_feedback(self, feedback: Feedback, now: float) -> Iterable[Reading]:
        return ()

    def of_cohort(self, image: Mature) -> Iterable[Reading]:
        """Of an image whose time for feedback is over."""
        return ()

    def of_tally(self, tally: Tally) -> Iterable[Reading]:
        return ()

    def of_sample(self, sample: Sample) -> Iterable[Reading]:
        """``sample`` is of this very signal and has a value."""
        return ()

    def tick(self, now: float) -> Iterable[Reading]:
        return ()

    def raw(self, value: float) -> float:
        """A reading in the signal's own unit."""
        return value

    def text(self, finding: Finding) -> str:
        """What a finding of this signal says, in one sentence without its clusters."""
        verb = "fell" if finding.value_now < finding.value_before else "rose"
        unit = "" if finding.unit in ("", "share") else f" {finding.unit}"
        since = f"since {'request' if self.per_request else 'reading'} {finding.since}"
        return (
            f"{self.name} {verb} from {finding.value_before:.3g} to {finding.value_now:.3g}{unit} "
            f"{since}"
        )

    def state(self) -> Mapping[str, Json]:
        return {}

    def restore(self, state: Mapping[str, Json]) -> None:
        return None


def reading(seen: Seen, value: Any) -> Reading:
    """The reading that a record gives."""
    record = seen.item.record
    return Reading(value=value, at=record.at, session=record.unit, topic=seen.topic)
