"""Many rollouts at once: the arithmetic of ``intonaco.stats``, with a look after every unit.

Each class holds one test in each of ``runs`` streams and takes one unit a stream and call. That
they do what the classes of ``intonaco.stats`` do is a test (tests/unit/test_stats_type1.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intonaco.stats import boundaries, error_ratio, latency, outcome
from intonaco.stats.betting import FRACTIONS, log_growth, mix

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]


class Ratio:
    """``ErrorRatio`` in each run."""

    def __init__(self, runs: int, tolerance: float = 0.0) -> None:
        self._ratios = np.asarray(error_ratio.RATIOS)
        self._tolerance = tolerance
        self._log = np.tile(np.log(error_ratio.SHARES), (runs, 1))
        self.peak = np.zeros(runs)

    def take(self, failed: Flags, challenger: Flags, weight: Any) -> None:
        """One unit a run, of which only the failed ones count."""
        if not failed.any():
            return
        w = np.broadcast_to(np.asarray(weight, float), failed.shape)[failed]
        self._log[failed] += error_ratio.log_factors(
            challenger[failed], w, self._ratios, self._tolerance
        )
        np.maximum(self.peak, error_ratio.mixed(self._log), out=self.peak)


class Difference:
    """``RandomizedDifference`` in each run, at one hypothesis ``d``: evidence above and below."""

    def __init__(
        self, runs: int, d: float = 0.0, *, centre: float, centre_weight: float = 2.0
    ) -> None:
        self._grid, self._fractions = np.array([d]), np.asarray(FRACTIONS)
        self.wealth = np.zeros((2, runs, self._fractions.size))
        self.peak = np.zeros((2, runs))
        self._sum = np.full(runs, centre * centre_weight)
        self._n = np.full(runs, centre_weight)

    def take(
        self, values: Array, challenger: Flags, weight: Any, counted: Flags | None = None
    ) -> None:
        """One unit a run; where not ``counted``, none."""
        w = np.asarray(weight, float)
        c = self._sum / self._n
        h = np.where(challenger, (1 - w) * (values - c), -w * (values - c))
        low = -np.maximum((1 - w) * c, w * (1 - c))
        high = np.maximum((1 - w) * (1 - c), w * c)
        scale = np.broadcast_to(w * (1 - w), h.shape)
        above, below = log_growth(h, scale, low, high, self._grid, self._fractions)
        keep = np.ones(h.shape) if counted is None else counted.astype(float)
        self.wealth[0] += above[:, 0] * keep[:, None]
        self.wealth[1] += below[:, 0] * keep[:, None]
        np.maximum(self.peak, mix(self.wealth), out=self.peak)
        self._sum += values * keep
        self._n += keep


class Pairs:
    """``PairedDifference`` in each run, at one hypothesis: evidence above and below."""

    def __init__(self, runs: int, d: float = 0.0) -> None:
        self._grid, self._fractions = np.array([d]), np.asarray(FRACTIONS)
        self._wealth = np.zeros((2, runs, self._fractions.size))
        self.peak = np.zeros((2, runs))

    def take(self, difference: Array) -> None:
        """One pair a run."""
        one = np.ones(difference.shape)
        above, below = log_growth(difference, one, -one, one, self._grid, self._fractions)
        self._wealth[0] += above[:, 0]
        self._wealth[1] += below[:, 0]
        np.maximum(self.peak, mix(self._wealth), out=self.peak)


class PairsClosed:
    """``PairedBernstein`` in each run."""

    def __init__(self, runs: int, alpha: float) -> None:
        self._level = math.log(2 / alpha)
        self._sums = np.zeros((4, runs))
        self._squares = np.zeros(runs)
        self._t = 0

    def take(self, difference: Array) -> None:
        """One pair a run."""
        self._t += 1
        x, t = (difference + 1) / 2, self._t
        mean, variance = (0.5 + self._sums[3]) / t, (0.25 + self._squares) / t
        stake = np.sqrt(2 * self._level / (variance * t * math.log(1 + t)))
        stake = np.minimum(stake, 0.5)
        spent = (x - mean) ** 2 * (-np.log1p(-stake) - stake)
        self._sums += np.array([stake * x, stake, spent, x])
        self._squares += (x - (0.5 + self._sums[3]) / (t + 1)) ** 2

    def interval(self) -> tuple[Array, Array]:
        """Ends of each run's, not cut off at -1 and 1."""
        centre = self._sums[0] / self._sums[1]
        radius = (self._level + self._sums[2]) / self._sums[1]
        return 2 * (centre - radius) - 1, 2 * (centre + radius) - 1


