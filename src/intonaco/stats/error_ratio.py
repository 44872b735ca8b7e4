"""Does the challenger fail more often than the champion, as a ratio? Only errors are looked at.

**Model.** Unit ``i`` reaches the challenger with the logged probability ``w_i``, drawn
independently of everything before; it fails with ``p_i`` on the challenger and with ``q_i`` on the
champion, given the past. If it fails, it was on the challenger with probability

    theta_i(r) = r w_i / (r w_i + 1 - w_i),        r = p_i / q_i,

whatever the base rate ``q_i`` is, and however it drifts.

**Null.** ``p_i <= (1 + tolerance) q_i`` for every unit, given its past.

**Claim.** With ``theta_0 = theta_i(1 + tolerance)``, any fixed ratios ``r_j > 1 + tolerance`` and
shares ``pi_j`` that sum to 1,

    E = sum_j pi_j prod_i (theta_i(r_j) / theta_0)^X_i ((1-theta_i(r_j)) / (1-theta_0))^(1-X_i)

over the errors ``i`` seen, ``X_i = 1`` for the challenger's, is a supermartingale that starts at 1:
a unit that does not fail leaves it as it is; given that unit ``i`` failed, ``X_i`` is 1 with
probability ``theta_i(r) <= theta_0``, a factor rises with ``X_i``, and its mean at ``theta_0`` is
``theta_i(r_j) + 1 - theta_i(r_j) = 1``. So ``P(E ever reaches 1/alpha) <= alpha`` (Ville).

The multiplicative test of counts is that of Lindon and Malek, "Anytime-valid inference for
multinomial count data", NeurIPS 2022 (arXiv 2011.03567), whose mixture is a Dirichlet's at constant
weights; the grid of ratios lets weights change from one error to the next, as the product of
one-step e-variables may (Ville 1939; Ramdas et al., "Game-theoretic statistics and safe
anytime-valid inference", Statistical Science 2023, arXiv 2210.01948). ``RATIOS`` and ``SHARES``
were chosen by simulation (docs/decisions/0023-sequential-statistics.md).

**What the caller must do.** At most one error a unit. Users who stay in their arm fail there again
and again: their errors are not assignments, and with few users who cause most of them the claim
breaks (a nominal 1 % becomes 7 to 10 %). A unit's first error may be taken when it happens, with
the probability at which the unit was assigned. That is exactly the claim above if a unit's errors
come at the same times in either arm, or, its challenger hazard being a constant ``r`` times its
champion hazard, if ``1 <= r <= 1 + tolerance``, or if ``r < 1`` and the unit's expected number of
champion errors while it is watched is at most 1: a unit without an error so far is on the
challenger with odds ``S^(r-1) w/(1-w)``, ``S`` its champion's survival, so its first error is the
challenger's with odds ``r S^(r-1) w/(1-w)``, and ``r S^(r-1) <= 1`` for every ``r < 1`` if and only
if ``S >= 1/e``. Errors must be taken in an order that does not depend on the arm: in that of the
requests' beginnings, unless a failure takes as long to be noticed in either arm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intonaco.errors import StorageError
from intonaco.types import Json

Array = NDArray[np.float64]

# Ratios of error rates beyond the tolerance, and what of the mixture each has.
RATIOS = tuple(float(r) for r in np.geomspace(1.7, 80.0, 8))
_WEIGHTS = [r**-0.2 for r in RATIOS]
SHARES = tuple(v / sum(_WEIGHTS) for v in _WEIGHTS)


def mixed(components: Array) -> Array:
    """Log of the sum of what is given as logarithms, over the last axis."""
    top = components.max(axis=-1)
    found: Array = top + np.log(np.exp(components - top[..., None]).sum(axis=-1))
    return found


def log_factors(challenger: Any, weight: Any, ratios: Array, tolerance: float) -> Array:
    """Log factors of one error (or of one in each of many runs, shape [...]).

    ``challenger`` and ``weight``: shape [...]; ``ratios``: beyond the tolerance, shape [J]. Returns
    shape [..., J].
    """
    x = np.asarray(challenger, bool)[..., None]
    w = np.asarray(weight, float)[..., None]
    null = 1.0 + tolerance
    # theta(r)/theta(null) = (r/null) (null w + 1-w)/(r w + 1-w); for the champion without r/null
    both = np.log(null * w + 1.0 - w) - np.log(ratios * null * w + 1.0 - w)
    found: Array = both + np.where(x, np.log(ratios), 0.0)
    return found


class ErrorRatio:
    """Sequential test that the challenger's error rate is at most ``1 + tolerance`` times the
    champion's, at equal times. State is exact JSON.

    >>> test = ErrorRatio()
    >>> for _ in range(3):
    ...     taken = test.error(challenger=True, weight=0.05)
    >>> test.log_evidence > math.log(100)
    True
    """

    def __init__(
        self,
        tolerance: float = 0.0,
        *,
        ratios: Sequence[float] = RATIOS,
        shares: Sequence[float] = SHARES,
    ) -> None:
        self.tolerance = tolerance
        self._ratios: Array = np.asarray(ratios, float)
        self._shares: Array = np.asarray(shares, float)
        if tolerance < 0 or not self._ratios.size or not (self._ratios > 1).all():
            raise ValueError("the tolerance is 0 or more, and there are ratios, all above 1")
        if self._shares.shape != self._ratios.shape or not (self._shares > 0).all():
            raise ValueError("every ratio has a share, above 0")
        if not math.isclose(self._shares.sum(), 1.0):
            raise ValueError("shares sum to 1")
        self._log: Array = np.zeros(self._ratios.size)
        self.peak = 0.0
        self.errors = [0, 0]  # champion, challenger
        self._weighted = [0.0, 0.0]  # each counted as one over its arm's probability

    def error(self, *, challenger: bool, weight: float) -> bool:
        """Take one unit's error, the unit assigned to the challenger with probability ``weight``;
        False (and nothing taken) if it was not randomised. Raises ValueError for a weight outside
        [0, 1]."""
        if not 0 <= weight <= 1:
            raise ValueError(f"weight {weight} outside [0, 1]")
        if not 0 < weight < 1:
            return False
        self._log += log_factors(challenger, weight, self._ratios, self.tolerance)
        self.peak = max(self.peak, self.log_evidence)
        self.errors[challenger] += 1
        self._weighted[challenger] += 1 / (weight if challenger else 1 - weight)
        return True

    @property
    def log_evidence(self) -> float:
        """Log e-value now against "the challenger fails at most 1 + tolerance times as often"."""
        return float(mixed(self.components))

    @property
    def components(self) -> Array:
        """Log evidence of each ratio, its share included: what ``planning.remaining`` starts
        from."""
        found: Array = self._log + np.log(self._shares)
        return found

    @property
    def estimate(self) -> float | None:
        """The ratio of error rates, errors weighted by the inverse of their arm's probability; None
        before the champion's first."""
        return self._weighted[1] / self._weighted[0] if self._weighted[0] else None

    def state(self) -> Mapping[str, Json]:
        """JSON from which ``restore`` continues bit for bit."""
        return {
            "tolerance": self.tolerance,
            "ratios": self._ratios.tolist(),
            "shares": self._shares.tolist(),
            "log": self._log.tolist(),
            "peak": self.peak,
            "errors": list(self.errors),
            "weighted": list(self._weighted),
        }

    def restore(self, state: Mapping[str, Json]) -> None:
        """Continue from a state of a test with the same tolerance and ratios. Raises StorageError
        otherwise."""
        mine = self.state()
        if any(state[name] != mine[name] for name in ("tolerance", "ratios", "shares")):
            raise StorageError("the stored evidence was gathered for other ratios")
        self._log = np.asarray(state["log"], float)
        self.peak = float(state["peak"])
        self.errors = [int(n) for n in state["errors"]]
        self._weighted = [float(n) for n in state["weighted"]]
