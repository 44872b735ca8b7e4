"""E-detector for the mean of a scalar."""

from __future__ import annotations

import numpy as np

from intonaco.monitoring.detectors.scalar import Bets, ScalarDetector, Vector

CLIP = 3.0  # standard deviations of the reference
STAKES = 0.95 / CLIP * 2.0 ** -np.arange(4.0)  # 0.95: the largest bet never loses everything
LEAST_SCALE = 1e-6  # of the mean: a reference without any spread is rounding, not precision


class MeanDetector(ScalarDetector):
    """Shiryaev-Roberts e-detector for the mean of a scalar: a score.

    The bets are ``1 +- lambda * y``, where y is the value in standard deviations of the reference,
    from its mean, clipped at 3: no range has to be known or set, and no single value decides. It
    is the mean of the clipped values that is watched; a rare and large deviation is one for
    ``e-quantile``, a rate of 0s and 1s one for ``e-rate``. ``tolerance`` is in the units of the
    stream. See ``ScalarDetector`` for the rest.

    >>> import math, random
    >>> rng = random.Random(1)
    >>> detector = MeanDetector(threshold=math.log(10_000), reference=500, direction="down")
    >>> any(detector.update(rng.gauss(0.30, 0.04)) for _ in range(1500))
    False
    >>> any(detector.update(rng.gauss(0.28, 0.04)) for _ in range(200))
    True
    >>> 1450 < detector.since < 1550
    True

    Shin, Ramdas & Rinaldo, "E-detectors", arXiv 2203.03532; bets against a growing reference:
    ``ratios``.
    """

    name = "e-mean"

    def _fit(self, values: Vector) -> Vector:
        mean = float(values.mean())
        scale = max(float(values.std()), self.tolerance, LEAST_SCALE * abs(mean), 1e-12)
        return np.array([mean, scale])

    def _bets(self, fitted: Vector) -> Bets:
        self._mean, self._scale = fitted.tolist()
        stakes = {"up": STAKES, "down": -STAKES}.get(self.direction)
        self._stake = np.concatenate([STAKES, -STAKES]) if stakes is None else stakes
        size = np.abs(self._stake)
        self._slack = size * self.tolerance / self._scale
        names = tuple("up" if stake > 0 else "down" for stake in self._stake)
        return Bets(names, np.ones(len(names)), 1.0 + size * CLIP + self._slack)

    def _r(self, value: float) -> tuple[Vector, Vector]:
        y = min(max((value - self._mean) / self._scale, -CLIP), CLIP)
        r = 1.0 + self._stake * y
        return r, r + self._slack
