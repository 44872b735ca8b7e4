"""Closed-form intervals of bounded means, for people; decisions are the bets of ``difference.py``.

**Pairs** (``PairedBernstein``). Differences ``D`` in [-1, 1] of which each has, given the past, the
same mean. Predictable plug-in empirical-Bernstein confidence sequence: Waudby-Smith and Ramdas,
"Estimating means of bounded random variables by betting", JRSS-B 2024 (arXiv 2010.09686), Theorem
2, on ``x = (D + 1) / 2``: ``sum(l x) / sum(l) +- (ln(2/alpha) + sum((x - m)^2 psi(l))) / sum(l)``
with ``psi(l) = -ln(1 - l) - l``, ``m`` the mean of what came before, ``l_t = min(sqrt(2
ln(2/alpha) / (s^2 t ln(1 + t))), 1/2)`` and ``s^2`` the variance of what came before (both from the
start values of their equation 15).

**Users** (``PropensityBernstein``). Randomised outcomes in [0, 1] as inverse-propensity scores
about a prediction, ``x = Z (y - c)/w - (1 - Z) (y - c)/(1 - w)``, ``c`` known beforehand. Given the
past ``x`` has mean ``E[Y(1) - Y(0)]``, which may differ from unit to unit: what is covered is their
running average. Empirical Bernstein with the gamma-exponential boundary: Howard, Ramdas, McAuliffe
and Sekhon (arXiv 1810.08240), Theorem 4, as in their section 4.2: with ``p`` any number known
beforehand, ``sum(x) +- bound(sum((x - p)^2))`` covers ``sum(E[x | past])`` where ``x - p`` lies in
an interval of which both ``x`` and its mean are members, at most ``c_max`` long. A weight below
``smallest_weight`` is refused, since the scale of the boundary must be fixed beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from intonaco.errors import StorageError
from intonaco.stats.boundaries import gamma_exponential_bound
from intonaco.types import Json


class PairedBernstein:
    """Confidence sequence of the mean of paired differences in [-1, 1]. State is exact JSON."""

    def __init__(self, alpha: float) -> None:
        if not 0 < alpha < 1:
            raise ValueError("alpha lies strictly between 0 and 1")
        self.alpha = alpha
        self.pairs = 0
        self._sums = [0.0, 0.0, 0.0, 0.0]  # l x, l, (x - m)^2 psi(l), x
        self._squares = 0.0  # (x - m)^2, m with x among them

    def pair(self, difference: float) -> None:
        """Take challenger minus champion of one pair. Raises ValueError outside [-1, 1]."""
        if not -1 <= difference <= 1:
            raise ValueError(f"a difference of {difference} outside [-1, 1]")
        x, t = (difference + 1) / 2, self.pairs + 1
        mean, variance = (0.5 + self._sums[3]) / t, (0.25 + self._squares) / t
        stake = min(math.sqrt(2 * math.log(2 / self.alpha) / (variance * t * math.log(1 + t))), 0.5)
        self._sums[0] += stake * x
        self._sums[1] += stake
        self._sums[2] += (x - mean) ** 2 * (-math.log1p(-stake) - stake)
        self._sums[3] += x
        self.pairs = t
        self._squares += (x - (0.5 + self._sums[3]) / (t + 1)) ** 2

    def interval(self) -> tuple[float, float]:
        """Of level ``1 - alpha``, at all looks together."""
        if not self.pairs:
            return (-1.0, 1.0)
        weighted, stakes, spent, _ = self._sums
        centre = weighted / stakes
        radius = (math.log(2 / self.alpha) + spent) / stakes
        return (max(2 * (centre - radius) - 1, -1.0), min(2 * (centre + radius) - 1, 1.0))

    def state(self) -> Mapping[str, Json]:
        """JSON from which ``restore`` continues bit for bit."""
        return {
            "alpha": self.alpha,
            "pairs": self.pairs,
            "sums": list(self._sums),
            "squares": self._squares,
        }

    def restore(self, state: Mapping[str, Json]) -> None:
        """Continue from a state of the same level. Raises StorageError otherwise."""
        if state["alpha"] != self.alpha:
            raise StorageError("the stored interval is of another level")
        self.pairs = int(state["pairs"])
        self._sums = [float(s) for s in state["sums"]]
        self._squares = float(state["squares"])


class PropensityBernstein:
    """Confidence sequence of the mean difference of randomised outcomes in [0, 1]. State is exact
    JSON.

    ``v_opt``: the sum of squared scores at which it is tightest.
    """

    def __init__(
        self, alpha: float, *, smallest_weight: float, centre: float = 0.5, v_opt: float = 400.0
    ) -> None:
        if not (0 < alpha < 1 and 0 < smallest_weight <= 0.5 and 0 <= centre <= 1 and v_opt > 0):
            raise ValueError("alpha and centre are shares, the smallest weight at most 1/2")
        self.alpha, self.smallest_weight = alpha, smallest_weight
        self._v_opt, self._centre = v_opt, centre
        # x lies in [-1/w, 1/w] for w the rarer arm's probability, its mean in [-1, 1] within.
        self._scale = 2.0 / smallest_weight
        self.units = 0
        self._sums = [0.0, 0.0, centre]  # scores, their squares about p, outcomes

    def assign(self, outcome: float, *, challenger: bool, weight: float) -> bool:
        """Take one randomised unit; False (and nothing taken) if it was not randomised or with a
        smaller probability than is allowed for. Raises ValueError outside [0, 1]."""
        if not (0 <= outcome <= 1 and 0 <= weight <= 1):
            raise ValueError(f"outcome {outcome} or weight {weight} outside [0, 1]")
        if min(weight, 1 - weight) < self.smallest_weight:
            return False
        about = self._sums[2] / (self.units + 1)
        score = (outcome - about) / weight if challenger else -(outcome - about) / (1 - weight)
        expected = self._sums[0] / (self.units + 1)
        self._sums[0] += score
        self._sums[1] += (score - min(max(expected, -1.0), 1.0)) ** 2
        self._sums[2] += outcome
        self.units += 1
        return True

    def interval(self) -> tuple[float, float]:
        """Of level ``1 - alpha`` for the average difference so far, at all looks together."""
        if not self.units:
            return (-1.0, 1.0)
        radius = gamma_exponential_bound(
            self._sums[1],
            self.alpha / 2,
            v_opt=self._v_opt,
            c=self._scale,
            alpha_opt=self.alpha / 2,
        )
        centre = self._sums[0] / self.units
        away = radius / self.units
        return (max(centre - away, -1.0), min(centre + away, 1.0))

    def state(self) -> Mapping[str, Json]:
        """JSON from which ``restore`` continues bit for bit."""
        return {
            "made_with": [self.alpha, self.smallest_weight, self._centre, self._v_opt],
            "units": self.units,
            "sums": list(self._sums),
        }

    def restore(self, state: Mapping[str, Json]) -> None:
        """Continue from a state with the same settings. Raises StorageError otherwise."""
        if list(state["made_with"]) != self.state()["made_with"]:
            raise StorageError("the stored interval was made with other settings")
        self.units = int(state["units"])
        self._sums = [float(s) for s in state["sums"]]
