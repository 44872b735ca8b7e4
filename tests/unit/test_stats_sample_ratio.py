"""The sample-ratio test."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from intonaco.stats import SampleRatioTest


def test_one_unit_is_fair_on_average() -> None:
    for weight in (0.01, 0.05, 0.5, 0.9):
        mean = 0.0
        for challenger, chance in ((True, weight), (False, 1 - weight)):
            test = SampleRatioTest()
            test.assign(challenger=challenger, weight=weight)
            mean += chance * math.exp(test.log_evidence)
        assert mean == pytest.approx(1.0)


def test_correct_splits_are_seldom_called_wrong() -> None:
    """Budget: 200 runs of 400 units over weights 5, 25, 50 %; alpha 0.05, three standard errors."""
    wrong = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        test = SampleRatioTest(alpha=0.05)
        for i in range(400):
            weight = 0.05 if i < 100 else 0.25 if i < 200 else 0.5
            test.assign(challenger=bool(rng.random() < weight), weight=weight)
        wrong += not test.ok
    assert wrong <= 200 * 0.05 + 3 * math.sqrt(200 * 0.05 * 0.95)


def test_a_wrong_split_is_found_and_stays_found() -> None:
    rng = np.random.default_rng(1)
    test = SampleRatioTest()
    for _ in range(600):
        test.assign(challenger=bool(rng.random() < 0.4), weight=0.25)
    assert not test.ok
    for _ in range(3000):
        test.assign(challenger=bool(rng.random() < 0.25), weight=0.25)
    assert not test.ok


def test_ignores_units_without_a_choice_and_restores_exactly() -> None:
    test = SampleRatioTest()
    assert not test.assign(challenger=True, weight=1.0)
    assert not test.assign(challenger=False, weight=0.0)
    assert test.units == [0, 0]
    for i in range(50):
        test.assign(challenger=i % 3 == 0, weight=0.3)
    copy = SampleRatioTest()
    copy.restore(json.loads(json.dumps(test.state())))
    assert copy.state() == test.state()
    with pytest.raises(ValueError, match="outside"):
        test.assign(challenger=True, weight=1.2)
