"""How long a rollout will take, told before it begins: units that each bound needs at each share of
users, and the way through the steps. Pure; the arithmetic is that of ``stats.planning``.

It is an expectation under assumptions that are told with it, and it enters no decision.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from intonaco.config import RolloutConfig
from intonaco.monitoring.cohorts import GRACE_SECONDS
from intonaco.rollout.evidence import amount_step, latest
from intonaco.rollout.facts import EQUAL
from intonaco.rollout.outcomes import (
    CLIP_SCORE,
    COST,
    END_TO_END,
    ERRORS,
    FEEDBACK,
    LATENCY,
    SLOW,
    device_seconds,
    error,
    latency,
    waited,
)
from intonaco.rollout.strategies import steps_for
from intonaco.stats import planning
from intonaco.stats.latency import LEVELS, POWERS
from intonaco.types import RolloutStep, ScoredRecord, StepKind

ENOUGH = 50  # values of the champion's, to go by what was measured
BLOCK = 2.0  # users of the two equal slices for each whose wait is judged: a guess
TWICE = 2.0  # margins: how bad a challenger is foretold to be caught, unless told


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumed:
    """What is assumed of the champion. ``measured``: names of what was; the rest is a guess.
    Spreads of times and costs are standard deviations of the logarithm within a request class,
    ``score`` and ``score_spread`` cosines. ``ill``: share of images that are spoken ill of."""

    errors: float = 0.01
    latency_spread: float = 0.2
    score: float = 0.3
    score_spread: float = 0.05
    slow: float = 0.01
    cost_spread: float = 0.2
    ill: float = 0.05
    wait_spread: float = 0.4
    requests_per_user: float = 1.0
    requests: int = 0
    measured: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Units of both arms until a question is answered at this share of users; None: never.
    ``question``: "proven" (no worse than the margin) or "caught" (as harmful). ``difference``: how
    much worse the challenger truly is, in the unit of the margin."""

    metric: str
    question: str
    difference: float
    weight: float
    units: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutPlan:
    """``units``: randomised ones until all is proven on the way through the steps, evidence carried
    along, ``last`` the metric that takes longest; None: never. ``seconds``: from the beginning to
    the promotion; None without traffic or proof. ``delays``: seconds after its request at which a
    unit counts, of metrics where it does not at once."""

    needs: tuple[Need, ...]
    units: float | None
    last: str | None
    seconds: float | None
    users_per_second: float | None
    delays: Mapping[str, float] = field(default_factory=dict)


def measured(
    items: Iterable[ScoredRecord],
    config: RolloutConfig,
    *,
    ill: Container[str] | None = None,
    mature_at: float = math.inf,
) -> Assumed:
    """What the champion's last requests tell. ``ill``: ids of requests whose image was spoken ill
    of, None where nobody votes; of those made until ``mature_at`` nothing more can be said."""
    failed: list[float] = []
    scores: list[float] = []
    units: set[str] = set()
    times: dict[str, list[float]] = defaultdict(list)
    costs: dict[str, list[float]] = defaultdict(list)
    disliked: list[bool] = []
    waits: dict[str, list[float]] = defaultdict(list)
    for item in items:
        record = item.record
        if record.probe or record.shadow_of is not None or record.assigned_arm != "champion":
            continue
        outcome = error(record)
        if outcome is None:
            continue
        failed.append(outcome)
        if ill is not None and record.at <= mature_at:
            disliked.append(record.request_id in ill)
        units.add(record.unit)
        seconds, device = latency(record), device_seconds(record)
        if seconds:
            times[record.request_class].append(seconds)
        if whole := waited(record):
            waits[record.request_class].append(whole)
        if device is not None and device[1] > 0:
            costs[device[0]].append(device[1])
        if "clip" in item.scores:
            scores.append(item.scores["clip"])
    found: dict[str, float] = {}
    if len(failed) >= ENOUGH:
        found["errors"] = (sum(failed) + 0.02) / (len(failed) + 2)
        found["requests_per_user"] = len(failed) / len(units)
    if len(scores) >= ENOUGH:
        found |= {"score": statistics.fmean(scores), "score_spread": statistics.stdev(scores)}
    ratios = _of_usual(times)
    if len(ratios) >= ENOUGH:
        slow = sum(r > config.slower_than for r in ratios)
        found |= {"latency_spread": _spread(ratios), "slow": (slow + 0.02) / (len(ratios) + 2)}
    dear = _of_usual(costs)
    if len(dear) >= ENOUGH:
        found["cost_spread"] = _spread(dear)
    if len(disliked) >= ENOUGH:
        found["ill"] = (sum(disliked) + 0.1) / (len(disliked) + 2)
    long = _of_usual(waits)
    if len(long) >= ENOUGH:
        found["wait_spread"] = _spread(long)
    return Assumed(**found, requests=len(failed), measured=tuple(found))


