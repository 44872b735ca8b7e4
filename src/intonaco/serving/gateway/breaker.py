"""The breaker of one release: hard failures in a row take its traffic away at once. Pure.

Counted are failures (errors, time-outs; never "full" or "invalid") of requests that the champion
then could serve, so that a request nobody can serve says nothing about the challenger. A row must
hold at least two units or two prompts: one user with one poisonous prompt trips nothing. A trip is
sticky; only ``reset`` (a newer table's ``untrip``) closes the breaker again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from intonaco.types import BreakerTrip

DISTINCT = 2


@dataclass(slots=True)
class Breaker:
    release: str
    limit: int  # hard failures in a row
    trip: BreakerTrip | None = None
    _row: int = 0
    _first_at: float = 0.0
    _units: set[str] = field(default_factory=set)
    _prompts: set[str] = field(default_factory=set)

    @property
    def failures(self) -> int:
        """Hard failures in the present row."""
        return self._row

    def failure(self, at: float, *, unit: str, prompt: str, reason: str) -> BreakerTrip | None:
        """Count one hard failure; the trip, if it is the one that trips."""
        if self.trip:
            return None
        if self._row == 0:
            self._first_at = at
        self._row += 1
        self._units.add(unit)
        self._prompts.add(prompt)
        distinct = max(len(self._units), len(self._prompts))
        if self._row < self.limit or distinct < DISTINCT:
            return None
        self.trip = BreakerTrip(
            release=self.release,
            at=at,
            first_failure_at=self._first_at,
            failures=self._row,
            reason=f"{self._row} hard failures in a row, the last: {reason}",
        )
        return self.trip

    def success(self) -> None:
        """A request was served: the row ends."""
        self._row = 0
        self._units.clear()
        self._prompts.clear()

    def reset(self) -> None:
        self.trip = None
        self.success()
