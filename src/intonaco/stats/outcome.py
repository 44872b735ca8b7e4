"""One bounded outcome under randomised assignment, against the hypothesis of no difference.

The e-processes of ``difference.py`` at the single hypothesis 0, for tests that have put their
tolerance into the outcome itself (``latency.py``, ``amounts.py``): null above, "given the past the
outcome's mean is no larger on the challenger, for every unit"; null below, "no smaller".
"""

from __future__ import annotations

from collections.abc import Mapping

from intonaco.stats.betting import Array, BettingMean
from intonaco.stats.difference import randomised_bet
from intonaco.types import Json

PRIOR = 20.0  # units that the guess of the outcome's mean is worth


class OutcomeBets(BettingMean):
    """Bets on the mean difference of an outcome in [0, 1]. ``centre``: a guess of its mean."""

    def __init__(self, centre: float) -> None:
        super().__init__((0.0,))
        self._centre = centre
        self._total = 0.0

    def take(self, outcome: float, *, challenger: bool, weight: float) -> None:
        """Take one unit assigned with ``0 < weight < 1``."""
        centre = (self._total + PRIOR * self._centre) / (self.observations + PRIOR)
        h, scale, low, high = randomised_bet(outcome, challenger, weight, centre)
        self.update(h, scale=scale, low=low, high=high)
        self._total += outcome

    def side(self, *, above: bool) -> Array:
        """Log wealth of each fraction, shape [fractions]."""
        found: Array = self._wealth[0 if above else 1, 0]
        return found

    def state(self) -> Mapping[str, Json]:
        return {**super().state(), "total": self._total}

    def restore(self, state: Mapping[str, Json]) -> None:
        super().restore(state)
        self._total = float(state["total"])
