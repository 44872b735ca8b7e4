"""What a metric of a rollout is held against: which tests decide, what people are shown. Pure.

Every kind takes randomised units and, where that says something, shadow pairs, and answers the same
questions: how strong is the evidence of harm, is it proven to be no worse than the margin, is it
proven to be better. Harm and proof are bets (``intonaco.stats``), valid at every look. Up is worse.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from intonaco.rollout.outcomes import (
    CLIP_SCORE,
    COST,
    END_TO_END,
    ERRORS,
    FEEDBACK,
    LATENCY,
    SLOW,
)
from intonaco.stats import AmountTest, ErrorRatio, LatencyTest, RandomizedDifference, planning
from intonaco.stats.quantiles import compare
from intonaco.stats.sketch import QuantileSketch
from intonaco.types import Json

CAP = 4.0  # times the usual: what costs more counts as this much
SHOWN_LEVEL = 0.9  # quantile of times that people are shown
_CENTRES = {ERRORS: 0.01, SLOW: 0.02, CLIP_SCORE: 0.5, FEEDBACK: 0.05}
_SPREAD = 0.1  # of outcomes, until some were seen: for what is expected, never for what is decided
_SEEN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A randomised unit's outcome, or (``weight`` None) the difference of a shadow pair.
    ``first``: at the unit's first randomised request."""

    key: str
    value: float
    weight: float | None
    challenger: bool = True
    topic: str | None = None
    request_class: str = ""
    first: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """The difference, challenger minus champion, with an interval; None what cannot be told."""

    estimate: float | None
    interval: tuple[float, float] | None


class Moments:
    """Mean and spread of values, for what is expected of the future. State is exact JSON."""

    def __init__(self) -> None:
        self._sums = [0.0, 0.0, 0.0]

    def add(self, value: float) -> None:
        for power in range(3):
            self._sums[power] += value**power

    @property
    def count(self) -> int:
        return int(self._sums[0])

    @property
    def mean(self) -> float:
        return self._sums[1] / self._sums[0] if self._sums[0] else 0.0

    @property
    def sd(self) -> float:
        if self.count < _SEEN:
            return _SPREAD
        return math.sqrt(max(self._sums[2] / self._sums[0] - self.mean**2, 1e-8))

    def state(self) -> Json:
        return list(self._sums)

    def restore(self, state: Sequence[Json]) -> None:
        self._sums = [float(s) for s in state]


class Evidence(ABC):
    """Of one metric, from events in one order."""

    pairs = 0  # shadow pairs taken

    @abstractmethod
    def take(self, unit: Unit) -> bool:
        """False if it says nothing here."""

    def learn(self, seconds: float, request_class: str) -> None:
        """Take a time of the champion's, after its own unit was taken."""
        del seconds, request_class  # most kinds need none

    @property
    @abstractmethod
    def harm(self) -> tuple[float, float]:
        """Log evidence of harm, now and at its highest."""

    @property
    @abstractmethod
    def within(self) -> tuple[float, float]:
        """Log evidence of "no worse than the margin", now and at its highest."""

    @property
    @abstractmethod
    def better(self) -> tuple[float, float]:
        """Log evidence of "better", likewise."""

    @property
    @abstractmethod
    def units(self) -> Sequence[int]:
        """The champion's and the challenger's."""

    @abstractmethod
    def shown(self, alpha: float) -> Shown:
        """In the unit of the margin, at level ``1 - alpha``."""

    @abstractmethod
    def ahead(self, weight: float, threshold: float) -> float | None:
        """Units (of both arms; shadow pairs where ``weight`` is 0) until ``within`` is expected to
        reach ``threshold`` if the challenger is no different. None: not to be told, or never."""

    @abstractmethod
    def state(self) -> Json:
        """JSON from which ``restore`` continues bit for bit."""

    @abstractmethod
    def restore(self, state: Mapping[str, Json]) -> None: ...

    @property
    def has_data(self) -> bool:
        return self.pairs > 0 or min(self.units) > 0

    @property
    def count(self) -> int:
        """Everything taken."""
        return sum(self.units) + self.pairs


