"""Mixture of Shiryaev-Roberts e-detectors over bounded features.

Each component bets that one feature's mean left its band on one side:
``M <- (M + 1) * (1 + lambda * (+-(f - m) - slack))``. While the conditional mean of the feature
stays within ``m +- slack`` each factor has mean at most 1, so ``M_t - t`` is a supermartingale, and
so is the mixture ``sum w M`` with weights that sum to 1: the mean time until it reaches A is at
least A.

Shin, Ramdas & Rinaldo, "E-detectors", arXiv 2203.03532.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intonaco.monitoring.detectors.arrays import pack, unpack
from intonaco.types import Json

Vector = NDArray[np.float64]

CAP = 0.95  # of the largest bet that cannot lose everything
STAKES = CAP * 2.5 ** -np.arange(6.0)  # the bets that are mixed, as shares of that largest bet
LARGEST = 1e280  # keeps a detector that goes on after its alarm finite


class Mixture:
    """Components ``c`` over features ``f``. ``index[c]`` is the feature, ``sign[c]`` the side
    (+1 up, -1 down), ``stake[c]`` the bet as a share of the largest one, ``weight[c]`` the prior.

    ``mean`` and ``slack`` are per feature. ``low`` is the smallest value the features can take
    (0 unless given), ``high`` the largest (1)."""

    __slots__ = (
        "_bet",
        "_index",
        "_offset",
        "_run",
        "_sign",
        "_stake",
        "_start",
        "_value",
        "_weight",
        "evidence",
        "updates",
    )

    def __init__(
        self,
        *,
        index: NDArray[np.int64],
        sign: Vector,
        stake: Vector,
        weight: Vector,
        mean: Vector,
        slack: Vector,
        low: Vector | None = None,
        high: Vector | None = None,
    ) -> None:
        self._index = index
        self._sign = sign
        self._stake = stake
        self._weight = weight / weight.sum()
        low = np.zeros_like(mean) if low is None else low
        high = np.ones_like(mean) if high is None else high
        self._bet = np.zeros(len(index))
        self._offset = np.zeros(len(index))
        for feature in range(len(mean)):
            self.reset_feature(feature, mean[feature], slack[feature], low[feature], high[feature])
        self.clear()

    def clear(self) -> None:
        """Forget what was seen; keep what is normal."""
        self._value = np.zeros(len(self._index))
        self._run = np.zeros(len(self._index))
        self._start = np.zeros(len(self._index), dtype=np.int64)
        self.evidence = -math.inf
        self.updates = 0

    def reset_feature(
        self, feature: int, mean: float, slack: float, low: float = 0.0, high: float = 1.0
    ) -> None:
        """Change what is normal for a feature from the next update on. The change may depend on the
        past but not on the next value: then the guarantee holds on."""
        here = self._index == feature
        sign = self._sign[here]
        worst = np.where(sign > 0, mean - low, high - mean) + slack
        self._bet[here] = sign * self._stake[here] / np.maximum(worst, 1e-9)
        # 1 + lambda * (sign * (f - m) - slack)  ==  1 + bet * f - offset,  bet = sign * lambda
        self._offset[here] = self._bet[here] * mean + np.abs(self._bet[here]) * slack

    def update(self, features: Vector) -> float:
        """Take one row of features; returns the log evidence."""
        factor = 1.0 + self._bet * features[self._index] - self._offset
        np.maximum(factor, 0.0, out=factor)
        fresh = self._run <= 1.0
        self._start[fresh] = self.updates
        self._run[fresh] = 1.0
        self._run *= factor
        self._value += 1.0
        self._value *= factor
        total = float(self._weight @ self._value)
        if total > LARGEST:
            np.minimum(self._value, LARGEST, out=self._value)
            np.minimum(self._run, LARGEST, out=self._run)
            total = min(total, LARGEST)
        self.updates += 1
        self.evidence = math.log(total) if total > 0 else -math.inf
        return self.evidence

    @property
    def since(self) -> int:
        """Estimate of the change: the update at which the component that holds most of the evidence
        began its winning run (the start of its CUSUM)."""
        if not self.updates:
            return 0
        return int(self._start[int(np.argmax(self._weight * self._value))])

    def shares(self) -> Vector:
        """Share of the evidence per feature, [features]."""
        held = np.bincount(self._index, weights=self._weight * self._value)
        return np.asarray(held / max(held.sum(), 1e-300), dtype=np.float64)

    def state(self) -> Mapping[str, Json]:
        return {
            "evidence": None if math.isinf(self.evidence) else self.evidence,
            "updates": self.updates,
            **{name: pack(getattr(self, f"_{name}")) for name in _ARRAYS},
        }

    @classmethod
    def of_state(cls, state: Mapping[str, Json]) -> Mixture:
        mixture = cls.__new__(cls)
        arrays: dict[str, NDArray[Any]] = {name: unpack(state[name]) for name in _ARRAYS}
        for name, array in arrays.items():
            setattr(mixture, f"_{name}", array)
        mixture.updates = int(state["updates"])
        evidence = state["evidence"]
        mixture.evidence = -math.inf if evidence is None else float(evidence)
        return mixture


_ARRAYS = ("index", "sign", "stake", "weight", "bet", "offset", "value", "run", "start")


def slack_of(variance: Any, n: int, z: float) -> Any:
    """Half-width of the band that a mean measured on ``n`` items may be off by: Bernstein's form,
    with the variance held above 1/n, because no sighting among n items leaves about that much
    open."""
    variance = np.maximum(variance, 1.0 / n)
    return z * np.sqrt(variance / n) + z * z / (3 * n)
