"""Between what bounds the means of features lay while the reference was collected."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intonaco.monitoring.detectors.arrays import pack, unpack
from intonaco.types import Json

Vector = NDArray[np.float64]

BLOCKS = 128  # at most; then two become one
SMALLEST = 32  # rows in a block at first
ENOUGH = 64  # blocks from which on their spread says something
SPREAD = 2.0  # standard deviations of the true means: a sine peaks at 1.4 of its own, a weekly
# rhythm upon a daily one at about 2
UNSURE = (
    2.0  # standard errors of the blocks' variance: a spread that chance may hide is allowed for
)
SURE = 2.5  # standard errors by which a block must lie outside to widen the band by itself


class Envelope:
    """Sums of features that are 0 or 1, in blocks of consecutive rows: bounded memory however long
    the reference.

    Demand breathes with the day and the week, so a feature's mean is no constant. What the means of
    the blocks spread more than chance explains is their true spread, and the band is made so wide
    that it holds the whole rhythm. It therefore needs no clock and no phase.
    """

    def __init__(self, features: int) -> None:
        self._sums = np.zeros((BLOCKS, features))
        self._block = 0
        self._rows = 0  # in the current block
        self._size = SMALLEST

    @property
    def n(self) -> int:
        return self._block * self._size + self._rows

    @property
    def row(self) -> Vector:
        """The sums of the current block; add to it in place, then call ``next``."""
        return np.asarray(self._sums[self._block])

    def next(self) -> None:
        """One row is done."""
        self._rows += 1
        if self._rows == self._size:
            self._rows = 0
            self._block += 1
            if self._block == BLOCKS:
                self._sums[: BLOCKS // 2] = self._sums[0::2] + self._sums[1::2]
                self._sums[BLOCKS // 2 :] = 0.0
                self._block, self._size = BLOCKS // 2, 2 * self._size

    def band(self, z: float) -> tuple[Vector, Vector, Vector]:
        """(lowest, mean, highest) of each feature's mean. ``z``: standard errors of slack."""
        n = self.n
        mean = self._sums.sum(axis=0) / n
        variance = mean * (1.0 - mean)
        slack = np.asarray(slack_of(variance, n, z))
        low, high = mean - slack, mean + slack
        if self._block >= ENOUGH:
            blocks = self._sums[: self._block] / self._size
            error = np.maximum(variance, 1.0 / n) / self._size
            found = blocks.var(axis=0, ddof=1)
            found += UNSURE * found * math.sqrt(2.0 / (self._block - 1))
            spread = np.sqrt(np.maximum(found - error, 0.0))
            sure = SURE * np.sqrt(np.maximum(blocks * (1.0 - blocks), 1.0 / n) / self._size)
            low = np.minimum(low - SPREAD * spread, (blocks + sure).min(axis=0))
            high = np.maximum(high + SPREAD * spread, (blocks - sure).max(axis=0))
        return low, mean, high

    def state(self) -> Mapping[str, Json]:
        return {
            "sums": pack(self._sums[: self._block + 1]),
            "block": self._block,
            "rows": self._rows,
            "size": self._size,
        }

    @classmethod
    def of_state(cls, state: Mapping[str, Json]) -> Envelope:
        sums = unpack(state["sums"])
        envelope = cls(sums.shape[1])
        envelope._sums[: len(sums)] = sums
        envelope._block, envelope._rows = int(state["block"]), int(state["rows"])
        envelope._size = int(state["size"])
        return envelope


def slack_of(variance: Any, n: int, z: float) -> Any:
    """Half-width of the band that a mean measured on ``n`` items may be off by: Bernstein's form,
    with the variance held above 1/n, because no sighting among n items leaves about that much
    open."""
    variance = np.maximum(variance, 1.0 / n)
    return z * np.sqrt(variance / n) + z * z / (3 * n)
