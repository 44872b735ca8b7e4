"""Mixture of Shiryaev-Roberts e-detectors over the features of an embedding.

Each component bets that one feature's mean has left its band: ``M <- (M + 1) * factor``. While the
conditional mean of the feature given the past stays in the band, each factor has mean at most 1, so
``M_t - t`` is a supermartingale, and so is the mixture ``sum w M`` with weights that sum to 1: the
mean time until it reaches A is at least A.

For a feature that is 0 or 1 with mean at most p the factor is the likelihood ratio of an
alternative q > p: ``q/p`` at a 1, ``(1-q)/(1-p)`` at a 0; its mean grows with the true share, so
it is at most 1 up to p. The other side likewise. For a bounded one it is
``1 + stake * (f - highest)``.

Shin, Ramdas & Rinaldo, "E-detectors", arXiv 2203.03532.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intonaco.monitoring.detectors.arrays import pack, unpack
from intonaco.types import Json

Vector = NDArray[np.float64]

RISES = (0.03, 0.08, 0.2, 0.45)  # of what is left above the band: a cluster that grew
FALL = 0.3  # of the lower edge of the band: a cluster that all but vanished
NOVELTIES = (0.03, 0.1, 0.25, 0.55)  # likewise, for rows far from everything known
STAKES = (0.03, 0.08, 0.15, 0.22)  # per standard deviation, for the witness
PRIOR = {"novelty": 0.5, "rise": 0.25, "fall": 0.05, "witness": 0.2}
SPENT = 0.5  # of the budget is left to chance; the rest is for what no band foresees
FLOOR = 0.005  # a share up to this is no demand but a few odd requests, whatever was seen before
LEAST = 1e-6  # keeps ratios finite
LARGEST = 1e280  # keeps a detector that goes on after its alarm finite

PER_CLUSTER = len(RISES) + 1


class Bets:
    """Features are ``clusters`` one-hot ones, then novelties: each row exceeds the first so many of
    each group of ``novelties``. ``low`` and ``high`` are the bands of both. Then ``witnesses`` in
    [-bound, bound], whose means are at most ``slack``."""

    def __init__(
        self,
        *,
        clusters: int,
        novelties: tuple[int, ...],
        low: Vector,
        high: Vector,
        witnesses: int,
        slack: float,
        bound: float,
    ) -> None:
        first = clusters + sum(novelties)
        miss, ratio, weight = [], [], []
        for f in range(clusters):
            top = min(max(float(high[f]), FLOOR), 1.0 - LEAST)
            bottom = min(max(float(low[f]), LEAST), 1.0 - LEAST)
            rises = [(top, top + (1.0 - top) * r) for r in RISES]
            for p, q in [*rises, (bottom, bottom * FALL)]:
                miss.append((1.0 - q) / (1.0 - p))
                ratio.append(q / p * (1.0 - p) / (1.0 - q))
            weight += [PRIOR["rise"] / clusters / len(RISES)] * len(RISES)
            weight.append(PRIOR["fall"] / clusters)
        for f in range(clusters, first):
            top = min(max(float(high[f]), FLOOR), 1.0 - LEAST)
            for r in NOVELTIES:
                q = top + (1.0 - top) * r
                miss.append((1.0 - q) / (1.0 - top))
                ratio.append(q / top * (1.0 - top) / (1.0 - q))
                weight.append(PRIOR["novelty"] / (first - clusters) / len(NOVELTIES))
        stakes = [min(s, 0.95 / (bound + slack)) for s in STAKES]
        count = witnesses * len(stakes)
        self._miss = np.array(miss + [1.0] * count)
        self._ratio = np.array(ratio + [1.0] * count)
        self._weight = SPENT * np.array(weight + [PRIOR["witness"] / count] * count)
        self._stake = np.tile(stakes, (witnesses, 1))
        self._base = 1.0 - self._stake * slack
        self._groups = tuple(novelties)
        self._clusters = clusters
        self._slices()
        self.clear()

    def _slices(self) -> None:
        at = self._clusters * PER_CLUSTER
        self._starts = []
        for group in self._groups:
            self._starts.append(at)
            at += group * len(NOVELTIES)
        self._witness_at = at
        self._row = np.tile(self._miss, (self._clusters, 1))  # factors of a row, by its cluster
        for label in range(self._clusters):
            own = slice(label * PER_CLUSTER, (label + 1) * PER_CLUSTER)
            self._row[label, own] *= self._ratio[own]

    def clear(self) -> None:
        """Forget what was seen; keep what is normal."""
        self._value = np.zeros(len(self._weight))
        self.total = 0.0
        self.updates = 0
        self._views()

    def _views(self) -> None:
        self._tail = self._value[self._witness_at :].reshape(self._stake.shape)
        self._factor = np.empty_like(self._tail)
        self._seen = np.zeros((len(self._stake), 1))

    def update(self, label: int, beyond: tuple[int, ...], projections: Sequence[float]) -> float:
        """Take one row: its cluster, how many limits of each group it is beyond, its projections
        [witnesses]. Returns the mixture, whose log is the evidence."""
        value = self._value
        value += 1.0
        value *= self._row[label]
        for start, exceeded in zip(self._starts, beyond, strict=True):
            if exceeded:
                end = start + exceeded * len(NOVELTIES)
                value[start:end] *= self._ratio[start:end]
        factor = self._factor
        for witness, projection in enumerate(projections):
            self._seen[witness, 0] = projection
        np.multiply(self._stake, self._seen, out=factor)
        factor += self._base
        self._tail *= factor
        total = float(self._weight @ value)
        if total > LARGEST:
            np.minimum(value, LARGEST, out=value)
            total = LARGEST
        self.total = total
        self.updates += 1
        return total

    @property
    def evidence(self) -> float:
        return math.log(self.total) if self.total > 0 else -math.inf

    def shares(self) -> tuple[Vector, Vector, float, float]:
        """Who holds the evidence: clusters that grew [clusters], that shrank [clusters], novelty,
        witnesses. They sum to 1; all 0 without evidence."""
        held = self._weight * self._value
        held = held / max(float(held.sum()), 1e-300)
        own = held[: self._clusters * PER_CLUSTER].reshape(self._clusters, PER_CLUSTER)
        novelty = float(held[self._clusters * PER_CLUSTER : self._witness_at].sum())
        return own[:, :-1].sum(axis=1), own[:, -1], novelty, float(held[self._witness_at :].sum())

    def factors(
        self, labels: NDArray[Any], beyond: NDArray[Any], projections: NDArray[Any]
    ) -> Vector:
        """Factors [n] that the component with most of the evidence earned on past rows: labels [n],
        beyond [n, groups], projections [n, witnesses]."""
        best = int(np.argmax(self._weight * self._value))
        if best >= self._witness_at:
            witness, stake = divmod(best - self._witness_at, len(STAKES))
            return np.asarray(
                self._base[witness, stake] + self._stake[witness, stake] * projections[:, witness]
            )
        if best < self._clusters * PER_CLUSTER:
            hit = labels == best // PER_CLUSTER
        else:
            group = max(g for g, start in enumerate(self._starts) if start <= best)
            hit = beyond[:, group] > (best - self._starts[group]) // len(NOVELTIES)
        return np.asarray(self._miss[best] * np.where(hit, self._ratio[best], 1.0))

    def state(self) -> Mapping[str, Json]:
        return {
            "clusters": self._clusters,
            "groups": list(self._groups),
            "updates": self.updates,
            "total": self.total,
            **{name: pack(getattr(self, name)) for name in _ARRAYS},
        }

    @classmethod
    def of_state(cls, state: Mapping[str, Json]) -> Bets:
        bets = cls.__new__(cls)
        for name in _ARRAYS:
            setattr(bets, name, unpack(state[name]))
        bets._clusters = int(state["clusters"])
        bets._groups = tuple(int(g) for g in state["groups"])
        bets._slices()
        bets._views()
        bets.updates, bets.total = int(state["updates"]), float(state["total"])
        return bets


_ARRAYS = ("_miss", "_ratio", "_weight", "_stake", "_base", "_value")
