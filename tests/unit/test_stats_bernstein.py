"""Closed-form intervals of means: by hand, and against data that the library confseq ships."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from intonaco.errors import StorageError
from intonaco.stats import PairedBernstein, PropensityBernstein
from intonaco.stats.boundaries import gamma_exponential_bound


def test_pairs_by_hand() -> None:
    """Theorem 2 of arXiv 2010.09686, written out."""
    differences, alpha = [0.3, -0.2, 0.1, 0.05], 0.1
    xs = [(d + 1) / 2 for d in differences]
    level, means, squares = math.log(2 / alpha), [0.5], [0.25]
    stakes = []
    for t, x in enumerate(xs, start=1):
        variance = sum(squares) / t
        stakes.append(min(math.sqrt(2 * level / (variance * t * math.log(1 + t))), 0.5))
        means.append((0.5 + sum(xs[:t])) / (t + 1))
        squares.append((x - means[t]) ** 2)
    spent = sum(
        (x - m) ** 2 * (-math.log(1 - s) - s) for x, m, s in zip(xs, means, stakes, strict=False)
    )
    centre = sum(s * x for s, x in zip(stakes, xs, strict=True)) / sum(stakes)
    radius = (level + spent) / sum(stakes)
    test = PairedBernstein(alpha)
    assert test.interval() == (-1.0, 1.0)
    for d in differences:
        test.pair(d)
    assert test.interval() == pytest.approx(
        (max(-1, 2 * (centre - radius) - 1), min(1, 2 * (centre + radius) - 1))
    )


def test_pairs_narrow_around_the_truth() -> None:
    rng = np.random.default_rng(0)
    test = PairedBernstein(0.01)
    for d in np.clip(-0.05 + 0.15 * rng.normal(size=1500), -1, 1):
        test.pair(float(d))
    low, high = test.interval()
    assert low < -0.05 < high < 0
    assert high - low < 0.06


def test_scores_by_hand() -> None:
    """Theorem 4 of arXiv 1810.08240: the sum of scores and the boundary at their squares."""
    units = [(0.9, True, 0.5), (0.1, False, 0.5), (0.7, True, 0.25), (0.2, False, 0.25)]
    test = PropensityBernstein(0.05, smallest_weight=0.25)
    assert test.interval() == (-1.0, 1.0)
    total, squares, outcomes = 0.0, 0.0, 0.5
    for i, (y, challenger, w) in enumerate(units):
        assert test.assign(y, challenger=challenger, weight=w)
        about, expected = outcomes / (i + 1), min(max(total / (i + 1), -1), 1)
        x = (y - about) / w if challenger else -(y - about) / (1 - w)
        squares += (x - expected) ** 2
        total += x
        outcomes += y
    radius = gamma_exponential_bound(squares, 0.025, v_opt=400, c=8, alpha_opt=0.025) / 4
    assert test.interval() == pytest.approx(
        (max(-1, total / 4 - radius), min(1, total / 4 + radius))
    )


def test_scores_narrow_around_the_truth_and_refuse_small_weights() -> None:
    rng = np.random.default_rng(1)
    test = PropensityBernstein(0.05, smallest_weight=0.2)
    assert not test.assign(0.5, challenger=True, weight=0.1)
    assert not test.assign(0.5, challenger=True, weight=1.0)
    for _ in range(5000):
        challenger = bool(rng.random() < 0.5)
        y = float(np.clip(rng.normal(0.45 if challenger else 0.4, 0.1), 0, 1))
        test.assign(y, challenger=challenger, weight=0.5)
    low, high = test.interval()
    assert low < 0.05 < high
    assert high - low < 0.07


def test_states_restore_bit_for_bit() -> None:
    rng = np.random.default_rng(2)
    pairs, scores = PairedBernstein(0.05), PropensityBernstein(0.05, smallest_weight=0.1)
    for _ in range(50):
        pairs.pair(float(rng.uniform(-1, 1)))
        scores.assign(float(rng.random()), challenger=bool(rng.random() < 0.5), weight=0.5)
    for test, copy, other in (
        (pairs, PairedBernstein(0.05), PairedBernstein(0.1)),
        (
            scores,
            PropensityBernstein(0.05, smallest_weight=0.1),
            PropensityBernstein(0.05, smallest_weight=0.2),
        ),
    ):
        stored = json.loads(json.dumps(test.state()))
        copy.restore(stored)
        assert copy.state() == test.state()
        assert copy.interval() == test.interval()
        with pytest.raises(StorageError):
            other.restore(stored)


def test_what_is_no_difference_or_outcome_is_refused() -> None:
    with pytest.raises(ValueError, match="outside"):
        PairedBernstein(0.05).pair(1.5)
    with pytest.raises(ValueError, match="alpha"):
        PairedBernstein(0.0)
    with pytest.raises(ValueError, match="outside"):
        PropensityBernstein(0.05, smallest_weight=0.1).assign(2.0, challenger=True, weight=0.5)
    with pytest.raises(ValueError, match="smallest"):
        PropensityBernstein(0.05, smallest_weight=0.7)
