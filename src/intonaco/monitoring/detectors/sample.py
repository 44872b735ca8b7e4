"""A bounded sample of unit vectors, a byte a number."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from intonaco.monitoring.detectors.arrays import pack, unpack
from intonaco.types import Json

Rows = NDArray[np.float32]


def rounded(row: NDArray[np.float32]) -> NDArray[np.float32]:
    """The row [d] as a ``Sample`` gives it back."""
    scale = _scale(row)
    return np.asarray(np.rint(row / scale) * np.float32(scale), dtype=np.float32)


def rounding(rows: Rows) -> float:
    """The squared length, on the average, of what rounding took from rows [n, d] of unit length."""
    squares = float((np.abs(rows).max(axis=1) ** 2).mean())
    return int(rows.shape[1]) * squares / 127.0**2 / 12.0


def _scale(row: NDArray[np.float32]) -> float:
    largest = float(np.abs(row).max())
    return largest / 127.0 if largest > 0 else 1.0


class Sample:
    """Rows [n, d], kept as eight-bit integers with one scale a row: the rounding moves a unit
    vector of 384 dimensions by about 0.01, next to nothing beside the distance between two
    requests of one topic."""

    def __init__(self) -> None:
        self._rows: list[NDArray[np.int8]] = []
        self._scale: list[float] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: Rows) -> None:
        scale = _scale(row)
        self._rows.append(np.rint(row / scale).astype(np.int8))
        self._scale.append(scale)

    def rows(self) -> Rows:
        """[n, d] float32."""
        scale = np.array(self._scale, dtype=np.float32)
        return np.asarray(np.stack(self._rows) * scale[:, None], dtype=np.float32)

    def clear(self) -> None:
        self._rows, self._scale = [], []

    def state(self) -> Json:
        if not self._rows:
            return None
        return {"rows": pack(np.stack(self._rows)), "scale": pack(np.array(self._scale))}

    def restore(self, state: Mapping[str, Json] | None) -> None:
        self.clear()
        if state is not None:
            self._rows = list(unpack(state["rows"]))
            self._scale = [float(s) for s in unpack(state["scale"])]
