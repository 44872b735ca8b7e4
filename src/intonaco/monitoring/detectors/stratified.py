"""One scalar, judged given the topic: a move of traffic is no fall."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from intonaco.errors import ConfigError
from intonaco.monitoring.detectors.base import ReferenceDetector
from intonaco.monitoring.detectors.mean import MeanDetector
from intonaco.monitoring.detectors.quantile import QuantileDetector
from intonaco.monitoring.detectors.rate import RateDetector
from intonaco.monitoring.detectors.scalar import ScalarDetector
from intonaco.monitoring.detectors.settings import DetectorSettings, Direction
from intonaco.monitoring.detectors.shiryaev import ShiryaevRoberts, log_of
from intonaco.types import Json

KINDS: Mapping[str, type[ScalarDetector]] = {
    detector.name: detector for detector in (MeanDetector, RateDetector, QuantileDetector)
}
ALL = "all topics"
REST = "the rest"
COMMON = 0.5  # share of the evidence staked on a change in all topics at once


class StratifiedDetector(ReferenceDetector):
    """Each value is bet on against those of its own topic (``topic=``); the evidence is half that
    of a change in all topics together, half the *sum* over topics of a change in one.

    Why the sum needs no correction for the number of topics. Let M_k be topic k's Shiryaev-Roberts
    statistic, which moves only at the n_k values of its topic, and F_t all that was seen until t,
    other topics included. If each e-value has mean at most 1 given F_(t-1) and the topic of the
    t-th value, then at a value of topic k::

        E[M_k(t) | F_(t-1), topic] <= M_k(t-1) + 1,   all other M_j stay as they are,

    so sum_k M_k(t) - t is a supermartingale whatever decides which topic comes next, traffic that
    moves included, since sum_k n_k = t. By optional stopping the mean time until the sum reaches A
    is at least A: the same A as of a single detector, for any number of topics. (One unit is staked
    at each value, on the topic that it is of; union bounds waste stakes on topics that were not
    asked for.) The statistic M of all values, each with the e-value that its topic gave it, is at
    most t in the mean by the same argument, and so is ``(M + sum_k M_k) / 2``.

    Conditions: given the past, values are exchangeable *within* each topic; which topic comes next
    may depend on anything but the value itself. The alarm's time is as exact as ``ratios`` says.

    The first ``reference`` values say what is normal, then all topics that were seen at least
    ``fewest`` times are armed, each with what it has. A topic that is met later collects
    ``fewest`` values first and is judged by those: that its quality is low from the start is a
    matter of where the traffic moved, not of a fall. ``topics`` topics, in the order in which they
    came, have a stratum each, the others (and values without a topic) share one, within which a
    move of traffic does count.

    ``make``: a new detector of one topic. ``since`` and ``updates`` count values of all topics.

    >>> import math, random
    >>> rng = random.Random(2)
    >>> rates = {"cats": 0.9, "dogs": 0.6, "birds": 0.8, "cars": 0.7}
    >>> def thumb(topic, fallen=""):
    ...     return float(rng.random() < rates[topic] - 0.4 * (topic == fallen))
    >>> detector = StratifiedDetector(
    ...     make=lambda: RateDetector(threshold=math.inf),
    ...     threshold=math.log(10_000),
    ...     reference=1000,
    ... )
    >>> any(detector.update(thumb(t), topic=t) for t in rng.choices(list(rates), k=2000))
    False
    >>> any(detector.update(thumb("dogs"), topic="dogs") for _ in range(500))
    False
    >>> topics = rng.choices(list(rates), k=250)
    >>> any(detector.update(thumb(t, fallen="cats"), topic=t) for t in topics)
    True
    >>> next(iter(detector.shares()))
    'cats'
    """

    name = "stratified"
    options = ("of", "topics", "fewest", "seasons")

    _strata: dict[str, ScalarDetector]
    _seen: dict[str, int]
    _common: ShiryaevRoberts | None
    _reference_mean: float | None

    def __init__(
        self,
        *,
        threshold: float,
        make: Callable[[], ScalarDetector],
        reference: int = 2000,
        topics: int = 32,
        fewest: int = 50,
    ) -> None:
        super().__init__(threshold=threshold, reference=reference)
        for name, given in (("topics", topics), ("fewest", fewest)):
            if not isinstance(given, int) or given < 1:
                raise ConfigError(f"{name}: a whole number, 1 or more (given: {given!r})")
        self.topics = topics
        self._make = make
        self.fewest = max(fewest, make().least)
        self._forget()

    @classmethod
    def of(cls, settings: DetectorSettings) -> StratifiedDetector:
        """Options: ``of`` (e-mean, e-rate or e-quantile; e-mean unless given), ``topics``,
        ``fewest``, ``seasons``."""
        options = settings.chosen(cls.name, *cls.options)
        kind = KINDS.get(options.pop("of", MeanDetector.name))
        if kind is None:
            raise ConfigError(f"options.of: one of {', '.join(KINDS)}")
        inner: dict[str, Any] = {"seasons": options.pop("seasons")} if "seasons" in options else {}
        direction: Direction = settings.direction

        def make() -> ScalarDetector:
            return kind(
                threshold=float("inf"),
                reference=settings.reference,
                tolerance=settings.tolerance,
                direction=direction,
                **inner,
            )

        return cls(threshold=settings.threshold, reference=settings.reference, make=make, **options)

    # ------------------------------------------------------------------------------- what it says

    @property
    def armed(self) -> bool:
        return self._n >= self.reference

    @property
    def evidence(self) -> float:
        return log_of(self.statistic)

    @property
    def statistic(self) -> float:
        topics = sum(stratum.statistic for stratum in self._strata.values())
        return COMMON * self._common_sum + (1.0 - COMMON) * topics

    @property
    def since(self) -> int:
        """Estimate of the update at which the change began, by what holds most of the evidence."""
        held = self.shares()
        name = max(held, key=lambda topic: held[topic], default=None)
        if name is None:
            return self._n
        if name == ALL and self._common is not None:
            return self._common.since
        return self._strata[name].since

    @property
    def value(self) -> float | None:
        """The middle of the last hundred values of the topic that holds most of the evidence."""
        leading = self._leading()
        return leading.value if leading else None

    @property
    def reference_value(self) -> float | None:
        """The middle of the reference of the same topic."""
        leading = self._leading()
        return leading.reference_value if leading else None

    @property
    def reference_mean(self) -> float | None:
        """The mean over all topics of the reference, None while it is collected."""
        return self._reference_mean

    def reference_of(self, topic: str | None) -> float | None:
        """What is usual in a topic, None where that is not known yet."""
        name = REST if topic is None or topic not in self._strata else topic
        stratum = self._strata.get(name)
        return stratum.reference_value if stratum is not None and stratum.armed else None

    def shares(self) -> dict[str, float]:
        """How the evidence is shared between a change in "all topics" and one in each topic; most
        first. Empty while there is none.

        A topic's statistic counts times all values over those of the topic: an instant at which its
        change may have begun comes only with a value of its own, and stands for all others since
        the last (a uniform prior over the time of the change)."""
        held = {ALL: COMMON * self._common_sum}
        for topic, stratum in self._strata.items():
            held[topic] = (1.0 - COMMON) * stratum.statistic * self._n / self._seen[topic]
        total = sum(held.values())
        shares = sorted(held.items(), key=lambda item: -item[1])
        return {topic: value / total for topic, value in shares if value > 0.0}

    def _leading(self) -> ScalarDetector | None:
        armed = [stratum for stratum in self._strata.values() if stratum.armed]
        return max(armed, key=lambda stratum: stratum.statistic, default=None)

    # -------------------------------------------------------------------------------- what it does

    def _take(self, x: Any, *, session: str | None, topic: str | None, at: float | None) -> None:
        if self._fired:
            return  # evidence and date stay those of the alarm
        name = self._name(topic)
        stratum = self._strata[name]
        self._seen[name] += 1
        e = stratum.feed(x, stamp=self._n - 1, at=at)
        if e is not None:
            if self._common is None:
                self._common = ShiryaevRoberts(stratum.weight)
            self._common_sum = self._common.update(e, self._n - 1)
            self._fired = self.evidence >= self.threshold
        if self._n == self.reference:
            learnt = {each: self._strata[each].learning for each in self._strata}
            for each in self._strata.values():
                self._arm(each)
            known = [(n, self.reference_of(each)) for each, n in learnt.items()]
            total = sum(n for n, usual in known if usual is not None)
            if total:
                told = math.fsum(n * usual for n, usual in known if usual is not None)
                self._reference_mean = told / total
        elif self._n > self.reference:
            self._arm(stratum)

    def _name(self, topic: str | None) -> str:
        """The stratum of a topic, made if there is room."""
        name = REST if topic is None else topic
        if name not in self._strata and len(self._strata) - (REST in self._strata) >= self.topics:
            name = REST
        if name not in self._strata:
            self._strata[name] = self._make()
            self._seen[name] = 0
        return name

    def _arm(self, stratum: ScalarDetector) -> None:
        if not stratum.armed and stratum.learning >= self.fewest:
            stratum.arm()

    # ----------------------------------------------------------------------------------- its state

    def _forget(self) -> None:
        self._strata = {}
        self._seen = {}
        self._common = None
        self._common_sum = 0.0
        self._reference_mean = None

    def _live(self) -> Mapping[str, Json]:
        return {
            "strata": {name: stratum.state() for name, stratum in self._strata.items()},
            "seen": dict(self._seen),
            "reference_mean": self._reference_mean,
            "common": self._common.state() if self._common else None,
        }

    def _revive(self, state: Mapping[str, Json]) -> None:
        for name, kept in state["strata"].items():
            self._strata[name] = self._make()
            self._strata[name].restore(kept)
            self._seen[name] = int(state["seen"][name])
        self._reference_mean = state.get("reference_mean")
        if state["common"] is not None:
            self._common = ShiryaevRoberts.of_state(state["common"])
            self._common_sum = self._common.sum
