"""Is the challenger slower? By bets on ranks among the champion's own past times, class by class.

**Model.** Unit ``i``, of a request class that is known before it is assigned, reaches the
challenger (``Z_i = 1``) with the logged probability ``w_i``, drawn independently of everything
before and of both times ``T_i(1)``, ``T_i(0)`` that it would take there.

**Null of slower.** ``T_i(1) / (1 + tolerance)`` is stochastically no larger than ``T_i(0)``, given
the past: at no quantile is the challenger more than ``1 + tolerance`` times as slow.

**Claim.** Let ``g_i`` be any function from times to [0, 1] that does not fall and is fixed by what
came before unit ``i``. The outcome ``Y_i = g_i(T_i / (1 + tolerance))`` on the challenger and
``Y_i = g_i(T_i)`` on the champion has under the null

    E[Y_i(1) - Y_i(0) | past] = E[g_i(T_i(1) / (1 + tolerance))] - E[g_i(T_i(0))] <= 0,

since stochastic order is the order of the means of all such functions (Shaked and Shanthikumar,
"Stochastic Orders", Springer 2007, section 1.A.1). So it is a randomised difference of bounded
outcomes with null "at most 0", and ``difference.py`` gives its e-process: valid at every look, with
changing weights, and whatever the drift of both times together, since ``g_i`` only has to be known
beforehand. Times of different classes are never compared: each has a ``g_i`` of its own.

Here ``g_i = F^k``, ``F`` the distribution of the champion's last times in the class (mid-ranks,
which do not fall with the time), ``k`` in ``POWERS``: one sees a shift of the whole, one a tail.
The mean of e-processes is one. A rank among the champion's own times is the outcome that a
Wilcoxon test has; betting makes it sequential (after Shekhar and Ramdas, "Nonparametric two-sample
testing by betting", IEEE Trans. Inf. Theory 2024, arXiv 2112.09162).

**Null of not within.** For a level ``q``, with ``h_i`` the champion's ``q`` quantile in the class
as it is known before unit ``i``: ``P(T_i(1) > (1 + margin) h_i) >= P(T_i(0) > h_i)`` for every
unit, given the past. Rejected: not every unit's share of slow answers is as large as the
champion's; under equal conditions, the challenger's ``q`` quantile is less than ``1 + margin``
times the champion's. It is a claim for each level, so ask all of them. With a margin of 0 it is
that of superiority.

**What the caller must do.** One time a unit, its first randomised one, in the order in which
requests began. In the order in which they ended, the slow come late: then the first claim holds for
the null "the times have the same distribution", not for the wider one. ``learn`` only after the
same record was taken. A request that failed has no time and is counted as an error; where failing
could hide slowness (a limit that ends it), feed the time until it was ended.
"""

from __future__ import annotations

import base64
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from intonaco.errors import StorageError
from intonaco.stats.betting import mix
from intonaco.stats.outcome import OutcomeBets
from intonaco.types import Json

Array = NDArray[np.float64]

POWERS = (2.0, 50.0)
LEVELS = (0.5, 0.9)
NEEDED = 30  # times of a class before it is compared
KEPT = 256  # the last times of a class
CLASSES = 64  # later ones are not compared


