"""What was seen of the last rows, so that a change can be dated once it is sure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from intonaco.monitoring.detectors.arrays import pack, unpack
from intonaco.types import Json

Vector = NDArray[np.float64]

ROWS = 2048


class History:
    """A ring of features: label, limits exceeded, projections, number of the update."""

    def __init__(self, groups: int, projections: int) -> None:
        self._labels = np.zeros(ROWS, dtype=np.int16)
        self._beyond = np.zeros((ROWS, groups), dtype=np.int8)
        self._seen = np.zeros((ROWS, projections), dtype=np.float32)
        self._update = np.zeros(ROWS, dtype=np.int64)
        self._n = 0

    def __len__(self) -> int:
        return self._n

    def add(self, label: int, beyond: tuple[int, ...], seen: Sequence[float], update: int) -> None:
        at = self._n % ROWS
        self._labels[at] = label
        for group, exceeded in enumerate(beyond):
            self._beyond[at, group] = exceeded
        for i, projection in enumerate(seen):
            self._seen[at, i] = projection
        self._update[at] = update
        self._n += 1

    def rows(self) -> tuple[NDArray[np.int16], NDArray[np.int8], NDArray[np.float32]]:
        """(labels, beyond, projections), oldest first."""
        order = self._order()
        return self._labels[order], self._beyond[order], self._seen[order]

    def update_of(self, row: int) -> int:
        """The number of the update that was row ``row``, counted from the oldest."""
        return int(self._update[self._order()[row]])

    def _order(self) -> NDArray[np.int64]:
        return np.arange(max(0, self._n - ROWS), self._n) % ROWS

    def state(self) -> Mapping[str, Json]:
        kept = min(self._n, ROWS)
        return {"n": self._n, **{name: pack(getattr(self, name)[:kept]) for name in _ARRAYS}}

    def restore(self, state: Mapping[str, Json]) -> None:
        self._n = int(state["n"])
        for name in _ARRAYS:
            rows = unpack(state[name])
            getattr(self, name)[: len(rows)] = rows


_ARRAYS = ("_labels", "_beyond", "_seen", "_update")


def began(factors: Vector) -> int:
    """Row at which the winning run of a component began: where its sum of log factors was lowest,
    which is the start of its CUSUM. Page, Biometrika 41, 1954."""
    walk = np.concatenate([[0.0], np.cumsum(np.log(np.maximum(factors, 1e-12)))])
    return min(int(len(walk) - 1 - np.argmin(walk[::-1])), len(factors) - 1)
