"""Windows of traffic: counts and sketches of every record, in bounded memory.

Each record is counted in its minute, its hour and its day, by the time at which it was asked for,
so a late one finds its place and the three levels agree without ever being rolled up. Windows are
what is written; in memory are only those that were touched lately. Within a window, figures are
kept apart by release, arm and request class. All counts are whole numbers, so windows of parts of
the traffic (two gateways, say), merged in any order, are the very window of the whole.
"""

from __future__ import annotations

import math
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from intonaco.monitoring.signals import is_user_request
from intonaco.stats.sketch import QuantileSketch
from intonaco.types import Attempt, Json, Outcome, Record, Tally, TrafficWindow

# level -> (seconds of a window, seconds that windows are kept)
LEVELS: Mapping[str, tuple[int, int]] = {
    "minute": (60, 2 * 3600),
    "hour": (3600, 7 * 86_400),
    "day": (86_400, 31 * 86_400),
}
CLASSES = 16  # request classes told apart in a window
CELLS = 64  # combinations of release, arm and class in a window
NAMES = 24  # names of errors, refusals, batch sizes in a cell
OTHER = "other"
IN_MEMORY = 12  # windows
# Of an image, each with a sketch. "seconds" is end to end; "work" is its share of a worker's time,
# "gpu" of the GPU's, where that was measured; "device" is "gpu" where there is one, else "work".
TIMES = ("seconds", "queue", "service", "encode", "denoise", "decode", "device", "work", "gpu")

Key = tuple[str, str, str]  # release, arm, request class


@dataclass(slots=True)
class Cell:
    """One release in one arm with requests of one class.

    ``statuses``: user requests by the HTTP status of their answer, under the arm that they were
    assigned to and the release that answered. All else is of attempts, under the arm and release
    that were tried. ``batches``: images by "SIZE/PADDED" of the batch they were made in.
    ``peak``: bytes.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    batches: Counter[str] = field(default_factory=Counter)
    peak: int = 0
    times: dict[str, QuantileSketch] = field(default_factory=dict)

    def time(self, name: str) -> QuantileSketch:
        return self.times.get(name) or QuantileSketch()

    def took(self, name: str, seconds: float) -> None:
        sketch = self.times.get(name)
        if sketch is None:
            sketch = self.times[name] = QuantileSketch()
        sketch.add(max(0.0, seconds) if math.isfinite(seconds) else 0.0)

    @property
    def requests(self) -> int:
        return sum(self.statuses.values())

    @property
    def images(self) -> int:
        """Made by workers."""
        return self.outcomes[Outcome.OK.value]

    @property
    def slots(self) -> float:
        """Images that the batches had room for."""
        return sum(n * _padded(size) for size, n in self.batches.items())

    def attempt(self, attempt: Attempt) -> None:
        self.outcomes[attempt.outcome.value] += 1
        if attempt.outcome is not Outcome.OK:
            _bounded(self.errors, error_name(attempt))
            return
        self.took("queue", attempt.queue_seconds)
        size = max(1, attempt.batch_size)
        if attempt.service_seconds > 0:
            self.took("service", attempt.service_seconds)
            self.took("work", attempt.service_seconds / size)
            self.took("device", attempt.gpu_seconds or attempt.service_seconds / size)
        for part in ("encode", "denoise", "decode"):
            seconds = getattr(attempt, f"{part}_seconds")
            if seconds > 0:  # 0: not told
                self.took(part, seconds)
        if attempt.gpu_seconds > 0:
            self.took("gpu", attempt.gpu_seconds)
        self.peak = max(self.peak, attempt.peak_memory_bytes)
        if attempt.batch_size and attempt.padded_size:
            _bounded(self.batches, f"{attempt.batch_size}/{attempt.padded_size}")

    def merge(self, other: Cell) -> None:
        self.statuses.update(other.statuses)
        self.outcomes.update(other.outcomes)
        for mine, theirs in ((self.errors, other.errors), (self.batches, other.batches)):
            for name, count in theirs.items():
                _bounded(mine, name, count)
        self.peak = max(self.peak, other.peak)
        for name, sketch in other.times.items():
            if name not in self.times:
                self.times[name] = QuantileSketch()
            self.times[name].merge(sketch)

    def state(self) -> Json:
        return {
            **{
                name: dict(sorted(getattr(self, name).items()))
                for name in ("statuses", "outcomes", "errors", "batches")
                if getattr(self, name)
            },
            "peak": self.peak,
            "times": {n: self.times[n].state() for n in TIMES if n in self.times},
        }

    @classmethod
    def of_state(cls, state: Mapping[str, Json]) -> Cell:
        return cls(
            **{
                name: Counter(state.get(name, {}))
                for name in ("statuses", "outcomes", "errors", "batches")
            },
            peak=state["peak"],
            times={n: QuantileSketch.of_state(s) for n, s in state["times"].items()},
        )


@dataclass(slots=True)
class Window:
    """One stretch of traffic. ``requests`` that ended, those that ``failed`` with a server error
    and those that were ``refused``, by code, are the gateways' own counts."""

    requests: int = 0
    failed: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    cells: dict[Key, Cell] = field(default_factory=dict)

    def cell(self, release: str, arm: str, request_class: str) -> Cell:
        """The cell of these, or the one that holds what there is no room for."""
        key = (release, arm, request_class)
        found = self.cells.get(key)
        if found is not None:
            return found
        known = {c for _, _, c in self.cells}
        if request_class not in known and len(known - {OTHER}) >= CLASSES:
            return self.cell(release, arm, OTHER) if request_class != OTHER else self._new(key)
        return self._new(key)

    def _new(self, key: Key) -> Cell:
        if len(self.cells) >= CELLS:
            key = (OTHER, OTHER, OTHER)
        return self.cells.setdefault(key, Cell())

    def record(self, record: Record) -> None:
        """Count a record; probes are nobody's traffic, copies count as attempts only."""
        if record.probe:
            return
        kind = record.request_class
        if is_user_request(record):
            answered = self.cell(record.served_by or "", record.assigned_arm, kind)
            answered.statuses[str(record.status)] += 1
            if record.status == 200:
                answered.took("seconds", record.seconds)
        for attempt in record.attempts:
            self.cell(attempt.release, attempt.arm, kind).attempt(attempt)

    def tally(self, tally: Tally) -> None:
        self.requests += tally.requests
        self.failed += tally.failed
        for code, count in tally.refused.items():
            _bounded(self.refused, code, count)

    def merge(self, other: Window) -> None:
        """Count all that ``other`` counted. Of too many classes the most frequent stay apart."""
        self.requests += other.requests
        self.failed += other.failed
        for code, count in other.refused.items():
            _bounded(self.refused, code, count)
        for key, cell in other.cells.items():
            self.cells.setdefault(key, Cell()).merge(cell)
        frequency: Counter[str] = Counter()
        for (_, _, kind), cell in self.cells.items():
            if kind != OTHER:
                frequency[kind] += sum(cell.outcomes.values()) + cell.requests
        kept = sorted(frequency, key=lambda c: (-frequency[c], c))[:CLASSES]
        for key in [k for k in self.cells if k[2] not in kept and k[2] != OTHER]:
            cell = self.cells.pop(key)
            self.cells.setdefault((key[0], key[1], OTHER), Cell()).merge(cell)

    def total(
        self, *, release: str | None = None, arm: str | None = None, kind: str | None = None
    ) -> Cell:
        """The cells of a release, an arm, a class (None: of all) together."""
        cell = Cell()
        for (r, a, k), found in self.cells.items():
            if release in (None, r) and arm in (None, a) and kind in (None, k):
                cell.merge(found)
        return cell

    def state(self) -> Mapping[str, Json]:
        return {
            "requests": self.requests,
            "failed": self.failed,
            "refused": dict(sorted(self.refused.items())),
            "cells": [[*key, self.cells[key].state()] for key in sorted(self.cells)],
        }

    @classmethod
    def of_state(cls, state: Mapping[str, Json]) -> Window:
        return cls(
            requests=state["requests"],
            failed=state["failed"],
            refused=Counter(state["refused"]),
            cells={(r, a, k): Cell.of_state(cell) for r, a, k, cell in state["cells"]},
        )