class ChampionTimes:
    """The champion's last times in each request class, and where a time lies among them."""

    def __init__(self, *, needed: int = NEEDED, kept: int = KEPT, classes: int = CLASSES) -> None:
        if not 1 <= needed <= kept:
            raise ValueError("at least 1 is needed, and no more than are kept")
        self._needed, self._kept, self._classes = needed, kept, classes
        self._recent: dict[str, deque[float]] = {}
        self._sorted: dict[str, list[float]] = {}

    def learn(self, seconds: float, request_class: str) -> None:
        """Take a time of the champion's (kept to 24 binary digits, so that state is exact)."""
        if request_class not in self._recent:
            if len(self._recent) >= self._classes:
                return
            self._recent[request_class], self._sorted[request_class] = deque(), []
        value = float(np.float32(seconds))
        recent, ordered = self._recent[request_class], self._sorted[request_class]
        recent.append(value)
        insort(ordered, value)
        if len(recent) > self._kept:
            del ordered[bisect_left(ordered, recent.popleft())]

    def rank(self, seconds: float, request_class: str) -> float | None:
        """Mid-rank in [0, 1]; it does not fall with ``seconds``. None while too few are known."""
        ordered = self._sorted.get(request_class, ())
        if len(ordered) < self._needed:
            return None
        below, upto = bisect_left(ordered, seconds), bisect_right(ordered, seconds)
        return (below + upto) / (2 * len(ordered))

    def usual(self, request_class: str) -> float | None:
        """The median in seconds; None while too few are known."""
        ordered = self._sorted.get(request_class, ())
        return None if len(ordered) < self._needed else ordered[len(ordered) // 2]

    def state(self) -> Json:
        return {
            name: base64.b64encode(np.asarray(times, "<f4").tobytes()).decode()
            for name, times in self._recent.items()
        }

    def restore(self, state: Mapping[str, Json]) -> None:
        self._recent, self._sorted = {}, {}
        for name, packed in state.items():
            times = [float(t) for t in np.frombuffer(base64.b64decode(packed), "<f4")]
            self._recent[name], self._sorted[name] = deque(times), sorted(times)


class LatencyTest:
    """Sequential comparison of times under randomised assignment. State is exact JSON.

    ``tolerance``: relative, of harm. ``margin``: relative, of non-inferiority, at every one of
    ``levels``.
    """

    def __init__(
        self,
        tolerance: float = 0.0,
        *,
        margin: float = 0.1,
        powers: Iterable[float] = POWERS,
        levels: Iterable[float] = LEVELS,
        needed: int = NEEDED,
        kept: int = KEPT,
    ) -> None:
        self.tolerance, self.margin = tolerance, margin
        self._powers, self.levels = tuple(powers), tuple(levels)
        if tolerance < 0 or margin <= 0 or not self._powers or min(self._powers) <= 0:
            raise ValueError("tolerance is 0 or more, margin and powers are positive")
        if not all(0 < level < 1 for level in self.levels):
            raise ValueError("levels lie strictly between 0 and 1")
        self.times = ChampionTimes(needed=needed, kept=kept)
        self._slower = [OutcomeBets(1 / (1 + k)) for k in self._powers]
        self._within = [OutcomeBets(1 - level) for level in self.levels]
        self._faster = [OutcomeBets(1 - level) for level in self.levels]
        self.peak_slower = 0.0
        self.units = [0, 0]  # champion, challenger

    def learn(self, seconds: float, request_class: str = "") -> None:
        """Take a time of the champion's, of any request, as what later ones are ranked among."""
        self.times.learn(seconds, request_class)

    def take(
        self, seconds: float, *, challenger: bool, weight: float, request_class: str = ""
    ) -> bool:
        """Take one randomised unit's time. False if it says nothing: not randomised, or of a class
        with too few of the champion's times so far. Raises ValueError for a weight outside [0, 1]
        or a time that is not a number of 0 or more."""
        if not (0 <= weight <= 1 and 0 <= seconds < float("inf")):
            raise ValueError(f"weight {weight} outside [0, 1] or {seconds} s no time")
        if not 0 < weight < 1:
            return False
        harm = seconds / (1 + self.tolerance) if challenger else seconds
        good = seconds / (1 + self.margin) if challenger else seconds
        rank, within, plain = (
            self.times.rank(time, request_class) for time in (harm, good, seconds)
        )
        if rank is None or within is None or plain is None:
            return False
        for power, slower in zip(self._powers, self._slower, strict=True):
            slower.take(rank**power, challenger=challenger, weight=weight)
        for bets, shown in ((self._within, within), (self._faster, plain)):
            for level, bet in zip(self.levels, bets, strict=True):
                bet.take(float(shown > level), challenger=challenger, weight=weight)
        self.units[challenger] += 1
        self.peak_slower = max(self.peak_slower, self.log_evidence_slower)
        return True

    @property
    def components_slower(self) -> Array:
        """Log wealth of each bet on "slower", its share included, shape [powers * fractions]."""
        every = np.concatenate([bet.side(above=True) for bet in self._slower])
        found: Array = every - np.log(every.size)
        return found

    @property
    def log_evidence_slower(self) -> float:
        """Log e-value now against "no slower than 1 + tolerance times, at any quantile"."""
        return float(mix(np.concatenate([bet.side(above=True) for bet in self._slower])))

    def log_evidence_within(self, level: float) -> float:
        """Log e-value now against "slower than 1 + margin times at this level"."""
        return self._within[self.levels.index(level)].log_evidence_below(0.0)

    def peak_within(self, level: float) -> float:
        """The highest so far."""
        return self._within[self.levels.index(level)].peak_below(0.0)

    def log_evidence_faster(self, level: float) -> float:
        """Log e-value now against "no faster at this level"."""
        return self._faster[self.levels.index(level)].log_evidence_below(0.0)

    def peak_faster(self, level: float) -> float:
        """The highest so far."""
        return self._faster[self.levels.index(level)].peak_below(0.0)

    def components_within(self, level: float) -> Array:
        """Log wealth of each bet on "within", its share included."""
        every = self._within[self.levels.index(level)].side(above=False)
        found: Array = every - np.log(every.size)
        return found

    def state(self) -> Mapping[str, Json]:
        """JSON from which ``restore`` continues bit for bit."""
        return {
            "made_with": self._made_with(),
            "times": self.times.state(),
            "slower": [bet.state() for bet in self._slower],
            "within": [bet.state() for bet in self._within],
            "faster": [bet.state() for bet in self._faster],
            "peak_slower": self.peak_slower,
            "units": list(self.units),
        }

    def restore(self, state: Mapping[str, Json]) -> None:
        """Continue from a state of a test with the same settings. Raises StorageError otherwise."""
        if dict(state["made_with"]) != self._made_with():
            raise StorageError("the stored evidence was gathered with other settings")
        self.times.restore(state["times"])
        for bets, name in (
            (self._slower, "slower"),
            (self._within, "within"),
            (self._faster, "faster"),
        ):
            for bet, stored in zip(bets, state[name], strict=True):
                bet.restore(stored)
        self.peak_slower = float(state["peak_slower"])
        self.units = [int(n) for n in state["units"]]

    def _made_with(self) -> dict[str, Json]:
        return {
            "tolerance": self.tolerance,
            "margin": self.margin,
            "powers": list(self._powers),
            "levels": list(self.levels),
        }
