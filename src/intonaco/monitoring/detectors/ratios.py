"""E-values of a value against all that came before it.

A bet is a function ``r >= 0`` of a value that is larger where the bettor expects more of them after
a change. Its e-value for the i-th value is::

    e_i = r(x_i) / mean(r(x_1), ..., r(x_i))

the value's own among those averaged. While the values are exchangeable, x_i is any of the i values
with the same probability, so given which values there are the mean of e_i is exactly 1; whatever
the distribution, and for any number of values in the reference. Hence the product of
e_k, ..., e_t has mean 1 for each k and t, and a Shiryaev-Roberts statistic of them has mean t at
each t. (Condition on the set of the first k values and on all that follow: e_{k+1}, ..., e_t are
then fixed and e_k has mean 1. Repeat for k+1, and so on.)

That is at a fixed t. For the time of an alarm one needs more: the e_i as a sequence must not tell
the next one. Where r is a linear function of Gaussian values they do not, because the differences
from the running mean are then independent ("recursive residuals": Brown, Durbin & Evans, J. R.
Stat. Soc. B 37, 1975); where r ranks distinct values likewise, since sequential ranks are
independent (Vovk, Nouretdinov & Gammerman, ICML 2003). Between these ends it is what simulation
says: docs/decisions/0010 has the table, tests/unit/test_detectors_scalar.py guards it.

A *fixed* reference would need a slack instead, since its mean is off by some error for ever:
3.5 standard errors of 10,000 values cost a detector of a fall by 0.25 sigma a quarter of its
growth, of 2,000 values more than half. What the growing reference costs is that a change itself
slowly becomes normal: after as many changed values as the reference has, half of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intonaco.monitoring.detectors.arrays import pack, unpack
from intonaco.types import Json

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

FEWEST = 20  # values of a season before its values are bet on


class Ratios:
    """Running means of the bets, apart for each season. ``highest``: the largest value of each
    bet, [bets].

    One value of that height is counted in from the start: a reference cannot rule out what it is
    too small to have seen. Without it, a bet on errors would take no loss while there are none, and
    the first error in a month would be an alarm.
    """

    __slots__ = ("_count", "_highest", "_total")

    def __init__(self, highest: Vector, *, seasons: int = 1) -> None:
        self._highest = highest
        self._total: Matrix = np.zeros((seasons, len(highest)))
        self._count: Vector = np.zeros(seasons)

    def learn(self, bounds: Matrix, seasons: NDArray[np.int64]) -> None:
        """Take the values of the reference. ``bounds`` [values, bets]: see ``e``."""
        np.add.at(self._total, seasons, bounds)
        np.add.at(self._count, seasons, 1.0)

    def e(self, r: Vector, bound: Vector, season: int = 0) -> Vector:
        """The e-values [bets] of one value, which is learned too. ``bound >= r``: what the bets
        would give for the value after the worst move that still counts as normal."""
        total = self._total[season]
        total += bound
        self._count[season] += 1.0
        count = self._count[season]
        if count <= FEWEST:
            return np.ones(len(r))
        return np.asarray(r * (count + 1.0) / (total + self._highest), dtype=np.float64)

    def state(self) -> Mapping[str, Json]:
        return {name: pack(getattr(self, f"_{name}")) for name in _ARRAYS}

    @classmethod
    def of_state(cls, state: Mapping[str, Json]) -> Ratios:
        made = cls.__new__(cls)
        arrays: dict[str, NDArray[Any]] = {n: unpack(state[n]) for n in _ARRAYS}
        for name, array in arrays.items():
            setattr(made, f"_{name}", array)
        return made


_ARRAYS = ("highest", "total", "count")
