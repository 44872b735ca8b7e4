"""E-detector for the distribution of a positive scalar: latency."""

from __future__ import annotations

from bisect import bisect_right
from statistics import NormalDist

import numpy as np

from intonaco.monitoring.detectors.scalar import Bets, ScalarDetector, Vector

LEVELS = 48  # bins of equal share in the middle half and more of the reference
SHIFTS = np.array([0.25, 0.5, 1.0])  # of the level, in standard normal scores
SCORE = 3.0  # normal scores are clipped here
TAIL = np.array([0.05, 0.3])  # share of the requests that went into a tail
TAIL_POWER = 0.25  # 1: anywhere; towards 0: the farther out the likelier
PRIOR = {"level": 0.7, "up tail": 0.2, "down tail": 0.1}  # both levels together


class QuantileDetector(ScalarDetector):
    """Shiryaev-Roberts e-detector for where a value stands among those of the reference: is
    everything slower, or a share of the requests much slower?

    Only the rank among the quantiles of the reference counts, so nothing is assumed about shape or
    tails, and raw seconds do as well as ratios to a class's usual time. Bets on the level are
    ``exp(+-d * score)`` with the normal score of the rank; bets on a tail say that a share ``s`` of
    the requests left for it: ``1 - s + s * b * u ** (b - 1)``, u the share of the reference that is
    farther out. Between quantiles the bets are constant: about 90 bins, whatever the traffic.

    ``tolerance`` is relative: 0.02 means that all values may become 2 % larger or smaller. See
    ``ScalarDetector`` for the rest.

    >>> import math, random
    >>> rng = random.Random(2)
    >>> def seconds(slow):
    ...     return rng.lognormvariate(1.0, 0.3) * (3 if rng.random() < slow else 1)
    >>> detector = QuantileDetector(threshold=math.log(10_000), reference=500)
    >>> any(detector.update(seconds(0.0)) for _ in range(1500))
    False
    >>> any(detector.update(seconds(0.1)) for _ in range(200))
    True
    >>> 1450 < detector.since < 1550
    True

    Shin, Ramdas & Rinaldo, "E-detectors", arXiv 2203.03532; bets against a growing reference:
    ``ratios``; betting on ranks: Vovk, Nouretdinov & Gammerman, ICML 2003; the power bet: Vovk,
    Gammerman & Shafer, "Algorithmic Learning in a Random World", 2005, chapter 7.
    """

    name = "e-quantile"
    least = 10

    def _fit(self, values: Vector) -> Vector:
        """[edges, share of the reference above the middle of each bin]: 2 k + 1 numbers."""
        n = len(values)
        out = 2.0 ** -np.arange(3.5, max(np.log2(n), 3.5) + 0.01, 0.5)  # finer towards the ends
        levels = np.concatenate([out, np.linspace(0.125, 0.875, LEVELS + 1), 1.0 - out])
        edges = np.unique(np.quantile(values, np.unique(levels)))
        bins = np.searchsorted(edges, values, side="right")
        share = np.bincount(bins, minlength=len(edges) + 1) + 0.5
        share /= share.sum()
        above = np.cumsum(share[::-1])[::-1] - share / 2
        return np.concatenate([edges, above])

    def _bets(self, fitted: Vector) -> Bets:
        k = len(fitted) // 2
        self._edges, above = fitted[:k].tolist(), fitted[k:]
        score = np.array([NormalDist().inv_cdf(1.0 - u) for u in above]).clip(-SCORE, SCORE)
        shift = np.concatenate([SHIFTS, -SHIFTS])
        table = np.hstack([np.exp(np.outer(score, shift)), _tail(above), _tail(1.0 - above)])
        names = tuple(
            ["up level"] * len(SHIFTS)
            + ["down level"] * len(SHIFTS)
            + ["up tail"] * len(TAIL)
            + ["down tail"] * len(TAIL)
        )
        prior = {**PRIOR, "up level": PRIOR["level"] / 2, "down level": PRIOR["level"] / 2}
        kept = [i for i, n in enumerate(names) if self.direction in ("both", n.split()[0])]
        self._table = table[:, kept]
        names = tuple(names[i] for i in kept)
        self._rising = np.array([name.startswith("up") for name in names])
        weight = np.array([prior[name] / names.count(name) for name in names])
        return Bets(names, weight, self._table.max(axis=0))

    def _r(self, value: float) -> tuple[Vector, Vector]:
        r = self._table[bisect_right(self._edges, value)]
        if not self.tolerance:
            return r, r
        slower = self._table[bisect_right(self._edges, value * (1.0 + self.tolerance))]
        faster = self._table[bisect_right(self._edges, value / (1.0 + self.tolerance))]
        return r, np.maximum(r, np.where(self._rising, slower, faster))

    def _middle(self, values: Vector) -> float:
        """The median."""
        return float(np.median(values))


def _tail(beyond: Vector) -> Vector:
    """Bets [bins, 2] that a share of the requests went far out; ``beyond``: share farther out."""
    power = TAIL_POWER * np.power(beyond, TAIL_POWER - 1.0)
    return np.asarray(1.0 + np.outer(power - 1.0, TAIL))
