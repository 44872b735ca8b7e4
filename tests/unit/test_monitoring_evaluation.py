"""Scoring a detector: the bookkeeping, with a detector whose alarms are known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from intonaco.errors import ConfigError
from intonaco.monitoring.detectors import EmbeddingDetector, PeriodicDetector
from intonaco.monitoring.evaluation import Evaluation, Recorded, Score, poisson_bounds, total


def ticking(step: float) -> Callable[[], float]:
    time = [0.0]

    def clock() -> float:
        time[0] += step
        return time[0]

    return clock


def evaluation(every: int) -> Evaluation:
    return Evaluation(PeriodicDetector(every=every), Recorded(x=np.zeros(3)), ticking(1e-3))


def test_counts_false_alarms_and_goes_on_from_the_armed_state() -> None:
    # the reference of 3 is kept: alarms come 7, 7, 7 requests apart
    score = evaluation(10).score(Recorded(x=np.zeros(25)))
    assert (score.null_events, score.false_alarms) == (25, 3)
    assert score.timed_events == 25
    assert score.alarms_per_10k == pytest.approx(1200)
    assert math.isnan(score.median_delay)


def test_delay_counts_the_first_request_after_the_change_and_the_one_that_fires() -> None:
    score = evaluation(10).score(Recorded(x=np.zeros(25), change_at=6))
    assert (score.null_events, score.false_alarms, score.delays) == (6, 0, (1,))
    score = evaluation(10).score(Recorded(x=np.zeros(25), change_at=8))
    assert (score.false_alarms, score.delays) == (1, (6,))  # again from the alarm at the 7th


def test_a_miss_is_an_infinite_delay() -> None:
    missed = evaluation(100).score(Recorded(x=np.zeros(25), change_at=6))
    assert (missed.misses, missed.delays, missed.median_delay) == (1, (), math.inf)
    both = total([missed, Score(delays=(4, 6))])
    assert both.median_delay == 6
    assert both.p90_delay == math.inf


def test_no_data_keeps_no_budget() -> None:
    assert not Score().keeps(10_000)
    assert Score(null_events=20_000, false_alarms=3).keeps(10_000)  # may be chance
    assert not Score(null_events=20_000, false_alarms=9).keeps(10_000)
    assert math.isnan(Score().us_per_event)


def test_a_reference_that_arms_nothing_is_an_error() -> None:
    detector = EmbeddingDetector(threshold=1.0, reference=100)
    with pytest.raises(ConfigError, match="did not arm"):
        Evaluation(detector, Recorded(x=np.eye(20)), ticking(0.0))


def test_state_and_time_are_measured() -> None:
    score = evaluation(100).score(Recorded(x=np.zeros(25)))
    assert score.us_per_event == pytest.approx(1e3 / 25)
    assert score.state_bytes == len('{"n": 28}')


def test_poisson_bounds_are_the_tabulated_ones() -> None:
    """Garwood's table: 90 % two-sided limits."""
    for count, low, high in ((0, 0.0, 2.996), (1, 0.051, 4.744), (5, 1.970, 10.513)):
        assert poisson_bounds(count) == pytest.approx((low, high), abs=1e-3)
