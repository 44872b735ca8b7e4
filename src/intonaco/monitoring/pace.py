"""How often a signal updates, measured on the clock that the false-alarm budget is given in.

An e-detector keeps a number of *updates* between false alarms; a budget is given per week, or per
so many requests. While at most ``u`` updates fall into any stretch of the clock, a detector with
``between * u / stretch`` updates between false alarms raises at most one in ``between`` units of
the clock on average, whatever the signal updates on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from intonaco.types import Json

WEEK = 7 * 86_400.0
HOUR = 3600.0
REQUESTS = 1000.0
SAFETY = 2.0  # times the pace of the reference, until busier times were seen
STEP = 1.05  # a threshold is raised by no less than this, so that it is not set at every update


@dataclass(slots=True)
class Pace:
    """``between``: units of the clock (seconds, or requests) between this signal's false alarms.
    ``stretch``: of that clock, over which the busiest counts. The pace never falls: a threshold is
    only ever raised, which keeps what an e-detector promises."""

    between: float
    stretch: float
    updates: int = 0
    started: float | None = None
    reference: float = 0.0  # updates per unit that the reference showed
    _stretch: int = 0  # which one it is
    _here: int = 0  # updates in it
    _busiest: int = 0
    told: float = 0.0  # the number that the detector's threshold is set for

    def count(self, clock: float) -> None:
        """One update, at that time or request."""
        if self.started is None:
            self.started = clock
        self.updates += 1
        stretch = int(clock // self.stretch)
        if stretch > self._stretch:
            self._stretch, self._here = stretch, 0
        self._here += 1
        self._busiest = max(self._busiest, self._here)

    def reference_ends(self, clock: float) -> None:
        """The detector is armed: what came until now says how often it updates. An upper bound:
        two standard deviations of a Poisson count above, and ``SAFETY`` times that."""
        length = max(1.0, clock - (clock if self.started is None else self.started))
        self.reference = SAFETY * (self.updates + 2.0 * math.sqrt(self.updates)) / length

    @property
    def updates_between(self) -> float:
        """The mean number of updates to a false alarm that keeps the budget."""
        return self.between * max(self.reference, self._busiest / self.stretch)

    def raised(self) -> float | None:
        """That number, if it outgrew what was told last; None if it did not."""
        needed = self.updates_between
        if needed <= self.told:
            return None
        self.told = needed * STEP
        return self.told

    def state(self) -> Mapping[str, Json]:
        return {
            "between": self.between,
            "updates": self.updates,
            "started": self.started,
            "reference": self.reference,
            "stretch": self._stretch,
            "here": self._here,
            "busiest": self._busiest,
            "told": self.told,
        }

    def restore(self, state: Mapping[str, Json]) -> None:
        self.updates = int(state["updates"])
        self.started = state["started"]
        self.reference = float(state["reference"])
        self._stretch = int(state["stretch"])
        self._here = int(state["here"])
        self._busiest = int(state["busiest"])
        same = state["between"] == self.between  # another budget: another threshold
        self.told = float(state["told"]) if same else 0.0
