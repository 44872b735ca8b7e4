"""Shiryaev-Roberts statistics of several bets side by side, and their mixture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intonaco.monitoring.detectors.arrays import pack, unpack
from intonaco.types import Json

Vector = NDArray[np.float64]

LARGEST = 1e280  # keeps a detector that goes on after its alarm finite


class ShiryaevRoberts:
    """``M <- (M + 1) * e`` for each bet's e-value ``e``: the sum, over all updates at which a
    change may have begun, of what one unit staked at that update would be worth now.

    If each ``e`` has mean at most 1 given the past, ``M_t - t`` is a supermartingale, so is
    ``sum w M - t`` with weights that sum to 1, and the mean time until ``sum w M`` reaches A is at
    least A (Shin, Ramdas & Rinaldo, "E-detectors", arXiv 2203.03532).
    """

    __slots__ = ("_run", "_start", "_value", "_weight", "sum")

    def __init__(self, weight: Vector) -> None:
        self._weight = weight / weight.sum()
        self.clear()

    def clear(self) -> None:
        """Forget what was seen."""
        self._value = np.zeros(len(self._weight))
        self._run = np.zeros(len(self._weight))
        self._start = np.zeros(len(self._weight), dtype=np.int64)
        self.sum = 0.0  # sum w M

    def update(self, e: Vector, stamp: int) -> float:
        """Take the e-values [bets] of one update, whose number is ``stamp``; gives sum w M."""
        fresh = self._run <= 1.0
        if fresh.any():
            self._start[fresh] = stamp
            self._run[fresh] = 1.0
        self._run *= e
        self._value += 1.0
        self._value *= e
        self.sum = float(self._weight @ self._value)
        if self.sum > LARGEST:
            np.minimum(self._value, LARGEST, out=self._value)
            np.minimum(self._run, LARGEST, out=self._run)
            self.sum = LARGEST
        return self.sum

    @property
    def since(self) -> int:
        """Estimate of the change: the stamp at which the bet that holds most of the evidence began
        its winning run (the start of its CUSUM)."""
        return int(self._start[int(np.argmax(self._weight * self._value))])

    def held(self) -> Vector:
        """Share of the evidence that each bet holds, [bets]; zeros while there is none."""
        held = self._weight * self._value
        return np.asarray(held / max(float(held.sum()), 1e-300), dtype=np.float64)

    def state(self) -> Mapping[str, Json]:
        return {"sum": self.sum, **{name: pack(getattr(self, f"_{name}")) for name in _ARRAYS}}

    @classmethod
    def of_state(cls, state: Mapping[str, Json]) -> ShiryaevRoberts:
        made = cls.__new__(cls)
        made.sum = float(state["sum"])
        arrays: dict[str, NDArray[Any]] = {name: unpack(state[name]) for name in _ARRAYS}
        for name, array in arrays.items():
            setattr(made, f"_{name}", array)
        return made


_ARRAYS = ("weight", "value", "run", "start")


def log_of(total: float) -> float:
    """The evidence of a Shiryaev-Roberts statistic."""
    return math.log(total) if total > 0 else -math.inf
