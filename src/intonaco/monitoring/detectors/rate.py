"""E-detector for a rate: thumbs, errors, refusals."""

from __future__ import annotations

import numpy as np

from intonaco.monitoring.detectors.scalar import Bets, ScalarDetector, Vector

RATIOS = np.exp([0.25, 0.5, 1.0, 2.0, 4.0])  # of the odds after and before: 1.3 to 55
PRIOR = np.array([2.0, 2.0, 2.0, 1.0, 1.0])


class RateDetector(ScalarDetector):
    """Shiryaev-Roberts e-detector for the rate of ones in a stream of 0 and 1 (or of values
    between, clipped to [0, 1]).

    The bets are likelihood ratios of a Bernoulli variable whose odds became ``rho`` times as high
    (a rise) or ``1 / rho`` (a fall), against the rate so far; rho is 1.3 to 55, a discrete prior
    over the alternatives. So a rate of 80 % is watched as well as one near 0: one that was 0 of
    2,000 counts as at most about 1 in 2,001, and a few errors among hundreds are evidence.
    ``tolerance`` is a share of the requests. See ``ScalarDetector`` for the rest.

    >>> import math, random
    >>> rng = random.Random(1)
    >>> detector = RateDetector(threshold=math.log(10_000), reference=500, direction="up")
    >>> any(detector.update(0.0) for _ in range(1500))
    False
    >>> any(detector.update(float(rng.random() < 0.05)) for _ in range(200))
    True
    >>> detector.since > 1450
    True

    Shin, Ramdas & Rinaldo, "E-detectors", arXiv 2203.03532; bets against a growing reference:
    ``ratios``.
    """

    name = "e-rate"

    def _fit(self, values: Vector) -> Vector:
        return np.zeros(0)  # what it bets on depends on no reference

    def _bets(self, fitted: Vector) -> Bets:
        rises, falls = RATIOS - 1.0, 1.0 / RATIOS - 1.0
        self._gain = {"up": rises, "down": falls}.get(
            self.direction, np.concatenate([rises, falls])
        )
        names = tuple("up" if gain > 0 else "down" for gain in self._gain)
        self._slack = np.abs(self._gain) * self.tolerance
        weight = np.tile(PRIOR, len(names) // len(PRIOR))
        return Bets(names, weight, np.maximum(1.0 + self._gain, 1.0) + self._slack)

    def _r(self, value: float) -> tuple[Vector, Vector]:
        r = 1.0 + self._gain * min(max(value, 0.0), 1.0)
        return r, r + self._slack

    def _middle(self, values: Vector) -> float:
        return float(np.clip(values, 0.0, 1.0).mean())