class ScoresClosed:
    """``PropensityBernstein`` in each run; the boundary from a table, whose value at the next
    smaller time is taken (intervals are too short by up to 5 %, never too long)."""

    def __init__(self, runs: int, alpha: float, smallest_weight: float) -> None:
        self._v = np.geomspace(1e-3, 1e8, 600)
        scale = 2 / smallest_weight
        self._table = np.array(
            [
                boundaries.gamma_exponential_bound(
                    float(v), alpha / 2, v_opt=400.0, c=scale, alpha_opt=alpha / 2
                )
                for v in self._v
            ]
        )
        self._sums = np.zeros((3, runs))
        self._sums[2] = 0.5
        self._t = 0

    def take(self, values: Array, challenger: Flags, weight: float) -> None:
        """One randomised unit a run."""
        about = self._sums[2] / (self._t + 1)
        expected = np.clip(self._sums[0] / (self._t + 1), -1, 1)
        away = values - about
        score = np.where(challenger, away / weight, -away / (1 - weight))
        self._sums += np.array([score, (score - expected) ** 2, values])
        self._t += 1

    def interval(self) -> tuple[Array, Array]:
        """Ends of each run's, not cut off at -1 and 1."""
        place = np.searchsorted(self._v, self._sums[1], "right") - 1
        radius = self._table[np.maximum(place, 0)] / self._t
        centre = self._sums[0] / self._t
        return centre - radius, centre + radius


class Latency:
    """``LatencyTest`` in each run, with request classes 0 to ``classes - 1``."""

    def __init__(
        self,
        runs: int,
        tolerance: float = 0.0,
        *,
        margin: float = 0.1,
        classes: int = 1,
        powers: Sequence[float] = latency.POWERS,
        levels: Sequence[float] = latency.LEVELS,
    ) -> None:
        self._tolerance, self._margin = tolerance, margin
        self._powers, self._levels = tuple(powers), tuple(levels)
        self._times = np.full((runs, classes, latency.KEPT), math.inf, np.float32)
        self._known = np.zeros((runs, classes), int)
        self._rows = np.arange(runs)
        prior = outcome.PRIOR
        self._slower = [
            Difference(runs, centre=1 / (1 + k), centre_weight=prior) for k in self._powers
        ]
        self._within = [Difference(runs, centre=1 - q, centre_weight=prior) for q in self._levels]
        self.peak_slower = np.zeros(runs)

    def learn(self, seconds: Array, taken: Flags, request_class: Any = 0) -> None:
        """A time of the champion's in the runs in which one was ``taken``."""
        kind = np.broadcast_to(np.asarray(request_class, int), seconds.shape)
        rows, kinds = self._rows[taken], kind[taken]
        self._times[rows, kinds, self._known[rows, kinds] % latency.KEPT] = seconds[taken]
        self._known[rows, kinds] += 1

    def take(
        self,
        seconds: Array,
        challenger: Flags,
        weight: Any,
        request_class: Any = 0,
        counted: Flags | None = None,
    ) -> None:
        """One randomised unit a run; where not ``counted``, none."""
        kind = np.broadcast_to(np.asarray(request_class, int), seconds.shape)
        known = self._known[self._rows, kind]
        enough = known >= latency.NEEDED
        if counted is not None:
            enough &= counted
        if not enough.any():
            return
        held = np.minimum(known, latency.KEPT)
        times = self._times[self._rows, kind].astype(float)
        harm = self._rank(
            times, held, np.where(challenger, seconds / (1 + self._tolerance), seconds)
        )
        for power, bet in zip(self._powers, self._slower, strict=True):
            bet.take(harm**power, challenger, weight, enough)
        every = np.concatenate([bet.wealth[0] for bet in self._slower], axis=-1)
        np.maximum(self.peak_slower, mix(every), out=self.peak_slower)
        if not self._levels:
            return
        good = self._rank(times, held, np.where(challenger, seconds / (1 + self._margin), seconds))
        for level, bet in zip(self._levels, self._within, strict=True):
            bet.take((good > level).astype(float), challenger, weight, enough)

    def peak_within(self, level: float) -> Array:
        """The highest log evidence so far in each run."""
        found: Array = self._within[self._levels.index(level)].peak[1]
        return found

    @staticmethod
    def _rank(times: Array, held: NDArray[np.int_], seconds: Array) -> Array:
        below = (times < seconds[:, None]).sum(axis=1)
        upto = (times <= seconds[:, None]).sum(axis=1)
        found: Array = (below + upto) / (2.0 * np.maximum(held, 1))
        return found


class Crossings:
    """When each run first reached a threshold, in units taken; ``inf`` if not yet."""

    def __init__(self, runs: int, threshold: float) -> None:
        self.at = np.full(runs, math.inf)
        self.threshold = threshold
        self.units = 0

    def look(self, peak: Array) -> bool:
        """After a unit. True once every run is over."""
        self.units += 1
        new = (peak >= self.threshold) & np.isinf(self.at)
        self.at[new] = self.units
        return not np.isinf(self.at).any()

    @property
    def median(self) -> float:
        """Of all runs; ``inf`` if fewer than half are over."""
        return float(np.median(self.at))
