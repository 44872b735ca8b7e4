"""Quantiles of two arms: ranks, edges of buckets, and the reference values of confseq."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from intonaco.stats import quantiles
from intonaco.stats.sketch import QuantileSketch


def _sketch(values: NDArray[np.float64], buckets: int = 1024) -> QuantileSketch:
    sketch = QuantileSketch(buckets=buckets)
    for value in values:
        sketch.add(float(value))
    return sketch


@pytest.mark.parametrize(
    ("q", "offset", "p"),
    [(0.5, 70, 0.814704), (0.5, 85, 0.0838055), (0.5, 100, 0.0054947), (0.9, 55, 0.0340463)],
)
def test_reference_values_of_confseq(q: float, offset: int, p: float) -> None:
    one, other = range(1, 1001), range(offset + 1, offset + 1001)
    evidence = quantiles.equality_log_evidence(one, other, q)
    assert math.exp(-evidence) == pytest.approx(p, abs=1e-6)


def test_order_statistics_lie_between_their_edges() -> None:
    rng = np.random.default_rng(0)
    for values, buckets in (
        (rng.gamma(3, size=200), 1024),
        (np.repeat([0.0, 0.0, 0.5, 2.0], 10), 1024),
        (np.exp(3 * rng.normal(size=200)), 40),  # the lowest collapse into one
    ):
        sketch = _sketch(values, buckets=buckets)
        for rank, value in enumerate(np.sort(values), start=1):
            low, high = quantiles.edges(sketch, rank)
            assert low <= value <= high
            if value > values.max() / 2:
                assert high / max(low, 1e-9) <= 1.021


def test_bounds_are_infinite_where_nothing_can_be_said() -> None:
    empty = quantiles.quantile_bounds(QuantileSketch(), 0.9, 0.01)
    assert empty.json() == [None, None]
    few = _sketch(np.ones(60))
    assert quantiles.quantile_bounds(few, 0.9, 0.005).high == math.inf
    assert quantiles.quantile_bounds(few, 0.9, 0.005).json()[1] is None
    many = _sketch(np.ones(300))
    found = quantiles.quantile_bounds(many, 0.9, 0.005)
    assert found.low <= 1 <= found.high <= 1.03
    with pytest.raises(ValueError, match="strictly"):
        quantiles.quantile_bounds(many, 1.0, 0.01)


def test_differences_and_ratios_hold_the_truth() -> None:
    rng = np.random.default_rng(1)
    champion = _sketch(np.exp(0.2 * rng.normal(size=2000)))
    challenger = _sketch(1.3 * np.exp(0.2 * rng.normal(size=2000)))
    true = math.exp(0.2 * 1.2816)
    difference, ratio = quantiles.compare(champion, challenger, 0.9, 0.01)
    assert 0 < difference.low < 0.3 * true < difference.high
    assert 1 < ratio.low < 1.3 < ratio.high < 1.6
    same, one = quantiles.compare(champion, champion, 0.9, 0.01)
    assert same.low < 0 < same.high
    assert one.low < 1 < one.high
    few = _sketch(np.ones(5))
    difference, ratio = quantiles.compare(champion, few, 0.9, 0.01)
    assert difference.json() == [None, None] or difference.high == math.inf
    assert ratio.high == math.inf


def test_bands_apart_mean_slower_somewhere() -> None:
    rng = np.random.default_rng(2)
    champion = _sketch(np.exp(0.2 * rng.normal(size=1500)))
    slow = _sketch(1.3 * np.exp(0.2 * rng.normal(size=1500)))
    assert quantiles.slower_somewhere(champion, slow, 0.01)
    assert not quantiles.slower_somewhere(champion, slow, 0.01, tolerance=0.35)
    assert not quantiles.slower_somewhere(slow, champion, 0.01)
    assert not quantiles.slower_somewhere(champion, QuantileSketch(), 0.01)
    assert not quantiles.slower_somewhere(champion, _sketch(np.ones(9)), 0.01)


def test_bands_of_equal_arms_stay_together() -> None:
    """Budget: 40 runs with a look at every 50th pair of values, alpha 0.1; none is expected."""
    alarms = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        champion, challenger = QuantileSketch(), QuantileSketch()
        for _ in range(6):
            for value in rng.gamma(4, size=50):
                champion.add(float(value))
            for value in rng.gamma(4, size=50):
                challenger.add(float(value))
            alarms += quantiles.slower_somewhere(champion, challenger, 0.1)
    assert alarms <= 40 * 0.1
