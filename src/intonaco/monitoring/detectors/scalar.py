"""What the detectors of scalar streams have in common."""

from __future__ import annotations

import math
from abc import abstractmethod
from array import array
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from intonaco.errors import ConfigError
from intonaco.monitoring.detectors.arrays import pack, unpack
from intonaco.monitoring.detectors.base import ReferenceDetector
from intonaco.monitoring.detectors.ratios import Ratios
from intonaco.monitoring.detectors.settings import DetectorSettings, Direction
from intonaco.monitoring.detectors.shiryaev import ShiryaevRoberts, log_of
from intonaco.types import Json

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

DAY = 86_400.0  # seconds
RECENT = 100  # values that `value` speaks of


@dataclass(frozen=True, slots=True)
class Bets:
    """Bets side by side. ``names``: what each is on, for people; ``weight``: prior shares;
    ``highest``: the largest value of each bet's bound. [bets] each."""

    names: tuple[str, ...]
    weight: Vector
    highest: Vector


class ScalarDetector(ReferenceDetector):
    """Bets on a scalar against all values before it (``ratios``), mixed by Shiryaev-Roberts.

    The first ``reference`` values say what is normal; then it is armed, and goes on learning from
    what it watches until it fires. Values that are not finite count as updates and nothing else.

    ``threshold``: log of the mean number of updates to a false alarm, kept while the values are
    exchangeable. ``tolerance``: a move up to this is normal (the unit is the subclass's).
    ``direction``: bet on a rise, a fall, or both. ``seasons``: parts of the day (UTC) that have a
    reference of their own, for streams that swing over the day; updates need ``at`` then, and the
    reference should cover a few days.

    A subclass gives ``_fit``, ``_bets`` and ``_r``.
    """

    options: ClassVar[tuple[str, ...]] = ("seasons",)

    _pending: array[float]
    _pending_seasons: array[int]
    _recent: deque[float]
    _reference_value: float | None
    _fitted: Vector
    _kinds: Bets
    _ratios: Ratios
    _statistic: ShiryaevRoberts | None

    def __init__(
        self,
        *,
        threshold: float,
        reference: int = 2000,
        tolerance: float = 0.0,
        direction: Direction = "both",
        seasons: int = 1,
    ) -> None:
        super().__init__(threshold=threshold, reference=reference)
        if not isinstance(seasons, int) or not 1 <= seasons <= 288:
            raise ConfigError(f"seasons: 1 to 288 parts of a day (given: {seasons})")
        self.tolerance = tolerance
        self.direction: Direction = direction
        self.seasons = seasons
        self._forget()

    @classmethod
    def of(cls, settings: DetectorSettings) -> Self:
        return cls(
            threshold=settings.threshold,
            reference=settings.reference,
            tolerance=settings.tolerance,
            direction=settings.direction,
            **settings.chosen(cls.name, *cls.options),
        )

    # ------------------------------------------------------------------------ what a subclass gives

    @abstractmethod
    def _fit(self, values: Vector) -> Vector:
        """What has to be kept of the reference, an array of one dimension."""

    @abstractmethod
    def _bets(self, fitted: Vector) -> Bets:
        """The bets in the directions that are watched. Sets what ``_r`` needs."""

    @abstractmethod
    def _r(self, value: float) -> tuple[Vector, Vector]:
        """What the bets give for a value, [bets], and for the worst value within ``tolerance`` of
        it."""

    def _middle(self, values: Vector) -> float:
        """What ``value`` and ``reference_value`` are of some values."""
        return float(values.mean())

    # ------------------------------------------------------------------------------- what it says

    @property
    def armed(self) -> bool:
        return self._statistic is not None

    @property
    def evidence(self) -> float:
        return log_of(self._statistic.sum) if self._statistic else -math.inf

    @property
    def statistic(self) -> float:
        return self._statistic.sum if self._statistic else 0.0

    @property
    def since(self) -> int:
        return self._statistic.since if self._statistic else self._n

    @property
    def reference_value(self) -> float | None:
        """The middle of the reference."""
        return self._reference_value

    @property
    def value(self) -> float | None:
        """The middle of the last hundred values."""
        return self._middle(np.array(self._recent)) if self._recent else None

    @property
    def learning(self) -> int:
        """Values taken while not armed."""
        return len(self._pending)

    @property
    def weight(self) -> Vector:
        """Prior shares of the bets whose e-values ``feed`` gives, once armed."""
        return self._kinds.weight

    def shares(self) -> dict[str, float]:
        """Share of the evidence by what was bet on, most first."""
        if self._statistic is None:
            return {}
        shares: dict[str, float] = {}
        for name, held in zip(self._kinds.names, self._statistic.held(), strict=True):
            shares[name] = shares.get(name, 0.0) + float(held)
        return dict(sorted(shares.items(), key=lambda item: -item[1]))

    # -------------------------------------------------------------------------------- what it does

    def _take(self, x: Any, *, session: str | None, topic: str | None, at: float | None) -> None:
        self.feed(x, stamp=self._n - 1, at=at)

    def feed(self, x: Any, *, stamp: int, at: float | None = None) -> Vector | None:
        """One value that is the ``stamp``-th of the stream; ``update`` without its own count. Gives
        the e-values [bets], whose mean is at most 1 while all is normal; None when it did not
        bet."""
        value = float(x)
        if not math.isfinite(value):
            return None
        self._recent.append(value)
        if self._fired:
            return None  # evidence and date stay those of the alarm
        season = self._season(at)
        if self._statistic is None:
            self._pending.append(value)
            self._pending_seasons.append(season)
            if len(self._pending) >= self.reference:
                self.arm()
            return None
        e = self._ratios.e(*self._r(value), season)
        self._fired = log_of(self._statistic.update(e, stamp)) >= self.threshold
        return e

    def arm(self) -> None:
        """Take the values so far as the reference."""
        values = np.array(self._pending)
        self._reference_value = self._middle(values)
        self._fitted = self._fit(values)
        self._kinds = self._bets(self._fitted)
        self._statistic = ShiryaevRoberts(self._kinds.weight)
        self._ratios = Ratios(self._kinds.highest, seasons=self.seasons)
        bounds = np.stack([self._r(value)[1] for value in self._pending])
        self._ratios.learn(bounds, np.array(self._pending_seasons, dtype=np.int64))
        del self._pending[:], self._pending_seasons[:]

    def _season(self, at: float | None) -> int:
        if self.seasons == 1:
            return 0
        if at is None:
            raise ConfigError("seasons: this stream does not say when its values were (no `at`)")
        return min(int(at % DAY / DAY * self.seasons), self.seasons - 1)

    # ----------------------------------------------------------------------------------- its state

    def _forget(self) -> None:
        self._pending = array("d")
        self._pending_seasons = array("H")
        self._recent = deque(maxlen=RECENT)
        self._reference_value = None
        self._fitted = np.zeros(0)
        self._statistic = None

    def _live(self) -> Mapping[str, Json]:
        live: dict[str, Json] = {"recent": pack(np.array(self._recent))}
        if self._statistic is None:
            live["pending"] = pack(np.array(self._pending))
            live["pending_seasons"] = pack(np.array(self._pending_seasons, dtype=np.uint16))
        else:
            live["fitted"] = pack(self._fitted)
            live["reference_value"] = self._reference_value
            live["ratios"] = self._ratios.state()
            live["statistic"] = self._statistic.state()
        return live

    def _revive(self, state: Mapping[str, Json]) -> None:
        self._recent.extend(unpack(state["recent"]).tolist())
        if "fitted" not in state:
            self._pending.extend(unpack(state["pending"]).tolist())
            self._pending_seasons.extend(unpack(state["pending_seasons"]).tolist())
            return
        self._fitted = unpack(state["fitted"])
        self._reference_value = float(state["reference_value"])
        self._kinds = self._bets(self._fitted)
        self._ratios = Ratios.of_state(state["ratios"])
        self._statistic = ShiryaevRoberts.of_state(state["statistic"])
