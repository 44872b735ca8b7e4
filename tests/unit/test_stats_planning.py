"""Requests foretold against requests needed, by simulation: within a quarter."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from intonaco.stats import ErrorRatio, LatencyTest, PairedDifference, RandomizedDifference, planning
from intonaco.stats.latency import KEPT, POWERS

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from sequential.runs import Array, Crossings, Difference, Latency, Pairs, Ratio

ALPHA = 0.01
RUNS = 150


def _median(step: Callable[[], Array], most: int = 60_000) -> float:
    crossings = Crossings(RUNS, math.log(1 / ALPHA))
    while crossings.units < most:
        crossings.look(step())
        if crossings.units % 20 == 0 and math.isfinite(crossings.median):
            break
    return crossings.median


def _close(foretold: float | None, needed: float) -> None:
    assert foretold is not None
    assert foretold == pytest.approx(needed, rel=0.25)


@pytest.mark.parametrize(("rate", "weight"), [(0.03, 0.05), (0.02, 0.5), (0.05, 0.5)])
def test_catching_errors(rate: float, weight: float) -> None:
    rng, test = np.random.default_rng(1), Ratio(RUNS)

    def step() -> Array:
        challenger = rng.random(RUNS) < weight
        test.take(rng.random(RUNS) < np.where(challenger, rate, 0.01), challenger, weight)
        return test.peak

    foretold = planning.to_catch_errors(champion=0.01, challenger=rate, weight=weight, alpha=ALPHA)
    _close(foretold, _median(step))


@pytest.mark.parametrize(
    ("rate", "margin", "weight"), [(0.0, 0.02, 0.2), (0.01, 0.02, 0.5), (0.05, 0.05, 0.5)]
)
def test_proving_error_rates(rate: float, margin: float, weight: float) -> None:
    """An error-free release can be proven, and so can one with the champion's rate."""
    rng, test = np.random.default_rng(2), Difference(RUNS, margin, centre=0.01)

    def step() -> Array:
        challenger = rng.random(RUNS) < weight
        test.take((rng.random(RUNS) < rate).astype(float), challenger, weight)
        return np.asarray(test.peak[1])

    foretold = planning.to_prove_errors(
        champion=rate, challenger=rate, weight=weight, margin=margin, alpha=ALPHA
    )
    _close(foretold, _median(step))


def test_proving_scores() -> None:
    rng, test = np.random.default_rng(3), Difference(RUNS, 0.05, centre=0.5)

    def step() -> Array:
        challenger = rng.random(RUNS) < 0.5
        values = np.clip(0.6 + 0.15 * rng.normal(size=RUNS), 0, 1)
        test.take(values, challenger, 0.5)
        return np.asarray(test.peak[1])

    same = planning.scores(0.6, 0.15)
    foretold = planning.to_prove_scores(
        champion=same, challenger=same, weight=0.5, margin=0.05, alpha=ALPHA
    )
    _close(foretold, _median(step))


def test_proving_amounts() -> None:
    rng = np.random.default_rng(7)
    test = Difference(RUNS, 0.0, centre=0.25, centre_weight=20.0)

    def step() -> Array:
        challenger = rng.random(RUNS) < 0.5
        cost = np.clip(1.0 + 0.3 * rng.normal(size=RUNS), 0.1, 9.0)
        test.take(np.minimum(np.where(challenger, cost / 1.1, cost), 4.0) / 4.0, challenger, 0.5)
        return np.asarray(test.peak[1])

    same = planning.scores(1.0, 0.3, low=0.1, high=9.0)
    foretold = planning.to_prove_amounts(
        champion=same, challenger=same, cap=4.0, weight=0.5, margin=0.1, alpha=ALPHA
    )
    _close(foretold, _median(step))


def test_proving_pairs() -> None:
    rng, test = np.random.default_rng(4), Pairs(RUNS, 0.03)

    def step() -> Array:
        test.take(np.clip(0.15 * rng.normal(size=RUNS), -1, 1))
        return np.asarray(test.peak[1])

    foretold = planning.to_prove_pairs(
        differences=planning.scores(0.0, 0.15, low=-1.0), margin=0.03, alpha=ALPHA
    )
    _close(foretold, _median(step))


