"""The error ratio: what was proved, checked exactly; simulations are in test_stats_type1.py."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intonaco.errors import StorageError
from intonaco.stats import ErrorRatio
from intonaco.stats.error_ratio import RATIOS, SHARES, log_factors


@given(
    w=st.floats(0.001, 0.999),
    champion=st.floats(0.001, 1.0),
    tolerance=st.floats(0.0, 2.0),
    below=st.floats(0.0, 1.0),
)
def test_a_unit_is_fair_or_worse_under_the_null(
    w: float, champion: float, tolerance: float, below: float
) -> None:
    """Exact enumeration over arm and error; at the null's edge it is exactly fair."""
    ratios = np.asarray(RATIOS)
    edge = (1 + tolerance) * champion
    for challenger in (edge, below * edge):
        if challenger > 1:
            continue
        mean = (
            w * challenger * np.exp(log_factors(True, w, ratios, tolerance))
            + (1 - w) * champion * np.exp(log_factors(False, w, ratios, tolerance))
            + (1 - w * challenger - (1 - w) * champion)
        )
        assert (mean <= 1 + 1e-9).all()
        if challenger == edge:
            assert mean == pytest.approx(1.0)


@given(survival=st.floats(math.exp(-1), 1.0), ratio=st.floats(0.01, 0.999))
def test_first_errors_keep_their_odds_up_to_one_expected_error(
    survival: float, ratio: float
) -> None:
    """The module's claim of sticky units: r S^(r-1) <= 1 for S >= 1/e."""
    assert ratio * survival ** (ratio - 1) <= 1 + 1e-12


def test_beyond_one_expected_error_they_may_not() -> None:
    assert 0.9 * 0.1 ** (0.9 - 1) > 1


def test_evidence_is_the_mixture_of_products() -> None:
    test = ErrorRatio(0.2)
    errors = [(True, 0.05), (False, 0.05), (True, 0.2), (True, 0.5)]
    for challenger, weight in errors:
        assert test.error(challenger=challenger, weight=weight)
    expected = 0.0
    for share, relative in zip(SHARES, RATIOS, strict=True):
        ratio, product = 1.2 * relative, share
        for challenger, w in errors:
            theta, null = ratio * w / (ratio * w + 1 - w), 1.2 * w / (1.2 * w + 1 - w)
            product *= theta / null if challenger else (1 - theta) / (1 - null)
        expected += product
    assert test.log_evidence == pytest.approx(math.log(expected))
    assert test.peak >= test.log_evidence
    assert test.errors == [1, 3]


def test_three_errors_of_a_small_challenger_are_enough() -> None:
    test = ErrorRatio()
    for _ in range(2):
        test.error(challenger=True, weight=0.05)
    assert test.log_evidence < math.log(100)
    test.error(challenger=True, weight=0.05)
    assert test.log_evidence > math.log(100)


def test_the_estimate_weighs_errors_by_their_arms_chance() -> None:
    test = ErrorRatio()
    assert test.estimate is None
    for i in range(95):
        test.error(challenger=i < 10, weight=0.1)
    assert test.estimate == pytest.approx((10 / 0.1) / (85 / 0.9))


def test_state_restores_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    one, two = ErrorRatio(0.1), ErrorRatio(0.1)
    for i in range(100):
        challenger, weight = bool(rng.random() < 0.3), float(rng.uniform(0.01, 0.5))
        one.error(challenger=challenger, weight=weight)
        two.error(challenger=challenger, weight=weight)
        if i % 30 == 0:
            stored = json.loads(json.dumps(two.state()))
            two = ErrorRatio(0.1)
            two.restore(stored)
    assert one.state() == two.state()
    with pytest.raises(StorageError):
        ErrorRatio(0.2).restore(one.state())


def test_what_is_not_randomised_or_not_a_weight() -> None:
    test = ErrorRatio()
    assert not test.error(challenger=True, weight=1.0)
    assert not test.error(challenger=False, weight=0.0)
    assert test.errors == [0, 0]
    with pytest.raises(ValueError, match="outside"):
        test.error(challenger=True, weight=1.5)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"tolerance": -0.1}, "tolerance"),
        ({"ratios": (0.5,), "shares": (1.0,)}, "above 1"),
        ({"ratios": (2.0, 3.0), "shares": (1.0,)}, "every ratio has a share"),
        ({"ratios": (2.0, 3.0), "shares": (0.9, 0.9)}, "sum to 1"),
    ],
)
def test_settings_are_checked(how: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ErrorRatio(**how)  # type: ignore[arg-type]