class Differences(Evidence):
    """Of a loss in [0, 1]: its mean difference. ``binary``: it is 0 or 1."""

    def __init__(self, *, tolerance: float, margin: float, centre: float, binary: bool) -> None:
        self._test = RandomizedDifference((tolerance, margin), centre=centre)
        self._tolerance, self._margin, self._binary = tolerance, margin, binary
        self._rest, self._pairs = Moments(), Moments()  # about the centre; of pairs

    def take(self, unit: Unit) -> bool:
        if unit.weight is None:
            self._test.pair(unit.value)
            self._pairs.add(unit.value)
            self.pairs += 1
            return True
        if not unit.first:
            return False
        rest = unit.value - self._test.centre(unit.topic)
        taken = self._test.assign(
            unit.value, challenger=unit.challenger, weight=unit.weight, topic=unit.topic
        )
        if taken:
            self._rest.add(rest)
        return taken

    @property
    def harm(self) -> tuple[float, float]:
        test = self._test
        return test.log_evidence_above(self._tolerance), test.peak_above(self._tolerance)

    @property
    def within(self) -> tuple[float, float]:
        test = self._test
        return test.log_evidence_below(self._margin), test.peak_below(self._margin)

    @property
    def better(self) -> tuple[float, float]:
        return self._test.log_evidence_below(0.0), self._test.peak_below(0.0)

    @property
    def units(self) -> Sequence[int]:
        return self._test.units

    def champion_rate(self) -> float:
        """Of the champion's units, a little above what was seen; 0 without any."""
        total, count = self._test.totals[0], self._test.units[0]
        return (total + 1) / (count + 2) if count else 0.0

    def shown(self, alpha: float) -> Shown:
        estimate = self._test.estimate
        interval = None if estimate is None else self._test.interval(alpha)
        return Shown(estimate=estimate, interval=interval)

    def ahead(self, weight: float, threshold: float) -> float | None:
        if 0 < weight < 1:
            step = planning.difference_step(
                self._losses(), self._losses(), weight=weight, d=self._margin, above=False
            )
        elif weight == 0:
            step = planning.paired_step(self._differences(), d=self._margin, above=False)
        else:
            return None
        start = self._test.components(self._margin, above=False)
        return planning.remaining(start, step, threshold)

    def _losses(self) -> planning.Outcomes:
        usual = min(max(self._test.centre(), 1e-4), 1 - 1e-4)
        if self._binary:
            return planning.failures(usual)
        return planning.scores(usual, self._rest.sd)

    def _differences(self) -> planning.Outcomes:
        if not self._binary:
            return planning.scores(0.0, self._pairs.sd, low=-1.0)
        apart = min(self._pairs.mean**2 + self._pairs.sd**2, 1.0) if self._pairs.count else 0.01
        return planning.Outcomes(
            values=np.array([-1.0, 0.0, 1.0]), chances=np.array([apart / 2, 1 - apart, apart / 2])
        )

    def state(self) -> Json:
        return {
            "test": self._test.state(),
            "pairs": self.pairs,
            "moments": [self._rest.state(), self._pairs.state()],
        }

    def restore(self, state: Mapping[str, Json]) -> None:
        self._test.restore(state["test"])
        self.pairs = int(state["pairs"])
        for moments, stored in zip((self._rest, self._pairs), state["moments"], strict=True):
            moments.restore(stored)


