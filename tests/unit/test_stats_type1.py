"""How often each sequential test claims what is not so, with a look after every unit.

Error budget: alpha 0.01 and three standard errors of the number of streams, a fixed seed. Five
scenarios: `iid`; `drift`, all rates and times move together; `weights`, the challenger's share
rises from 1 to 5, 20, 50 %; `sticky`, users who stay in their arm and of whom five cause most
errors, at rising weights, one event a user; `bursts`, for 20 units in 250 everything is far worse.
Small by default; the marker `slow` has 2,000 streams of 1,500 units. The table is printed at the
end of the run.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from intonaco.stats import (
    ErrorRatio,
    LatencyTest,
    PairedBernstein,
    PairedDifference,
    PropensityBernstein,
    RandomizedDifference,
)
from intonaco.stats.latency import NEEDED

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from sequential import runs, type1

SMALL = (200, 400)  # streams, units
FULL = (2_000, 1_500)


Record = Callable[[str, object], None]


def _table(metric: str, size: tuple[int, int], record: Record) -> None:
    shares = type1.measure(metric, runs=size[0], units=size[1])
    limit = type1.limit(size[0])
    cells = "  ".join(f"{scenario} {share:.4f}" for scenario, share in shares.items())
    record("table", f"{metric:15} {cells}  (limit {limit:.4f}, {size[0]} streams)")
    assert max(shares.values()) <= limit


@pytest.mark.parametrize("metric", list(type1.METRICS))
def test_false_claims_are_rare(metric: str, record_property: Record) -> None:
    _table(metric, SMALL, record_property)


@pytest.mark.slow
@pytest.mark.parametrize("metric", list(type1.METRICS))
def test_false_claims_are_rare_full(metric: str, record_property: Record) -> None:
    _table(metric, FULL, record_property)


@pytest.mark.slow
def test_every_error_of_sticky_users_would_break_the_claim(record_property: Record) -> None:
    """Why callers must take one error a unit: the same streams, with all of a user's errors."""
    wrong, right = (
        type1.errors(type1.Units.of("sticky", *FULL, seed=23), once=once) for once in (False, True)
    )
    record_property("table", f"sticky users: every error {wrong:.4f}  first error {right:.4f}")
    assert wrong > 3 * type1.limit(FULL[0])
    assert right <= type1.limit(FULL[0])


def test_simulated_runs_are_the_classes() -> None:
    """The arithmetic of the simulations is that of the package, to the last digits."""
    rng = np.random.default_rng(1)
    many = 3
    ratio, ratios = runs.Ratio(many, 0.1), [ErrorRatio(0.1) for _ in range(many)]
    difference = runs.Difference(many, 0.05, centre=0.1)
    differences = [RandomizedDifference((0.05,), centre=0.1) for _ in range(many)]
    pairs, paired = runs.Pairs(many), [PairedDifference() for _ in range(many)]
    closed = runs.PairsClosed(many, 0.05)
    closed_pairs = [PairedBernstein(0.05) for _ in range(many)]
    scores = runs.ScoresClosed(many, 0.05, 0.1)
    closed_scores = [PropensityBernstein(0.05, smallest_weight=0.1) for _ in range(many)]
    latency = runs.Latency(many, 0.1, classes=2)
    latencies = [LatencyTest(0.1) for _ in range(many)]
    for i in range(NEEDED + 300):
        w = 0.1 if i < 60 else 0.4
        challenger = rng.random(many) < w
        failed = rng.random(many) < 0.3
        values = rng.random(many)
        d = rng.uniform(-0.5, 0.5, many)
        kind = rng.integers(2, size=many)
        seconds = rng.gamma(4, size=many).astype(np.float32).astype(float)
        ratio.take(failed, challenger, w)
        difference.take(values, challenger, w)
        pairs.take(d)
        closed.take(d)
        scores.take(values, challenger, w)
        latency.take(seconds, challenger, w, kind)
        latency.learn(seconds, ~challenger, kind)
        for j in range(many):
            arm = bool(challenger[j])
            if failed[j]:
                ratios[j].error(challenger=arm, weight=w)
            differences[j].assign(float(values[j]), challenger=arm, weight=w)
            paired[j].pair(float(d[j]))
            closed_pairs[j].pair(float(d[j]))
            closed_scores[j].assign(float(values[j]), challenger=arm, weight=w)
            name = str(kind[j])
            latencies[j].take(float(seconds[j]), challenger=arm, weight=w, request_class=name)
            if not arm:
                latencies[j].learn(float(seconds[j]), name)
    low, high = closed.interval()
    score_low, score_high = scores.interval()
    for j in range(many):
        assert ratio.peak[j] == pytest.approx(ratios[j].peak)
        assert difference.peak[0, j] == pytest.approx(differences[j].peak_above(0.05))
        assert difference.peak[1, j] == pytest.approx(differences[j].peak_below(0.05))
        assert pairs.peak[0, j] == pytest.approx(paired[j].peak_above(0.0))
        assert (low[j], high[j]) == pytest.approx(closed_pairs[j].interval())
        theirs = closed_scores[j].interval()
        assert (score_low[j] + score_high[j]) / 2 == pytest.approx(sum(theirs) / 2)
        assert 0.95 <= (score_high[j] - score_low[j]) / (theirs[1] - theirs[0]) <= 1
        assert latencies[j].units != [0, 0]
        assert latency.peak_slower[j] == pytest.approx(latencies[j].peak_slower)
        for level in (0.5, 0.9):
            assert latency.peak_within(level)[j] == pytest.approx(latencies[j].peak_within(level))


def test_crossings_are_counted_once() -> None:
    crossings = runs.Crossings(3, 1.0)
    assert not crossings.look(np.array([0.0, 2.0, 0.0]))
    assert not crossings.look(np.array([1.0, 2.0, 0.0]))
    assert crossings.at.tolist() == [2.0, 1.0, math.inf]
    assert crossings.median == 2.0
    assert crossings.look(np.array([1.0, 2.0, 3.0]))
