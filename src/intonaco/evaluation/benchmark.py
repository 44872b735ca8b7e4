"""What drawing an image costs: time, throughput, memory, money. Pure, NumPy only.

Arms are timed in turns of A B B A and B A A B, so that a drift of the machine's speed falls on both
alike; a round's log ratio compares them on one prompt and seed. Warm-up is not among the figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from intonaco.evaluation.arms import Costs
from intonaco.evaluation.intervals import Interval, hodges_lehmann
from intonaco.types import Json

Value = TypeVar("Value")
CHAMPION_SLOTS = (0, 3)  # of A B B A
CANDIDATE_SLOTS = (1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """One image of a worker. Seconds: ``answer`` as the caller saw it, ``service`` of the batch,
    ``cpu`` of the worker's process (0 where it does not say)."""

    answer: float
    service: float
    cpu: float = 0.0


@dataclass(slots=True, kw_only=True)
class Timed:
    """What was measured of a pair. ``rounds``: images one at a time, in turns. ``waves``: wall
    seconds of ``concurrency`` requests at once, in turns."""

    rounds: list[tuple[Drawn, Drawn, Drawn, Drawn]] = field(default_factory=list)
    waves: list[tuple[float, float, float, float]] = field(default_factory=list)
    concurrency: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes. ``peak``: of the GPU's allocations, or of the process on a CPU; ``idle``: of the
    process before the release was loaded; ``weights``: parameters and buffers."""

    weights: int
    peak: int
    idle: int = 0

    @property
    def own(self) -> int:
        """What the release needs beyond what any worker holds; never less than its weights."""
        return max(self.weights, self.peak - self.idle)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantile:
    """A quantile with the order statistics that bound it, None where n is too small for one."""

    value: float
    low: float | None
    high: float | None


def least_for(q: float, alpha: float) -> int:
    """Fewest observations with which a quantile has an upper bound at level 1 - alpha: 59 for the
    95th percentile at 0.05."""
    return math.ceil(math.log(alpha) / math.log(q))


def quantile(values: Sequence[float], q: float, alpha: float) -> Quantile:
    """The q-quantile of independent values, bounded by order statistics whatever their law (David
    & Nagaraja, Order Statistics, 7.1): each end holds at level 1 - alpha. Raises ValueError for no
    values."""
    if not values:
        raise ValueError("no quantile of nothing")
    x = np.sort(np.asarray(values, dtype=np.float64))
    n = len(x)
    below = np.cumsum([_binomial(k, n, q) for k in range(n + 1)])
    # The k-th smallest lies above the quantile if at most k - 1 values are below it.
    upper = next((k for k in range(1, n + 1) if below[k - 1] >= 1 - alpha), None)
    lower = next((k for k in range(n, 0, -1) if 1 - below[k - 1] >= 1 - alpha), None)
    return Quantile(
        value=float(np.quantile(x, q)),
        low=None if lower is None else float(x[lower - 1]),
        high=None if upper is None else float(x[upper - 1]),
    )


def _binomial(k: int, n: int, p: float) -> float:
    ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(ways + k * math.log(p) + (n - k) * math.log1p(-p))


def in_turns(
    number: int, champion: Callable[[], Value], candidate: Callable[[], Value]
) -> tuple[Value, Value, Value, Value]:
    """What came of champion, candidate, candidate, champion in round ``number``, each arm's in
    their order. Every second round is B A A B: the first of a round follows a pause and costs
    more, which would always fall on the same arm."""
    if number % 2 == 0:
        return champion(), candidate(), candidate(), champion()
    b, a, later_a, later_b = candidate(), champion(), champion(), candidate()
    return a, b, later_b, later_a


def log_ratios(rounds: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Candidate over champion, one a round of A B B A."""
    return tuple(
        math.log(sum(r[i] for i in CANDIDATE_SLOTS) / sum(r[i] for i in CHAMPION_SLOTS))
        for r in rounds
    )


def of_arm(rounds: Sequence[Sequence[float]], arm: str) -> tuple[float, ...]:
    """An arm's values of all rounds, in order."""
    slots = CHAMPION_SLOTS if arm == "champion" else CANDIDATE_SLOTS
    return tuple(float(r[i]) for r in rounds for i in slots)


