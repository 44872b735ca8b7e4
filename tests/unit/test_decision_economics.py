"""What staleness costs and what actions cost: the sums, and that they are calibrated."""

from __future__ import annotations

import numpy as np
import pytest

from intonaco.decision import economics
from intonaco.decision.economics import Life
from intonaco.types import Estimate

DAY = 86_400.0


def test_a_run_nobody_measured_may_take_half_or_twice() -> None:
    assert economics.duration([], 100.0) == Estimate(low=50.0, mean=100.0, high=200.0)


def test_measured_runs_replace_the_estimate() -> None:
    one = economics.duration([40.0], 100.0)
    assert one.mean == 40.0
    assert one.low < 40.0 < one.high
    many = economics.duration([40.0, 42.0, 38.0, 41.0], 100.0)
    assert many.mean == pytest.approx(40.25)
    assert many.high - many.low < one.high - one.low


def test_the_interval_of_a_duration_holds_the_next_run() -> None:
    """90 % intervals of ten normal runs: over 4,000 worlds the share held is within 0.85 and 0.93
    (a normal interval with an estimated spread holds a little less than it says)."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(4000):
        *runs, following = rng.normal(100.0, 10.0, 11)
        e = economics.duration(list(runs), 1.0)
        held += e.low <= following <= e.high
    assert 0.85 < held / 4000 < 0.93


def test_the_chance_of_success_is_learnt() -> None:
    prior = economics.success(0, 0)
    assert prior.mean == pytest.approx(0.8)
    bad, good = economics.success(0, 5), economics.success(20, 0)
    assert bad.mean < prior.mean < good.mean
    assert good.high - good.low < prior.high - prior.low
    for e in (prior, bad, good):
        assert 0.0 <= e.low <= e.mean <= e.high <= 1.0


def test_a_change_lasts_the_horizon_until_something_is_learnt() -> None:
    assert economics.lasts(0.0, 30 * DAY, ()) == 30 * DAY
    # older than the horizon: as long again as it has lasted
    assert economics.lasts(50 * DAY, 30 * DAY, ()) == 50 * DAY


def test_changes_that_passed_by_themselves_make_a_young_one_short() -> None:
    fads = [Life(seconds=2 * DAY, ended=True)] * 5
    young = economics.lasts(0.0, 30 * DAY, fads)
    assert young == pytest.approx((30 + 10) * DAY / 6)
    # one that has outlived them all is no fad
    assert economics.lasts(3 * DAY, 30 * DAY, fads) == 30 * DAY


def test_changes_that_an_update_ended_do_not_count_as_passing() -> None:
    mended = [Life(seconds=4 * DAY, ended=False)] * 5
    assert economics.lasts(0.0, 30 * DAY, mended) == pytest.approx(50 * DAY)


def test_the_estimate_of_what_is_left_is_right_on_average_for_constant_hazards() -> None:
    """200 past changes of exponential lives, mean 5 days: within 10 % of 5 days at any age."""
    rng = np.random.default_rng(2)
    past = [Life(seconds=float(x) * DAY, ended=True) for x in rng.exponential(5.0, 400)]
    for age in (0.0, 2.0, 5.0):
        assert economics.lasts(age * DAY, 30 * DAY, past) == pytest.approx(5 * DAY, rel=0.2)


def test_net_is_gain_less_costs() -> None:
    lost = economics.loss(2.0, 0.001, Estimate(low=0.1, mean=0.2, high=0.3))
    saved = economics.gain(lost, recovery=0.9, chance=0.8, serves=10 * DAY)
    assert saved.low == pytest.approx(2 * 0.001 * 0.1 * 0.9 * 0.8 * 10 * DAY)
    found = economics.net(saved, Estimate(low=1.0, mean=2.0, high=4.0), 3.0)
    assert found.low == pytest.approx(saved.low - 5.0)
    assert found.low < found.mean < found.high
    assert economics.gain(lost, recovery=0.9, chance=0.8, serves=-5.0).high == 0.0
