"""The quantile sketch keeps its relative error, and merging is exact."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intonaco.stats.sketch import QuantileSketch

VALUES = st.lists(
    st.one_of(st.just(0.0), st.floats(1e-6, 1e6), st.floats(0.01, 10.0)), min_size=1, max_size=200
)


def of(values: list[float], **how: float) -> QuantileSketch:
    sketch = QuantileSketch(**how)  # type: ignore[arg-type]
    for value in values:
        sketch.add(value)
    return sketch


def counted(sketch: QuantileSketch) -> object:
    return sketch.count, sketch._zero, dict(sketch.counts), sketch.smallest, sketch.largest


@settings(max_examples=150, deadline=None)
@given(VALUES, st.sampled_from([0.0, 0.01, 0.5, 0.9, 0.95, 0.99, 1.0]))
def test_every_quantile_keeps_the_relative_error(values: list[float], q: float) -> None:
    exact = sorted(values)[math.floor(q * (len(values) - 1))]
    found = of(values, buckets=4096).quantile(q)
    assert found is not None
    assert abs(found - exact) <= 0.01 * exact * (1 + 1e-9) + 1e-9


@settings(max_examples=150, deadline=None)
@given(VALUES, st.integers(0, 200), st.integers(2, 40))
def test_parts_merged_in_any_order_hold_the_counts_of_the_whole(
    values: list[float], cut: int, buckets: int
) -> None:
    whole = of(values, buckets=buckets)
    first, second = of(values[:cut], buckets=buckets), of(values[cut:], buckets=buckets)
    there, back = of([], buckets=buckets), of([], buckets=buckets)
    there.merge(first)
    there.merge(second)
    back.merge(second)
    back.merge(first)
    assert there == back == whole
    assert len(whole.counts) <= buckets
    assert there.total == pytest.approx(math.fsum(values), abs=1e-6)
    assert there.mean == pytest.approx(float(np.mean(values)), abs=1e-9)
    if len(values) > 1:
        assert there.variance == pytest.approx(float(np.var(values, ddof=1)), rel=1e-6, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(VALUES, VALUES)
def test_state_goes_on_to_the_last_digit(before: list[float], after: list[float]) -> None:
    one = of(before)
    other = QuantileSketch.of_state(json.loads(json.dumps(one.state())))
    assert other == one
    for value in after:
        one.add(value)
        other.add(value)
    assert other.state() == one.state()


def test_times_is_so_many_adds() -> None:
    many, each = QuantileSketch(), of([2.0] * 7 + [3.0])
    many.add(2.0, 7)
    many.add(3.0)
    assert counted(many) == counted(each)
    assert many.variance == pytest.approx(each.variance)


def test_low_buckets_collapse_and_high_quantiles_stay_exact() -> None:
    rng = np.random.default_rng(3)
    values = np.exp(rng.normal(0, 1, 20_000))
    sketch = of(list(values), buckets=256)
    assert len(sketch.counts) <= 256
    for q in (0.9, 0.95, 0.99):
        exact = np.sort(values)[math.floor(q * (len(values) - 1))]
        assert sketch.quantile(q) == pytest.approx(exact, rel=0.0101)


def test_nothing_has_no_quantile() -> None:
    empty = QuantileSketch()
    assert empty.quantile(0.5) is None
    assert empty.mean is None
    assert empty.variance is None
    assert empty.state() == {}
    assert QuantileSketch.of_state({}) == empty


def test_above() -> None:
    sketch = of([0.0, 1.0, 2.0, 4.0])
    assert [sketch.above(v) for v in (0.0, 1.5, 3.0, 5.0)] == [3, 2, 1, 0]


@pytest.mark.parametrize("value", [-1.0, math.inf, math.nan])
def test_what_is_no_duration_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        QuantileSketch().add(value)


def test_other_buckets_do_not_merge() -> None:
    with pytest.raises(ValueError, match="cannot be merged"):
        QuantileSketch().merge(QuantileSketch(error=0.02))
    with pytest.raises(ValueError, match="between"):
        QuantileSketch(error=2.0)
    with pytest.raises(ValueError, match="between"):
        of([1.0]).quantile(1.5)
