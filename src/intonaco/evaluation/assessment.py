"""What an interval says against a margin. Pure."""

from __future__ import annotations

import math
from dataclasses import replace

from intonaco.config import Margins
from intonaco.evaluation.intervals import Interval
from intonaco.types import Assessment, MetricResult

LOWER_IS_BETTER = frozenset({"distance", "latency", "latency_p95", "copies", "unsafe", "cost"})
LIMITS = frozenset({"memory", "peak_memory", "cost"})  # a ratio of two exact numbers
CEILINGS = frozenset({"unsafe"})  # of the candidate itself, whatever the champion's
FRECHET = "fd@"  # and the extractor's name
SCORE = "score:"  # and the head's name
SUCCESS = "_improve"  # after a metric: what an update was made for


def judge(result: MetricResult, margins: Margins) -> MetricResult:
    """The result with the margin that the configuration has for it, if any."""
    margin = margin_of(result.metric, result.slice, margins)
    if result.metric in CEILINGS:
        found = _assess_ceiling(result.interval, margin)
    elif result.metric == "detail":
        found = _assess_either_way(result.difference, result.interval, margin)
    else:
        found = assess(result.metric, result.difference, result.interval, margin)
    return replace(result, margin=margin, assessment=found, guardrail=margin is not None)


def margin_of(metric: str, slice_: str | None, margins: Margins) -> float | None:
    """The margin that the configuration has for a metric; None: it is told only."""
    known = margins
    if metric.endswith(SUCCESS):
        return None
    if metric.startswith(SCORE):
        return known.scores.get(metric.removeprefix(SCORE))
    if metric.startswith(FRECHET):
        return known.fd
    if slice_ is not None:
        by_slice = {"adherence": known.slice_adherence, "recall": known.slice_recall}
        return by_slice.get(metric)
    if metric == "peak_memory":
        return known.memory
    found: float | None = getattr(known, metric, None)
    return found


def assess(
    metric: str,
    difference: float | None,
    interval: Interval | None,
    margin: float | None,
) -> Assessment:
    """What an interval of candidate minus champion says. ``HARMFUL`` only if all of it is beyond
    the margin; ``NO_DATA`` if there is none, or a value in it is not finite. Without a margin it is
    a figure for information: better, worse or undecided."""
    margin = 0.0 if margin is None else margin
    if metric in LIMITS:
        if difference is None or not math.isfinite(difference):
            return Assessment.NO_DATA
        return Assessment.NON_INFERIOR if difference <= margin else Assessment.HARMFUL
    if difference is None or interval is None:
        return Assessment.NO_DATA
    if not all(math.isfinite(v) for v in (difference, *interval)) or interval[0] > interval[1]:
        return Assessment.NO_DATA
    low, high = interval
    name = metric.removesuffix(SUCCESS)
    if name in LOWER_IS_BETTER or name.startswith(FRECHET):
        low, high = -high, -low
    if low > 0:
        return Assessment.SUPERIOR
    if low > -margin:
        return Assessment.NON_INFERIOR
    return Assessment.HARMFUL if high < -margin else Assessment.UNDECIDED


def _assess_either_way(
    difference: float | None, interval: Interval | None, margin: float | None
) -> Assessment:
    """Of what should stay as it is: a change to either side is no gain."""
    if difference is None or interval is None:
        return Assessment.NO_DATA
    if not all(math.isfinite(v) for v in (difference, *interval)) or interval[0] > interval[1]:
        return Assessment.NO_DATA
    if margin is None:
        return Assessment.UNDECIDED
    low, high = interval
    if -margin < low and high < margin:
        return Assessment.NON_INFERIOR
    return Assessment.HARMFUL if high < -margin or low > margin else Assessment.UNDECIDED


def _assess_ceiling(interval: Interval | None, ceiling: float | None) -> Assessment:
    """What an interval of an absolute share says against the most that is allowed."""
    if interval is None or not all(math.isfinite(v) for v in interval) or interval[0] > interval[1]:
        return Assessment.NO_DATA
    if ceiling is None:
        return Assessment.UNDECIDED
    if interval[1] <= ceiling:
        return Assessment.NON_INFERIOR
    return Assessment.HARMFUL if interval[0] > ceiling else Assessment.UNDECIDED


def assess_floor(interval: Interval | None, floor: float | None) -> Assessment:
    """What an interval of an absolute value says against a floor."""
    if interval is None or floor is None or not all(math.isfinite(v) for v in interval):
        return Assessment.NO_DATA
    if interval[0] >= floor:
        return Assessment.NON_INFERIOR
    return Assessment.HARMFUL if interval[1] < floor else Assessment.UNDECIDED
