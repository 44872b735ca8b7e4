"""Fixed-sample intervals: exact values and coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from intonaco.evaluation.intervals import (
    half_sample_error,
    hodges_lehmann,
    student_quantile,
    t_interval,
)


@pytest.mark.parametrize("df", [1, 2, 3, 4, 7, 11, 60, 301])
@pytest.mark.parametrize("p", [0.05, 0.5, 0.9, 0.975, 0.9995])
def test_student_quantile(p: float, df: int) -> None:
    assert student_quantile(p, df) == pytest.approx(stats.t.ppf(p, df), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("p", "df"), [(0.0, 3), (1.0, 3), (0.5, 0)])
def test_student_quantile_refuses(p: float, df: int) -> None:
    with pytest.raises(ValueError, match="quantile"):
        student_quantile(p, df)


def test_t_interval() -> None:
    x = np.array([0.2, 0.5, -0.1, 0.7, 0.3])
    expected = stats.t.interval(0.9, 4, loc=x.mean(), scale=stats.sem(x))
    assert t_interval(x, 0.05)[1] == pytest.approx(expected)
    assert t_interval([0.4], 0.05) == (0.4, None)


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


def test_half_sampling_gives_the_standard_error_of_a_clustered_mean() -> None:
    rng = np.random.default_rng(0)
    prompts = np.repeat(np.arange(60), 4)
    values = rng.normal(size=60)[prompts] + 0.3 * rng.normal(size=240)
    per_prompt = values.reshape(60, 4).mean(1)
    error = half_sample_error(
        lambda rows: float(values[rows].mean()),
        prompts.tolist(),
        ["all"] * 240,
        draws=2000,
        rng=rng,
    )
    assert error == pytest.approx(per_prompt.std(ddof=1) / math.sqrt(60), rel=0.1)


def test_half_sampling_needs_units() -> None:
    rng = np.random.default_rng(0)
    error = half_sample_error(lambda rows: 0.0, ["p"] * 8, ["s"] * 8, draws=5, rng=rng)
    assert math.isnan(error)