def compared(timed: Timed, *, cpu: bool) -> list[tuple[float, ...]]:
    """What arms are compared by, per round: CPU seconds of the worker's process, since other
    processes' load would be noise, or the wall seconds of its batch on a GPU."""
    return [tuple(max(d.cpu if cpu else d.service, 1e-9) for d in r) for r in timed.rounds]


def summary(
    timed: Timed,
    memory: tuple[Memory, Memory],
    *,
    cpu: bool,
    alpha: float,
    hourly_price: float | None,
    currency: str,
) -> dict[str, Json]:
    """The figures of a pair as JSON; ``memory``: of (champion, candidate)."""
    seconds = compared(timed, cpu=cpu)
    centre, interval = hodges_lehmann(log_ratios(seconds), alpha)
    answers = [tuple(d.answer for d in r) for r in timed.rounds]
    images = 2 * len(timed.rounds)
    least = least_for(0.95, alpha)
    out: dict[str, Json] = {
        "rounds": len(timed.rounds),
        "images_per_arm": images,
        "compared_by": "CPU seconds of the worker" if cpu else "wall seconds in the worker",
        "log_ratio": {"value": _number(centre), "interval": _pair(interval)},
        "p95_text": ""
        if images >= least
        else f"not bounded: {images} images an arm, {least} are needed "
        f"(evaluation.latency_rounds: {math.ceil(least / 2)})",
        "arms": {},
        "throughput": None,
    }
    rates: dict[str, float] = {}
    if timed.waves:
        centre, interval = hodges_lehmann([-v for v in log_ratios(timed.waves)], alpha)
        waves = {a: of_arm(timed.waves, a) for a in ("champion", "candidate")}
        rates = {a: timed.concurrency * len(w) / sum(w) for a, w in waves.items()}
        out["throughput"] = {
            "concurrency": timed.concurrency,
            "images_per_arm": timed.concurrency * 2 * len(timed.waves),
            "log_ratio": {"value": _number(centre), "interval": _pair(interval)},
        }
    for arm, held in zip(("champion", "candidate"), memory, strict=True):
        spent = of_arm(answers, arm)
        each = 1 / rates[arm] if arm in rates else float(np.mean(spent))
        out["arms"][arm] = {
            "p50": _quantile(quantile(spent, 0.5, alpha)),
            "p95": _quantile(quantile(spent, 0.95, alpha)),
            "compared_seconds": float(np.median(of_arm(seconds, arm))),
            "images_per_second": rates.get(arm),
            "memory": {
                "weights": held.weights,
                "peak": held.peak,
                "idle": held.idle,
                "own": held.own,
            },
            "cost_per_image": None if hourly_price is None else each * hourly_price / 3600,
        }
    out["currency"] = currency
    out["hourly_price"] = hourly_price
    return out


def _quantile(found: Quantile) -> dict[str, Json]:
    return {"value": found.value, "low": found.low, "high": found.high}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _pair(interval: Interval | None) -> list[float] | None:
    return None if interval is None else list(interval)


def costs(
    timed: Timed,
    memory: tuple[Memory, Memory],
    figures: Mapping[str, Json],
    *,
    cpu: bool,
) -> Costs:
    """What a comparison takes of it; ``figures``: ``summary`` of the same."""
    seconds = compared(timed, cpu=cpu)
    arms = figures["arms"]
    prices = tuple(arms[name]["cost_per_image"] for name in ("champion", "candidate"))
    return Costs(
        log_ratios=log_ratios(seconds),
        champion_seconds=float(np.median(of_arm(seconds, "champion"))),
        candidate_seconds=float(np.median(of_arm(seconds, "candidate"))),
        memory=(memory[0].weights, memory[1].weights),
        champion_times=of_arm(seconds, "champion"),
        candidate_times=of_arm(seconds, "candidate"),
        rounds=tuple(number for number in range(len(seconds)) for _ in (0, 1)),
        throughput_log_ratios=tuple(-v for v in log_ratios(timed.waves)),
        peak_memory=(memory[0].own, memory[1].own),
        cost_per_image=None if None in prices else (prices[0], prices[1]),
    )
