"""Closed forms against the reference values of the library confseq, and against SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special as reference

from intonaco.stats import boundaries, missing, special


@pytest.mark.parametrize("a", [0.3, 1.0, 7.5, 120.0, 5000.0])
@pytest.mark.parametrize("b", [0.4, 2.0, 60.0, 900.0])
@pytest.mark.parametrize("x", [0.01, 0.3, 0.5, 0.9, 1.0])
def test_incomplete_beta(a: float, b: float, x: float) -> None:
    expected = reference.betainc(a, b, x)
    if expected < 1e-280:
        return
    found = special.log_incomplete_beta(a, b, x) - special.log_beta(a, b)
    assert found == pytest.approx(math.log(expected), rel=1e-9, abs=1e-10)


@pytest.mark.parametrize("a", [0.3, 1.0, 25.0, 400.0, 20_000.0])
@pytest.mark.parametrize("factor", [0.5, 0.95, 1.0, 1.05, 2.0])
def test_incomplete_gamma(a: float, factor: float) -> None:
    expected = reference.gammainc(a, a * factor)
    if expected < 1e-280:
        return
    assert special.log_gamma_p(a, a * factor) == pytest.approx(
        math.log(expected), rel=1e-8, abs=1e-11
    )


def test_reference_values_of_confseq() -> None:
    """test/uniform_boundaries_unittest.cpp of github.com/gostevehoward/confseq."""
    assert boundaries.normal_bound(100, 0.05, v_opt=100) == pytest.approx(30.35209, abs=1e-5)
    assert boundaries.normal_rho(100, 0.05) == pytest.approx(12.60056, abs=1e-5)
    gamma = {"v_opt": 100.0, "c": 2.0}
    assert boundaries.gamma_exponential_log_mixture(10, 100, **gamma) == pytest.approx(
        -0.2490165, abs=1e-6
    )
    assert boundaries.gamma_exponential_bound(100, 0.05, **gamma) == pytest.approx(
        33.02017, abs=1e-5
    )
    for one_sided, mixture, bound in ((False, -0.6941012, 31.4308), (True, -0.07134019, 28.41238)):
        found = boundaries.beta_binomial_log_mixture(
            10, 100, v_opt=100, g=0.2, h=0.8, one_sided=one_sided
        )
        assert found == pytest.approx(mixture, abs=1e-6)
        found = boundaries.beta_binomial_bound(
            100, 0.05, v_opt=100, g=0.2, h=0.8, one_sided=one_sided
        )
        assert found == pytest.approx(bound, abs=1e-4)
    low, high = boundaries.proportion_interval(700, 1000, 0.05, t_opt=100)
    assert (low, high) == pytest.approx((0.651629, 0.745949), abs=1e-5)
    # Theirs looks for the best constant; the closed form is 1 % wider.
    band = boundaries.empirical_band(1000, 0.05, since=100)
    assert 0.08204769 <= band <= 1.015 * 0.08204769


def test_a_thousand_outcomes_of_confseq() -> None:
    """The last of 1,000 rows of demo/ate_data.csv there, from the sums of its scores and of their
    squares; all rows agree to 1e-12."""
    s, v = 174.59111433668542, 808.6458996846283
    how = {"v_opt": 32.0, "c": 4.0, "alpha_opt": 0.025}
    radius = boundaries.gamma_exponential_bound(v, 0.025, **how) / 1000
    assert s / 1000 + radius == pytest.approx(0.29338820314705, abs=1e-12)
    assert s / 1000 - radius == pytest.approx(0.0557940255263216, abs=1e-12)
    p = math.exp(-boundaries.gamma_exponential_log_mixture(s, v, **how))
    assert p == pytest.approx(7.33500456673828e-05, rel=1e-9)


def test_a_bound_that_cannot_be_reached_is_infinite() -> None:
    few, many = (
        boundaries.beta_binomial_bound(0.09 * n, 0.01, v_opt=36.0, g=0.9, h=0.1) for n in (20, 200)
    )
    assert few == math.inf
    assert many < math.inf
    assert boundaries.empirical_band(9, 0.05, since=10) == math.inf


def test_the_bound_is_where_the_mixture_is() -> None:
    s = boundaries.gamma_exponential_bound(50, 0.01, v_opt=100, c=3)
    assert boundaries.gamma_exponential_log_mixture(s, 50, v_opt=100, c=3) == pytest.approx(
        math.log(100)
    )
    assert boundaries.gamma_exponential_log_mixture(-1000, 50, v_opt=100, c=3) == -math.inf


def test_proportions_at_the_ends() -> None:
    assert boundaries.proportion_interval(0, 0, 0.05) == (0.0, 1.0)
    low, high = boundaries.proportion_interval(0, 500, 0.05)
    assert low == 0.0
    assert 0.005 < high < 0.03
    assert boundaries.proportion_interval(500, 500, 0.05) == pytest.approx((1 - high, 1.0))


def test_proportions_cover_at_all_looks_together() -> None:
    """Budget: 300 runs of 300 outcomes, alpha 0.1, three standard errors."""
    rng = np.random.default_rng(0)
    counts = np.cumsum(rng.random((300, 300)) < 0.2, axis=1)
    out = np.zeros((300, 301), bool)  # of (trials, successes): is 0.2 left out?
    for n in range(1, 301):
        for k in {int(v) for v in np.unique(counts[:, n - 1])}:
            evidence = boundaries.beta_binomial_log_mixture(
                k - 0.2 * n, 0.16 * n, v_opt=16.0, g=0.2, h=0.8
            )
            out[n - 1, k] = evidence >= math.log(10)
    missed = out[np.arange(300)[None, :], counts].any(axis=1)
    assert missed.mean() <= 0.1 + 3 * math.sqrt(0.09 / 300)


def test_missing_values_widen_and_may_be_too_many() -> None:
    assert missing.may_exceed(0, 0, 0.2, 0.05)
    assert missing.may_exceed(1, 20, 0.2, 0.05)
    assert not missing.may_exceed(2, 500, 0.2, 0.05)
    share = boundaries.proportion_interval(10, 500, 0.05)[1]
    low, high = missing.widened((-0.02, 0.01), 10, 500, 0.05)
    assert low == pytest.approx((1 - share) * -0.02 - share)
    assert high == pytest.approx((1 - share) * 0.01 + share)
    with pytest.raises(ValueError, match="missing of"):
        missing.widened((0.0, 0.1), 5, 4, 0.05)
