"""Is the traffic split what the routing table says?

Unit ``i`` is meant to reach the challenger with the logged probability ``w_i``. Under an odds ratio
``r`` it would with ``q = r w_i / (r w_i + 1 - w_i)``. The likelihood ratio of ``q`` to ``w_i``,
multiplied over units and mixed over a few ``r`` above and below 1, is an e-process for "the split
is as logged": by Ville's inequality it ever reaches ``1/alpha`` with probability ``alpha`` at most.

After Lindon and Malek, "Anytime-valid inference for multinomial count data", NeurIPS 2022 (arXiv
2011.03567), whose sequential sample-ratio test has a Dirichlet mixture at constant weights; the
grid of odds ratios allows weights that change from unit to unit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from intonaco.types import Json

ODDS = (0.25, 0.5, 0.7, 0.85, 1 / 0.85, 1 / 0.7, 2.0, 4.0)


class SampleRatioTest:
    """Sequential test of assignments against their logged probabilities. ``alpha``: chance that a
    correct split is ever called wrong."""

    def __init__(self, alpha: float = 0.001) -> None:
        if not 0 < alpha < 1:
            raise ValueError("alpha lies strictly between 0 and 1")
        self.threshold = math.log(1 / alpha)
        self._odds = np.asarray(ODDS)
        self._log = np.zeros(len(ODDS))
        self.peak = 0.0
        self.units = [0, 0]  # champion, challenger
        self.expected = 0.0  # challenger units that the logged probabilities foretell

    def assign(self, *, challenger: bool, weight: float) -> bool:
        """Take one unit; False (and nothing taken) if it was not randomised."""
        if not 0 <= weight <= 1:
            raise ValueError(f"weight {weight} outside [0, 1]")
        if not 0 < weight < 1:
            return False
        normal = self._odds * weight + 1 - weight
        self._log += np.log((self._odds if challenger else 1.0) / normal)
        self.peak = max(self.peak, self.log_evidence)
        self.units[challenger] += 1
        self.expected += weight
        return True

    @property
    def log_evidence(self) -> float:
        """Log e-value now against "the split is as logged"."""
        top = float(self._log.max())
        return top + math.log(float(np.mean(np.exp(self._log - top))))

    @property
    def ok(self) -> bool:
        """False once the evidence has reached its threshold, and for good."""
        return self.peak < self.threshold

    def state(self) -> Mapping[str, Json]:
        return {
            "log": self._log.tolist(),
            "peak": self.peak,
            "units": list(self.units),
            "expected": self.expected,
        }

    def restore(self, state: Mapping[str, Json]) -> None:
        self._log = np.asarray(state["log"], float)
        self.peak = float(state["peak"])
        self.units = [int(n) for n in state["units"]]
        self.expected = float(state["expected"])