def _of_usual(values: Mapping[str, Sequence[float]]) -> list[float]:
    """Times the median of their kind."""
    return [v / statistics.median(kind) for kind in values.values() for v in kind if len(kind) > 9]


def _spread(ratios: Sequence[float]) -> float:
    return max(statistics.pstdev([math.log(r) for r in ratios]), 0.01)


# -------------------------------------------------------------------------------- what it takes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tests:
    """What a request brings to the tests, as ``evidence`` has them."""

    config: RolloutConfig
    assumed: Assumed

    def proof(self, metric: str, difference: float, weight: float) -> list[planning.Step]:
        """To each test that has to show "no worse than the margin"."""
        margin = getattr(self.config.margins, metric)
        if metric == LATENCY:
            return self._times(self.assumed.latency_spread, difference, margin, weight)
        if metric == END_TO_END:
            steps = self._times(self.assumed.wait_spread, difference, margin, EQUAL)
            return [_thinned(step, _judged(weight)) for step in steps]
        if metric == COST:
            return [
                amount_step(
                    self.assumed.cost_spread,
                    weight=weight,
                    slack=margin,
                    above=False,
                    more=1 + difference,
                )
            ]
        return [self._difference(metric, difference, weight, margin, above=False)]

    def _times(
        self, log_sd: float, difference: float, margin: float, weight: float
    ) -> list[planning.Step]:
        return [
            planning.difference_step(
                *(
                    planning.exceedances(slower=slower, log_sd=log_sd, level=level)
                    for slower in (1.0, (1 + difference) / (1 + margin))
                ),
                weight=weight,
                d=0.0,
                above=False,
            )
            for level in LEVELS
        ]

    def caught(self, metric: str, difference: float, weight: float, alpha: float) -> float | None:
        """Units until harm is found."""
        tolerance = self.config.tolerance(metric)
        if metric == LATENCY:
            return planning.to_catch_latency(
                log_sd=self.assumed.latency_spread,
                slower=1 + difference,
                weight=weight,
                alpha=alpha,
                powers=POWERS,
                tolerance=tolerance,
            )
        if metric == END_TO_END:
            units = planning.to_catch_latency(
                log_sd=self.assumed.wait_spread,
                slower=1 + difference,
                weight=EQUAL,
                alpha=alpha,
                powers=POWERS,
                tolerance=tolerance,
            )
            judged = _judged(weight)
            return units / judged if units is not None and judged else None
        if metric == COST:
            step = amount_step(
                self.assumed.cost_spread,
                weight=weight,
                slack=tolerance,
                above=True,
                more=1 + difference,
            )
            return _alone(step, alpha)
        ratio = metric == ERRORS and tolerance == 0
        step = self._difference(metric, difference, weight, tolerance, above=True)
        found = [_alone(step, alpha / 2 if ratio else alpha)]
        if ratio:
            rate = self.assumed.errors
            found.append(
                planning.to_catch_errors(
                    champion=rate,
                    challenger=min(rate + difference, 1.0),
                    weight=weight,
                    alpha=alpha / 2,
                )
            )
        return min((n for n in found if n is not None), default=None)

    def _difference(
        self, metric: str, difference: float, weight: float, d: float, *, above: bool
    ) -> planning.Step:
        if metric == CLIP_SCORE:
            low, high = self.config.score_range
            width = high - low
            arms = [
                planning.scores(
                    min(max((high - self.assumed.score + worse) / width, 0.0), 1.0),
                    self.assumed.score_spread / width,
                )
                for worse in (0.0, difference)
            ]
            d /= width
        else:
            known = {SLOW: self.assumed.slow, FEEDBACK: self.assumed.ill}
            rate = known.get(metric, self.assumed.errors)
            arms = [planning.failures(min(rate + worse, 1.0)) for worse in (0.0, difference)]
        return planning.difference_step(*arms, weight=weight, d=d, above=above)


def _judged(weight: float) -> float:
    """Share of all users whose wait is judged; above one half there is no equal slice."""
    return 2 * weight / BLOCK if weight <= EQUAL else 0.0