def merged(windows: Iterable[Window]) -> Window:
    """All of them as one."""
    whole = Window()
    for window in windows:
        whole.merge(window)
    return whole


@dataclass(slots=True)
class TrafficWindows:
    """The windows that records go into. ``load`` finds one that was written earlier, None if there
    is none. Write ``changed()`` in one transaction with the reader's offset, then say ``written``:
    nothing is lost or counted twice, and what is restored is the same to the last digit."""

    load: Callable[[str, int], TrafficWindow | None]
    _windows: OrderedDict[tuple[str, int], Window] = field(default_factory=OrderedDict)
    _changed: set[tuple[str, int]] = field(default_factory=set)

    def record(self, record: Record, now: float) -> None:
        for window in self._at(record.at, now):
            window.record(record)

    def tally(self, tally: Tally, now: float) -> None:
        for window in self._at(tally.at, now):
            window.tally(tally)

    def _at(self, at: float, now: float) -> Iterable[Window]:
        for level, (seconds, keep) in LEVELS.items():
            start = int(at // seconds) * seconds
            if start + seconds > now - keep:
                self._changed.add((level, start))
                yield self._window(level, start)

    def _window(self, level: str, start: int) -> Window:
        key = (level, start)
        found = self._windows.get(key)
        if found is None:
            written = self.load(level, start)
            found = Window() if written is None else Window.of_state(written.state)
            self._windows[key] = found
        else:
            self._windows.move_to_end(key)
        return found

    def changed(self) -> list[TrafficWindow]:
        return [
            TrafficWindow(level=level, start=start, state=self._windows[level, start].state())
            for level, start in sorted(self._changed)
        ]

    def written(self) -> None:
        """All that changed is safe: forget what was not touched lately."""
        self._changed.clear()
        while len(self._windows) > IN_MEMORY:
            self._windows.popitem(last=False)


def expiry(now: float) -> Mapping[str, float]:
    """Level -> start before which a window is over and no longer kept."""
    return {level: now - keep - seconds for level, (seconds, keep) in LEVELS.items()}


def level_for(seconds: float) -> str:
    """The finest level whose windows reach that far back."""
    return next((name for name, (_, keep) in LEVELS.items() if seconds <= keep), "day")


_NAME = re.compile(r"\d{3} ([a-z_]{1,40}):|([A-Z][A-Za-z]{0,40}(?:Error|Timeout|Exception)):")


def error_name(attempt: Attempt) -> str:
    """What an attempt failed of, by name and never in the words of whoever failed: the worker's
    code or the exception's class, else the outcome."""
    found = _NAME.match(attempt.error)
    return found[1] or found[2] if found else attempt.outcome.value


def _bounded(counter: Counter[str], name: str, times: int = 1) -> None:
    counter[name if name in counter or len(counter) < NAMES else OTHER] += times


def _padded(size: str) -> float:
    """Slots of an image's batch, for each of its images."""
    batch, _, padded = size.partition("/")
    return int(padded) / int(batch) if batch.isdigit() and padded.isdigit() else 1.0