class Errors(Differences):
    """Of failures: harm also by the ratio of the error rates, which sees a rare error sooner.

    Each unit's first error counts there, whenever it comes, with the probability of that moment.
    That is a test without knowledge of the arms of those who have not failed; the difference knows
    them. A mixture of e-processes that know different things need not be one, so each has half of
    the error budget (docs/decisions/0024-evidence-of-rollouts.md). A tolerated difference may be
    any ratio: with a tolerance above 0 the difference speaks alone.
    """

    def __init__(self, *, tolerance: float, margin: float, centre: float) -> None:
        super().__init__(tolerance=tolerance, margin=margin, centre=centre, binary=True)
        self._ratio = ErrorRatio() if tolerance == 0 else None
        self._failed: set[str] = set()

    def take(self, unit: Unit) -> bool:
        taken = super().take(unit)
        if self._ratio is None or unit.weight is None or not unit.value:
            return taken
        if unit.key not in self._failed and self._ratio.error(
            challenger=unit.challenger, weight=unit.weight
        ):
            self._failed.add(unit.key)
            taken = True
        return taken

    @property
    def harm(self) -> tuple[float, float]:
        now, highest = super().harm
        if self._ratio is None:
            return now, highest
        half = math.log(2)
        return (
            max(now, self._ratio.log_evidence) - half,
            max(highest, self._ratio.peak) - half,
        )

    def state(self) -> Json:
        ratio = None if self._ratio is None else self._ratio.state()
        return {**super().state(), "ratio": ratio, "failed": "".join(sorted(self._failed))}

    def restore(self, state: Mapping[str, Json]) -> None:
        super().restore(state)
        if self._ratio is not None:
            self._ratio.restore(state["ratio"])
        self._failed = split_keys(state["failed"])


class Times(Evidence):
    """Of times in seconds, each held against the champion's in its request class: service times,
    or waits end to end. Shadow copies wait behind users, so pairs say nothing.

    Shown: the 0.9 quantile, relative, of times in multiples of the class's median (``quantiles``);
    no interval until it has both ends.
    """

    def __init__(self, *, tolerance: float, margin: float) -> None:
        self._test = LatencyTest(tolerance, margin=margin)
        self._sketches = (QuantileSketch(), QuantileSketch())  # champion's and challenger's
        self._logs = Moments()

    def learn(self, seconds: float, request_class: str) -> None:
        self._test.learn(seconds, request_class)

    def learned(self, other: Times) -> None:
        """Begin with what another knows of the champion's times."""
        self._test.times.restore(other._test.times.state())

    def take(self, unit: Unit) -> bool:
        if unit.weight is None or not unit.first:
            return False
        usual = self._test.times.usual(unit.request_class)
        taken = self._test.take(
            unit.value,
            challenger=unit.challenger,
            weight=unit.weight,
            request_class=unit.request_class,
        )
        if taken and usual:
            self._sketches[unit.challenger].add(unit.value / usual)
            self._logs.add(math.log(max(unit.value / usual, 1e-9)))
        return taken

    @property
    def harm(self) -> tuple[float, float]:
        return self._test.log_evidence_slower, self._test.peak_slower

    @property
    def within(self) -> tuple[float, float]:
        """Of the level that is proven least: a margin is kept at each or not at all."""
        test = self._test
        return (
            min(test.log_evidence_within(level) for level in test.levels),
            min(test.peak_within(level) for level in test.levels),
        )

    @property
    def better(self) -> tuple[float, float]:
        test = self._test
        return (
            min(test.log_evidence_faster(level) for level in test.levels),
            min(test.peak_faster(level) for level in test.levels),
        )

    @property
    def units(self) -> Sequence[int]:
        return self._test.units

    def shown(self, alpha: float) -> Shown:
        ours, theirs = (s.quantile(SHOWN_LEVEL) for s in reversed(self._sketches))
        if not ours or not theirs:
            return Shown(estimate=None, interval=None)
        _, ratio = compare(*self._sketches, SHOWN_LEVEL, alpha)
        interval = None if math.isinf(ratio.high) else (ratio.low - 1, ratio.high - 1)
        return Shown(estimate=ours / theirs - 1, interval=interval)

    def ahead(self, weight: float, threshold: float) -> float | None:
        if not 0 < weight < 1:
            return None
        needed = []
        for level in self._test.levels:
            shares = [
                planning.exceedances(slower=slower, log_sd=self._logs.sd, level=level)
                for slower in (1.0, 1.0 / (1 + self._test.margin))
            ]
            step = planning.difference_step(*shares, weight=weight, d=0.0, above=False)
            start = self._test.components_within(level)
            needed.append(planning.remaining(start, step, threshold))
        return latest(needed)

    def state(self) -> Json:
        return {
            "test": self._test.state(),
            "sketches": [s.state() for s in self._sketches],
            "logs": self._logs.state(),
        }

    def restore(self, state: Mapping[str, Json]) -> None:
        self._test.restore(state["test"])
        champion, challenger = (QuantileSketch.of_state(s) for s in state["sketches"])
        self._sketches = (champion, challenger)
        self._logs.restore(state["logs"])