@pytest.mark.parametrize("slower", [1.0, 1.2])
def test_latency(slower: float) -> None:
    """An equal challenger within 10 % at the 90th percentile; one 20 % slower caught."""
    rng = np.random.default_rng(5)
    caught = slower > 1
    test = Latency(RUNS, margin=0.1, levels=() if caught else (0.9,))
    for _ in range(KEPT):
        test.learn(np.exp(0.2 * rng.normal(size=RUNS)), np.ones(RUNS, bool))

    def step() -> Array:
        challenger = rng.random(RUNS) < 0.2
        seconds = np.exp(0.2 * rng.normal(size=RUNS)) * np.where(challenger, slower, 1.0)
        test.take(seconds, challenger, 0.2)
        test.learn(seconds, ~challenger)
        return test.peak_slower if caught else test.peak_within(0.9)

    if caught:
        foretold = planning.to_catch_latency(
            log_sd=0.2, slower=slower, weight=0.2, alpha=ALPHA, powers=POWERS
        )
    else:
        foretold = planning.to_prove_latency(
            log_sd=0.2, weight=0.2, margin=0.1, level=0.9, alpha=ALPHA
        )
    _close(foretold, _median(step))


def test_what_is_still_expected_falls_as_evidence_grows() -> None:
    """Of a test halfway through."""
    rng = np.random.default_rng(6)
    test, threshold = RandomizedDifference((0.05,), centre=0.01), math.log(100)
    step = planning.difference_step(
        planning.failures(0.01), planning.failures(0.01), weight=0.5, d=0.05, above=False
    )
    expected = []
    for _ in range(4):
        left = planning.remaining(test.components(0.05, above=False), step, threshold)
        assert left is not None
        expected.append(left)
        for _ in range(60):
            challenger = bool(rng.random() < 0.5)
            test.assign(float(rng.random() < 0.01), challenger=challenger, weight=0.5)
    assert expected == sorted(expected, reverse=True)
    while test.log_evidence_below(0.05) < threshold:
        test.assign(0.0, challenger=bool(rng.random() < 0.5), weight=0.5)
    assert planning.remaining(test.components(0.05, above=False), step, threshold) == 0


def test_tests_say_where_they_stand() -> None:
    ratio, latency, pairs = ErrorRatio(), LatencyTest(), PairedDifference((0.05,))
    step = planning.ratio_step(champion=0.01, challenger=0.05, weight=0.05)
    whole = planning.remaining(ratio.components, step, math.log(100))
    ratio.error(challenger=True, weight=0.05)
    left = planning.remaining(ratio.components, step, math.log(100))
    assert whole is not None
    assert left is not None
    assert left < whole
    assert whole == planning.to_catch_errors(
        champion=0.01, challenger=0.05, weight=0.05, alpha=0.01
    )
    for components in (
        latency.components_slower,
        latency.components_within(0.9),
        pairs.components(0.05, above=False),
    ):
        assert np.exp(components).sum() == pytest.approx(1.0)


def test_what_is_not_expected_is_none() -> None:
    assert planning.to_catch_errors(champion=0.01, challenger=0.01, weight=0.1, alpha=0.01) is None
    assert (
        planning.to_prove_errors(
            champion=0.01, challenger=0.05, weight=0.5, margin=0.02, alpha=0.01
        )
        is None
    )


def test_evidence_is_carried_over_the_weights() -> None:
    """Stages of 1, 5 and 50 %: what the first two gather is not lost."""
    threshold = math.log(100)

    def step(weight: float) -> planning.Step:
        same = planning.failures(0.01)
        return planning.difference_step(same, same, weight=weight, d=0.02, above=False)

    start = planning.shares(5)
    alone = planning.remaining(start, step(0.5), threshold)
    stages = [(step(0.01), 2_000.0), (step(0.05), 4_000.0), (step(0.5), math.inf)]
    together = planning.remaining_over(start, stages, threshold)
    assert alone is not None
    assert together is not None
    assert 6_000 < together < 6_000 + alone
    assert planning.remaining_over(start, stages[:2], threshold) is None
