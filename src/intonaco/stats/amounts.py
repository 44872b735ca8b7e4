"""Is the mean of a positive amount (cost per image) larger on the challenger, as a ratio?

**Model.** Unit ``i`` reaches the challenger with the logged probability ``w_i``, drawn
independently of everything before and of the amounts ``C_i(1)``, ``C_i(0)`` that it would cost.

**Null of more**, for every unit given its past, with ``cap`` declared beforehand:

    E[min(C_i(1) / (1 + tolerance), cap)] <= E[min(C_i(0), cap)].

Where nothing ever costs more than ``cap`` these are the means, and it reads "on average at most
``1 + tolerance`` times as much". Where something does, it is a statement about winsorised means:
what lies beyond the cap counts as the cap. No test of unbounded means is possible without such a
bound (Bahadur and Savage, Annals of Mathematical Statistics 1956).

**Null of not within**, its mirror image with the margin:
``E[min(C_i(1) / (1 + margin), cap)] >= E[min(C_i(0), cap)]``; with a margin of 0, of not less.

**Claim.** ``Y_i = min(C_i / (1 + tolerance), cap) / cap`` on the challenger and
``min(C_i, cap) / cap`` on the champion are outcomes in [0, 1] whose mean difference is at most 0
under the null, so the e-process is that of ``difference.py`` (Waudby-Smith and Ramdas, arXiv
2010.09686): valid at every look, with changing weights and drifting prices. One amount a unit.

A share is an amount with cap 1, one a unit; where it may be 0 its difference says more
(``difference.py``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from intonaco.errors import StorageError
from intonaco.stats.betting import Array
from intonaco.stats.outcome import OutcomeBets
from intonaco.types import Json


class AmountTest:
    """Sequential comparison of mean amounts under randomised assignment. State is exact JSON.

    ``cap``: a small one is reached sooner but hides what lies beyond it; several times the usual
    amount is right.
    """

    def __init__(self, cap: float, *, tolerance: float = 0.0, margin: float = 0.1) -> None:
        if not (0 < cap < math.inf and tolerance >= 0 and margin > 0):
            raise ValueError("cap and margin are positive, the tolerance is 0 or more")
        self.cap, self.tolerance, self.margin = cap, tolerance, margin
        self._more, self._within, self._less = (OutcomeBets(0.25) for _ in range(3))
        self.units = [0, 0]  # champion, challenger
        self.totals = [0.0, 0.0]  # of amounts, capped
        self.beyond = [0, 0]  # amounts above the cap

    def take(self, amount: float, *, challenger: bool, weight: float) -> bool:
        """Take one unit's amount; False (and nothing taken) if it was not randomised. Raises
        ValueError for a negative or infinite amount or a weight outside [0, 1]."""
        if not (0 <= weight <= 1 and 0 <= amount < math.inf):
            raise ValueError(f"weight {weight} outside [0, 1] or {amount} no amount")
        if not 0 < weight < 1:
            return False
        for bets, slack in (
            (self._more, self.tolerance),
            (self._within, self.margin),
            (self._less, 0.0),
        ):
            shrunk = amount / (1 + slack) if challenger else amount
            bets.take(min(shrunk / self.cap, 1.0), challenger=challenger, weight=weight)
        self.units[challenger] += 1
        self.totals[challenger] += min(amount, self.cap)
        self.beyond[challenger] += amount > self.cap
        return True

    @property
    def log_evidence_more(self) -> float:
        """Log e-value now against "at most 1 + tolerance times as much"."""
        return self._more.log_evidence_above(0.0)

    @property
    def peak_more(self) -> float:
        """The highest so far."""
        return self._more.peak_above(0.0)

    @property
    def log_evidence_within(self) -> float:
        """Log e-value now against "at least 1 + margin times as much"."""
        return self._within.log_evidence_below(0.0)

    @property
    def peak_within(self) -> float:
        """The highest so far."""
        return self._within.peak_below(0.0)

    @property
    def log_evidence_less(self) -> float:
        """Log e-value now against "no less"."""
        return self._less.log_evidence_below(0.0)

    @property
    def peak_less(self) -> float:
        """The highest so far."""
        return self._less.peak_below(0.0)

    def components(self, *, more: bool) -> Array:
        """Log evidence of each bet, its share included: what ``planning.remaining`` starts from."""
        return (self._more if more else self._within).components(0.0, above=more)

    @property
    def estimate(self) -> float | None:
        """Challenger's mean over the champion's, capped; None without both."""
        if not min(self.units) or not self.totals[0]:
            return None
        return (self.totals[1] / self.units[1]) / (self.totals[0] / self.units[0])

    def state(self) -> Mapping[str, Json]:
        """JSON from which ``restore`` continues bit for bit."""
        return {
            "made_with": [self.cap, self.tolerance, self.margin],
            "more": self._more.state(),
            "within": self._within.state(),
            "less": self._less.state(),
            "units": list(self.units),
            "totals": list(self.totals),
            "beyond": list(self.beyond),
        }

    def restore(self, state: Mapping[str, Json]) -> None:
        """Continue from a state with the same settings. Raises StorageError otherwise."""
        if list(state["made_with"]) != [self.cap, self.tolerance, self.margin]:
            raise StorageError("the stored evidence was gathered with other settings")
        self._more.restore(state["more"])
        self._within.restore(state["within"])
        self._less.restore(state["less"])
        self.units = [int(n) for n in state["units"]]
        self.totals = [float(t) for t in state["totals"]]
        self.beyond = [int(n) for n in state["beyond"]]