class Amounts(Evidence):
    """Of amounts without an upper limit, as the money for an image in multiples of what the
    champion's usually costs: the ratio of their means, capped."""

    def __init__(self, *, tolerance: float, margin: float, cap: float = CAP) -> None:
        self._test = AmountTest(cap, tolerance=tolerance, margin=margin)
        self._logs = Moments()

    def take(self, unit: Unit) -> bool:
        if unit.weight is None or not unit.first:
            return False
        taken = self._test.take(unit.value, challenger=unit.challenger, weight=unit.weight)
        if taken:
            self._logs.add(math.log(max(unit.value, 1e-9)))
        return taken

    @property
    def harm(self) -> tuple[float, float]:
        return self._test.log_evidence_more, self._test.peak_more

    @property
    def within(self) -> tuple[float, float]:
        return self._test.log_evidence_within, self._test.peak_within

    @property
    def better(self) -> tuple[float, float]:
        return self._test.log_evidence_less, self._test.peak_less

    @property
    def units(self) -> Sequence[int]:
        return self._test.units

    def shown(self, alpha: float) -> Shown:
        del alpha  # no interval: the bets have none for a ratio
        ratio = self._test.estimate
        return Shown(estimate=None if ratio is None else ratio - 1.0, interval=None)

    def ahead(self, weight: float, threshold: float) -> float | None:
        if not 0 < weight < 1:
            return None
        step = amount_step(self._logs.sd, weight=weight, slack=self._test.margin, above=False)
        return planning.remaining(self._test.components(more=False), step, threshold)

    def state(self) -> Json:
        return {"test": self._test.state(), "logs": self._logs.state()}

    def restore(self, state: Mapping[str, Json]) -> None:
        self._test.restore(state["test"])
        self._logs.restore(state["logs"])


def evidence_of(metric: str, *, tolerance: float, margin: float) -> Evidence:
    """What a metric is judged by; ``tolerance`` and ``margin`` of losses in [0, 1], or relative.
    Raises ValueError where they cannot be."""
    if metric in (LATENCY, END_TO_END):
        return Times(tolerance=tolerance, margin=margin)
    if metric == COST:
        return Amounts(tolerance=tolerance, margin=margin)
    if max(margin, tolerance) >= 1:
        raise ValueError(f"{metric}: a margin as wide as the metric's whole range proves nothing")
    centre = _CENTRES[metric]
    if metric == ERRORS:
        return Errors(tolerance=tolerance, margin=margin, centre=centre)
    binary = metric in (SLOW, FEEDBACK)
    return Differences(tolerance=tolerance, margin=margin, centre=centre, binary=binary)


def amount_step(
    log_sd: float, *, weight: float, slack: float, above: bool, more: float = 1.0
) -> planning.Step:
    """What a request brings to ``AmountTest``, of a challenger that costs ``more`` times as much,
    amounts being lognormal about the usual."""
    points = planning.scores(0.0, 1.0, low=-9.0, high=9.0)
    found = [
        planning.Outcomes(
            values=np.minimum(times * np.exp(log_sd * points.values), CAP) / CAP,
            chances=points.chances,
        )
        for times in (1.0, more / (1 + slack))
    ]
    return planning.difference_step(*found, weight=weight, d=0.0, above=above)


def latest(needed: Sequence[float | None]) -> float | None:
    """When all are there; None if one never is."""
    known = [n for n in needed if n is not None]
    return max(known) if known and len(known) == len(needed) else None


def split_keys(text: str) -> set[str]:
    """Keys of ``outcomes.key_of`` that stand one after the other."""
    return {text[i : i + 16] for i in range(0, len(text), 16)}
