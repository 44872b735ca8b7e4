"""Betting on a bounded mean: one e-process for every hypothesis on a grid, at every look.

**Model.** Observation ``i`` is a number ``x`` with ``low <= x <= high`` and
``E[x | past] = scale * delta``; ``low``, ``high`` and ``scale >= 0`` are known before ``x`` is seen
and may differ from one observation to the next.

**Claim.** For a fixed ``d`` and a fraction ``0 <= f < 1`` let ``b = f / (scale*d - low)``, known
before ``x``. Then the wealth ``M = prod(1 + b*(x - scale*d))``

- stays positive, since ``x - scale*d >= low - scale*d`` and so ``b*(x - scale*d) >= -f > -1``;
- is a supermartingale that starts at 1 whenever every ``delta <= d``, since then
  ``E[1 + b*(x - scale*d) | past] = 1 + b*scale*(delta - d) <= 1``.

A mixture of such wealths over a fixed set of fractions is one too, so by Ville's inequality
``P(M ever reaches 1/alpha) <= alpha``: evidence above ``1/alpha``, at whatever look, rejects
"``delta <= d`` throughout". The mirror image, ``b = f / (high - scale*d)`` on ``scale*d - x``,
rejects "``delta >= d`` throughout". Nothing is assumed of the distribution of ``x``, of drifts, or
of ``delta`` being constant.

Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", JRSS-B 2024
(arXiv 2010.09686); Howard, Ramdas, McAuliffe and Sekhon, "Time-uniform, nonparametric,
nonasymptotic confidence sequences", Annals of Statistics 2021 (arXiv 1810.08240).
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intonaco.errors import StorageError
from intonaco.types import Json

Array = NDArray[np.float64]

# Large fractions prove a rate of zero soonest, small ones an effect that drowns in noise. A
# mixture costs at most the logarithm of one over its best member's share.
FRACTIONS = (0.04, 0.15, 0.35, 0.65, 0.95)
_HALF_GRID = (
    *(0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.06, 0.075),
    *(0.1, 0.125, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0),
)
_NARROWEST = 0.01  # of high - low: keeps a bet finite where the hypothesis is all but impossible


def difference_grid(points: Iterable[float] = ()) -> tuple[float, ...]:
    """Differences in [-1, 1], dense around 0, with ``points`` among them."""
    return tuple(sorted({0.0, *_HALF_GRID, *(-d for d in _HALF_GRID), *map(float, points)}))


def log_growth(
    x: Any, scale: Any, low: Any, high: Any, grid: Array, fractions: Array
) -> tuple[Array, Array]:
    """Log factors of one observation (or of one in each of many runs, shape [...]).

    Returns (above, below), each of shape [..., len(grid), len(fractions)]: what an observation adds
    to the log evidence that the mean is above, respectively below, each point of the grid.
    """
    x, scale, low, high = (np.asarray(v, float)[..., None] for v in (x, scale, low, high))
    narrowest = _NARROWEST * (high - low)
    excess = x - scale * grid
    above = excess / np.maximum(scale * grid - low, narrowest)
    below = -excess / np.maximum(high - scale * grid, narrowest)
    return (
        np.log1p(above[..., None] * fractions),
        np.log1p(below[..., None] * fractions),
    )


def mix(log_wealth: Array) -> Array:
    """Log of the equal mixture over the last axis."""
    top = log_wealth.max(axis=-1)
    summed: Array = top + np.log(np.mean(np.exp(log_wealth - top[..., None]), axis=-1))
    return summed


class BettingMean:
    """Evidence about ``delta`` for every hypothesis on ``grid``. State is exact JSON."""

    def __init__(self, grid: Iterable[float], *, fractions: Iterable[float] = FRACTIONS) -> None:
        self.grid: Array = np.unique(np.asarray(list(grid), float))
        self._fractions: Array = np.asarray(list(fractions), float)
        if self.grid.size == 0:
            raise ValueError("the grid needs at least one point")
        if not ((self._fractions > 0) & (self._fractions < 1)).all():
            raise ValueError("fractions lie strictly between 0 and 1")
        self._wealth: Array = np.zeros((2, self.grid.size, self._fractions.size))
        self._peak: Array = np.zeros((2, self.grid.size))
        self._sum_x = 0.0
        self._sum_scale = 0.0
        self.observations = 0

    def update(self, x: float, *, scale: float, low: float, high: float) -> None:
        """Take one observation. Raises ValueError if it breaks its own bounds."""
        slack = 1e-9 * (high - low)
        if not (low - slack <= x <= high + slack and scale >= 0 and high > low):
            raise ValueError(f"x = {x} outside [{low}, {high}], or scale = {scale} < 0")
        above, below = log_growth(x, scale, low, high, self.grid, self._fractions)
        self._wealth[0] += above
        self._wealth[1] += below
        np.maximum(self._peak, mix(self._wealth), out=self._peak)
        self._sum_x += x
        self._sum_scale += scale
        self.observations += 1

    def _at(self, d: float) -> int:
        index = int(np.searchsorted(self.grid, d))
        if index == self.grid.size or self.grid[index] != d:
            raise ValueError(f"{d} is not on the grid; name it when the test is made")
        return index

    def log_evidence_above(self, d: float) -> float:
        """Log e-value now against "delta <= d"."""
        return float(mix(self._wealth[0, self._at(d)]))

    def log_evidence_below(self, d: float) -> float:
        """Log e-value now against "delta >= d"."""
        return float(mix(self._wealth[1, self._at(d)]))

    def components(self, d: float, *, above: bool) -> Array:
        """Log evidence of each fraction against "delta <= d" (``above``) or "delta >= d", its share
        included, shape [fractions]: what ``planning.remaining`` starts from."""
        found: Array = self._wealth[0 if above else 1, self._at(d)] - math.log(self._fractions.size)
        return found

    def peak_above(self, d: float) -> float:
        """The highest log e-value so far against "delta <= d"."""
        return float(self._peak[0, self._at(d)])

    def peak_below(self, d: float) -> float:
        """The highest log e-value so far against "delta >= d"."""
        return float(self._peak[1, self._at(d)])

    @property
    def estimate(self) -> float | None:
        """Weighted mean difference, ``sum(x) / sum(scale)``; None without data."""
        if self._sum_scale <= 0:
            return None
        return min(max(self._sum_x / self._sum_scale, float(self.grid[0])), float(self.grid[-1]))

    def interval(self, alpha: float) -> tuple[float, float]:
        """Confidence sequence of level ``1 - alpha`` for a constant ``delta``, by inversion.

        Each bound moves over the grid only past hypotheses that are all rejected at ``alpha / 2``,
        so a bound beyond the true value means that the nearest grid point on its far side, a true
        hypothesis, was rejected: probability ``alpha / 2`` a side, over all looks together.
        Present evidence is inverted, not its peak: should delta drift, the interval follows.
        """
        rejected = mix(self._wealth) >= math.log(2 / alpha)
        last = self.grid.size - 1
        low = 0 if not rejected[0, 0] else _run(rejected[0]) - 1
        high = last if not rejected[1, last] else last - (_run(rejected[1, ::-1]) - 1)
        return (float(self.grid[min(low, high)]), float(self.grid[max(low, high)]))

    def state(self) -> Mapping[str, Json]:
        """JSON from which ``restore`` continues bit for bit."""
        return {
            "grid": _pack(self.grid),
            "fractions": _pack(self._fractions),
            "wealth": _pack(self._wealth),
            "peak": _pack(self._peak),
            "sum_x": self._sum_x,
            "sum_scale": self._sum_scale,
            "observations": self.observations,
        }

    def restore(self, state: Mapping[str, Json]) -> None:
        """Continue from a state of a process with the same grid and fractions. Raises
        StorageError otherwise."""
        if state["grid"] != _pack(self.grid) or state["fractions"] != _pack(self._fractions):
            raise StorageError("the stored evidence was gathered for other hypotheses")
        self._wealth = _unpack(state["wealth"], self._wealth.shape)
        self._peak = _unpack(state["peak"], self._peak.shape)
        self._sum_x = float(state["sum_x"])
        self._sum_scale = float(state["sum_scale"])
        self.observations = int(state["observations"])


def _run(flags: NDArray[np.bool_]) -> int:
    """How many are true from the start without a gap."""
    return int(flags.size if flags.all() else np.argmin(flags))


def _pack(array: Array) -> str:
    return base64.b64encode(np.ascontiguousarray(array, "<f8").tobytes()).decode()


def _unpack(text: str, shape: tuple[int, ...]) -> Array:
    return np.frombuffer(base64.b64decode(text), "<f8").astype(float).reshape(shape)