def _thinned(step: planning.Step, share: float) -> planning.Step:
    """If only this share of users brings what the step says, and the others nothing."""
    return planning.Step(
        chances=np.append(share * step.chances, 1 - share),
        gains=np.vstack([step.gains, np.zeros(step.gains.shape[1])]),
    )


def _alone(step: planning.Step, alpha: float) -> float | None:
    start = planning.shares(step.gains.shape[1])
    return planning.remaining(start, step, math.log(1 / alpha))


def plan(
    config: RolloutConfig,
    assumed: Assumed,
    *,
    requests_per_second: float | None = None,
    differences: Mapping[str, Sequence[float]] | None = None,
    steps: Sequence[RolloutStep] | None = None,
    mature_after_s: float = 86_400.0,
) -> RolloutPlan:
    """What each guardrail needs at each share of users below all, for no difference and for the
    given ones (else for one of twice the margin). ``steps``: else those of a canary.
    ``mature_after_s``: age at which an image counts for feedback.

    ``differences``: by metric, how much worse, in the unit of its margin; below 0 is better.
    """
    tests = _Tests(config=config, assumed=assumed)
    steps = steps_for(config) if steps is None else steps
    weights = _weights(steps)
    harm = config.alpha / (len(config.guardrails) + 1)
    needs: list[Need] = []
    for metric in config.guardrails:
        margin = getattr(config.margins, metric)
        given = (differences or {}).get(metric, (TWICE * margin,))
        for difference in (0.0, *given):
            proven = difference < margin
            for weight in weights:
                if proven:
                    found = [
                        _alone(s, config.alpha) for s in tests.proof(metric, difference, weight)
                    ]
                    units = latest(found)
                else:
                    units = tests.caught(metric, difference, weight, harm)
                needs.append(
                    Need(
                        metric=metric,
                        question="proven" if proven else "caught",
                        difference=difference,
                        weight=weight,
                        units=units,
                    )
                )
    users = None if not requests_per_second else requests_per_second / assumed.requests_per_user
    delays = {FEEDBACK: mature_after_s + GRACE_SECONDS} if FEEDBACK in config.guardrails else {}
    return _through(steps, tests, tuple(needs), users, delays)


def _weights(steps: Sequence[RolloutStep]) -> list[float]:
    given = (s.weight for s in steps if s.kind is StepKind.CANARY)
    return list(dict.fromkeys(w for w in given if w < 1))


def _through(
    steps: Sequence[RolloutStep],
    tests: _Tests,
    needs: tuple[Need, ...],
    users: float | None,
    delays: Mapping[str, float],
) -> RolloutPlan:
    """The way through the steps, if the challenger is no different."""
    config, units, last = tests.config, None, None
    reached: dict[str, float] = {}
    shares = [s for s in steps if s.kind is StepKind.CANARY and s.weight < 1]
    if shares:
        needed: dict[str, float | None] = {}
        for metric in config.guardrails:
            ways = [tests.proof(metric, 0.0, s.weight) for s in shares]
            lengths = [*(_length(s, users) for s in shares[:-1]), math.inf]
            needed[metric] = latest(
                [
                    planning.remaining_over(
                        planning.shares(way[0].gains.shape[1]),
                        list(zip(way, lengths, strict=True)),
                        math.log(1 / config.alpha),
                    )
                    for way in zip(*ways, strict=True)
                ]
            )
        # In units: those that come by while others mature count as if they were needed.
        reached = {
            m: math.inf if n is None else n + delays.get(m, 0.0) * (users or 0.0)
            for m, n in needed.items()
        }
        last = max(reached, key=lambda m: reached[m])
        units = latest(list(needed.values()))
    seconds = None
    if users and units is not None:
        alone = sum(_seconds(s, users) for s in steps if s not in shares)
        longest = max((n for n in reached.values()), default=0.0) / users
        seconds = alone + max(sum(_seconds(s, users) for s in shares), longest)
    return RolloutPlan(
        needs=needs,
        units=units,
        last=last,
        seconds=seconds,
        users_per_second=users,
        delays=delays,
    )


def _length(step: RolloutStep, users: float | None) -> float:
    """Units of both arms that a share of users lasts."""
    return max(step.min_units / step.weight, (step.min_seconds or 0.0) * (users or 0.0), 1.0)


def _seconds(step: RolloutStep, users: float) -> float:
    """A step's own time; a person's is not known."""
    if step.kind in (StepKind.PROMOTE, StepKind.BAKE):
        return 0.0  # proven by then
    units = step.min_units / step.weight / users if step.weight else 0.0
    return max(step.min_seconds or 0.0, units)
