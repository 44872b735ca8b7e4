"""The error rate of a challenger that has everybody. Pure.

At 100 % nobody is randomised any more: the rate is held against the champion's, as it was measured
before, plus the margin. A drift of the base rate counts against the challenger here.
"""

from __future__ import annotations

from collections.abc import Mapping

from intonaco.stats import BettingMean
from intonaco.types import Json


class Alone:
    """Says nothing until it has begun, which it does once."""

    def __init__(self) -> None:
        self._test: BettingMean | None = None

    def begin(self, limit: float) -> None:
        """``limit``: highest error rate that is no harm."""
        if self._test is None:
            self._test = BettingMean((min(limit, 0.5),))

    def watch(self, failed: float) -> None:
        """Take a user's first request at 100 %: 1 if it failed, else 0."""
        assert self._test is not None
        self._test.update(failed, scale=1.0, low=0.0, high=1.0)

    @property
    def harm(self) -> tuple[float, float] | None:
        """Log evidence of harm, now and at its highest."""
        if self._test is None:
            return None
        limit = float(self._test.grid[0])
        return self._test.log_evidence_above(limit), self._test.peak_above(limit)

    def state(self) -> Json:
        if self._test is None:
            return None
        return {"limit": float(self._test.grid[0]), "evidence": self._test.state()}

    def restore(self, state: Mapping[str, Json] | None) -> None:
        self._test = None
        if state is not None:
            self._test = BettingMean((float(state["limit"]),))
            self._test.restore(state["evidence"])
