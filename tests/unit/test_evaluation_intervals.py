"""Fixed-sample intervals: exact values and coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from intonaco.evaluation.intervals import (
    binomial_cdf,
    hodges_lehmann,
    mean_interval,
    paired_share_interval,
    quantile_difference,
    share_interval,
    strata_of,
    student_quantile,
    widened,
)


@pytest.mark.parametrize("df", [1, 2, 3, 4, 7, 11, 60, 301])
@pytest.mark.parametrize("p", [0.05, 0.5, 0.9, 0.975, 0.9995])
def test_student_quantile(p: float, df: int) -> None:
    assert student_quantile(p, df) == pytest.approx(stats.t.ppf(p, df), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("p", "df"), [(0.0, 3), (1.0, 3), (0.5, 0)])
def test_student_quantile_refuses(p: float, df: int) -> None:
    with pytest.raises(ValueError, match="quantile"):
        student_quantile(p, df)


def test_hodges_lehmann_covers_as_often_as_it_says() -> None:
    """Exact and distribution-free: 90 % or a little more, here with heavy tails. The bounds are
    those of binomial(600, .9 to .91) at 0.1 %."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(600):
        interval = hodges_lehmann(0.3 + rng.standard_t(2, size=10), 0.05)[1]
        assert interval is not None
        hits += interval[0] <= 0.3 <= interval[1]
    assert 517 <= hits <= 569


def test_hodges_lehmann_is_not_moved_by_one_busy_moment() -> None:
    quiet = np.random.default_rng(1).normal(0.0, 0.02, 10)
    busy = np.append(quiet[:-1], 3.0)
    centre, interval = hodges_lehmann(busy, 0.05)
    assert abs(centre) < 0.03
    assert interval is not None
    assert interval[1] < 0.1


def test_hodges_lehmann_of_too_few_values_has_no_interval() -> None:
    assert hodges_lehmann([1.0, 2.0, 3.0, 4.0], 0.05) == (2.5, None)
    centre, interval = hodges_lehmann([], 0.05)
    assert math.isnan(centre)
    assert interval is None


class TestMeans:
    def test_of_symmetric_values_it_is_students(self) -> None:
        x = [-1.0, 1.0, -2.0, 2.0, 0.0]
        mean, interval = mean_interval(x, ["s"] * 5, 0.05)
        half = 2.1318468 * np.std(x, ddof=1) / np.sqrt(5)
        assert mean == 0.0
        assert interval == pytest.approx((-half, half))

    def test_it_reaches_farther_towards_the_long_tail(self) -> None:
        x = [0.0] * 15 + [-1.0, -2.0, -6.0]
        mean, interval = mean_interval(x, ["s"] * 18, 0.05)
        assert interval is not None
        student = 1.7396067 * np.std(x, ddof=1) / np.sqrt(18)
        assert mean - interval[0] > 1.2 * student
        assert interval[1] - mean == pytest.approx(student)

    def test_differences_between_strata_are_no_noise(self) -> None:
        x = np.array([1.0, 1.1, 0.9, 5.0, 5.1, 4.9])
        _, apart = mean_interval(x, ["a"] * 3 + ["b"] * 3, 0.05)
        _, together = mean_interval(x, ["a"] * 6, 0.05)
        assert apart is not None
        assert together is not None
        assert apart[1] - apart[0] < 0.1 * (together[1] - together[0])

    def test_too_few_and_all_equal(self) -> None:
        assert mean_interval([0.4], ["s"], 0.05) == (0.4, None)
        assert mean_interval([0.4, 0.4], ["s", "t"], 0.05) == (0.4, (0.4, 0.4))

    def test_single_members_share_a_stratum(self) -> None:
        found = strata_of(["a", "b", "c", "c", "d", "d", "d"])
        assert sorted(sorted(int(i) for i in m) for m in found) == [[0, 1], [2, 3], [4, 5, 6]]
        lone = strata_of(["a", "c", "c", "d", "d", "d"])
        assert sorted(len(m) for m in lone) == [3, 3]

    def test_skewed_values_are_held_on_the_side_of_the_tail(self) -> None:
        """Exponential tails, 40 values: at most 5 % plus chance (99 %) of 600."""
        rng = np.random.default_rng(0)
        missed = 0
        for _ in range(600):
            _, interval = mean_interval(-rng.exponential(size=40), ["s"] * 40, 0.05)
            assert interval is not None
            missed += interval[0] > -1.0
        assert missed <= 43


class TestShares:
    def test_clopper_pearson(self) -> None:
        """Against scipy.stats.beta.ppf."""
        assert share_interval(3, 20, 0.05) == pytest.approx((0.0421694, 0.3436645), abs=1e-6)
        assert share_interval(20, 20, 0.025) == pytest.approx((0.8315665, 1.0), abs=1e-6)

    def test_the_rule_of_three(self) -> None:
        low, high = share_interval(0, 300, 0.05)
        assert low == 0.0
        assert high == pytest.approx(1 - 0.05 ** (1 / 300))
        assert high == pytest.approx(3 / 300, rel=0.01)

    def test_no_share(self) -> None:
        for count, n in ((3, 2), (-1, 5), (0, 0)):
            with pytest.raises(ValueError, match="no share"):
                share_interval(count, n, 0.05)

    def test_binomial(self) -> None:
        assert binomial_cdf(1, 3, 0.5) == pytest.approx(0.5)
        assert binomial_cdf(5, 5, 0.1) == 1.0
        assert binomial_cdf(-1, 5, 0.1) == 0.0

    def test_pairs(self) -> None:
        before = [True, True, False, False, False]
        low, high = paired_share_interval(before, before, 0.05)
        assert high == -low == pytest.approx(share_interval(0, 5, 0.025)[1])
        after = [True, True, True, True, False]
        assert paired_share_interval(before, after, 0.05)[1] > 0.4

    def test_none_seen_is_not_none_to_come(self) -> None:
        low, high = widened((0.0, 0.0), 0.0, 60, 0.05)
        assert high == -low == pytest.approx(0.0487, abs=1e-4)
        assert widened((-0.5, 0.5), 0.0, 60, 0.05) == (-0.5, 0.5)


class TestQuantiles:
    def test_too_few_have_no_interval(self) -> None:
        x = np.random.default_rng(0).random(58)
        assert quantile_difference(x, x, range(58), 0.95, 0.05)[1] is None
        y = np.random.default_rng(0).random(59)
        assert quantile_difference(y, y, range(59), 0.95, 0.05)[1] is not None

    def test_rounds_that_go_together_count_as_fewer(self) -> None:
        busy = np.random.default_rng(1).random(40).repeat(2)
        assert quantile_difference(busy, busy, range(80), 0.95, 0.05)[1] is not None
        assert quantile_difference(busy, busy, np.arange(40).repeat(2).tolist(), 0.95, 0.05) == (
            0.0,
            None,
        )

    def test_it_covers_as_often_as_it_says_or_more(self) -> None:
        """A shift of 0.3 of all times: at most 10 % plus chance (99 %) of 300."""
        rng = np.random.default_rng(2)
        missed = 0
        for _ in range(300):
            before, after = rng.gamma(1.5, 0.1, 150), 0.3 + rng.gamma(1.5, 0.1, 150)
            _, interval = quantile_difference(before, after, range(150), 0.95, 0.05)
            assert interval is not None
            missed += not interval[0] <= 0.3 <= interval[1]
        assert missed <= 43
