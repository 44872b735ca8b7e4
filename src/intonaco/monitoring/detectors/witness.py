"""The direction into which vectors have moved lately, learned as they come."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from intonaco.monitoring.detectors.arrays import pack, unpack
from intonaco.types import Json

Row = NDArray[np.float32]
Vector = NDArray[np.float32]

AXES = 48  # principal axes with a variance of their own; all others share one
PER_AXIS = 8  # residuals for each axis, at least
EVERY = 25  # rows between two aims
MEMORIES = (100.0, 500.0)  # rows that a direction is learned from, about
CLIP = 4.0  # standard deviations
LEAST_VARIANCE = 1e-9
LEAST_SHARE = 1e-4  # of the axis that varies most: single precision cannot tell 1 from 1 - 1e-8


class Witness:
    """Directions w = S^-1 g, where g is the recent mean of residuals (rows less the mean of their
    cluster) and S their covariance in the reference: the best linear test for the shift g (Fisher's
    discriminant). They are aimed anew every ``EVERY`` rows and used only for the rows after: what
    is bet on never depends on the row it is bet on.

    Residuals do not care how often each topic is asked for. So the rhythm of a day does not look
    like a move, and topics that come and go do not hide one.

    The cluster means have errors, and a direction learned from residuals finds those too. So what a
    projection is without a move is measured on rows that neither the means nor the directions know
    (``measure``): in any direction that is learned elsewhere, the mean of ``measured`` rows is off
    by a standard deviation in the root of their number.

    After Shekhar & Ramdas, arXiv 2112.09162.
    """

    def __init__(self, residuals: NDArray[np.float64], *, rounding: float = 0.0) -> None:
        """From residuals [n, d] of the reference. ``rounding``: squared length of what their rows
        lost to rounding. Requests chosen from a menu are a few points: within their clusters
        nothing varies, or along one line only. No direction is taken to vary less than rounding
        does, or that would be bet on."""
        n, d = residuals.shape
        axes = max(0, min(AXES, d // 2, n // PER_AXIS))
        total = float((residuals**2).sum()) / n
        self._axes = np.zeros((axes, d), dtype=np.float32)
        variance = np.zeros(axes)
        if axes:
            _, scale, rows = np.linalg.svd(residuals, full_matrices=False)
            self._axes = rows[:axes].astype(np.float32)
            variance = np.maximum(scale[:axes] ** 2 / n, 1e-12)
        # standard deviation in a direction, on the average
        least = max(LEAST_VARIANCE, rounding)
        self.scale = math.sqrt(max(total / d, least))
        least = max(least, LEAST_SHARE * float(variance.max(initial=0.0)))
        self._rest = max((total - float(variance.sum())) / max(d - axes, 1), least)
        shrink = 1.0 - self._rest / np.maximum(variance, self._rest)
        self._shrink = shrink.astype(np.float32)
        self._sum = np.zeros(d, dtype=np.float32)
        self._recent = np.zeros((len(MEMORIES), d), dtype=np.float32)
        self._rows = 0
        self.directions = np.zeros((len(MEMORIES), d), dtype=np.float32)
        self._usual = [0.0] * len(MEMORIES)
        self._bias = np.zeros(d)
        self.measured = 0

    def measure(self, residual: Row) -> None:
        """Take a residual [d] of the reference that nothing was learned from."""
        self.measured += 1
        self._bias += (residual - self._bias) / self.measured

    def see(self, residual: Row) -> list[float]:
        """Projections [2] of one residual [d] in standard deviations, clipped; then learns it."""
        seen = [
            min(max(projection - usual, -CLIP), CLIP)
            for projection, usual in zip(
                (self.directions @ residual).tolist(), self._usual, strict=True
            )
        ]
        self._sum += residual
        self._rows += 1
        if self._rows == EVERY:
            self._aim()
        return seen

    def _aim(self) -> None:
        for i, memory in enumerate(MEMORIES):
            keep = (1.0 - 1.0 / memory) ** EVERY
            g = self._recent[i]
            g *= np.float32(keep)
            g += np.float32((1.0 - keep) / EVERY) * self._sum
            w = (g - (self._shrink * (self._axes @ g)) @ self._axes) * np.float32(1.0 / self._rest)
            w /= np.float32(math.sqrt(max(float(g @ w), 1e-18)))
            self.directions[i] = w
            self._usual[i] = float(w @ self._bias)
        self._sum[:] = 0.0
        self._rows = 0

    def clear(self) -> None:
        """Forget where the vectors moved."""
        self._sum[:] = 0.0
        self._recent[:] = 0.0
        self.directions[:] = 0.0
        self._usual = [0.0] * len(MEMORIES)
        self._rows = 0

    def state(self) -> Mapping[str, Json]:
        return {
            "rest": self._rest,
            "scale": self.scale,
            "rows": self._rows,
            "measured": self.measured,
            "usual": list(self._usual),
            **{name: pack(getattr(self, name)) for name in _ARRAYS},
        }

    @classmethod
    def of_state(cls, state: Mapping[str, Json]) -> Witness:
        witness = cls.__new__(cls)
        for name in _ARRAYS:
            setattr(witness, name, unpack(state[name]))
        witness._rest = float(state["rest"])
        witness.scale = float(state["scale"])
        witness._rows = int(state["rows"])
        witness.measured = int(state["measured"])
        witness._usual = [float(u) for u in state["usual"]]
        return witness


_ARRAYS = ("_axes", "_shrink", "_sum", "_recent", "directions", "_bias")
