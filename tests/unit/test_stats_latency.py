"""The latency test: ranks, exact expectations, state; simulations are in test_stats_type1.py."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intonaco.errors import StorageError
from intonaco.stats import LatencyTest
from intonaco.stats.latency import CLASSES, KEPT, NEEDED, POWERS, ChampionTimes

times = st.lists(st.floats(0.0625, 128.0, width=32), min_size=1, max_size=60)


def test_ranks_are_mid_ranks_and_need_enough() -> None:
    known = ChampionTimes(needed=4, kept=5)
    for seconds in (1.0, 2.0, 2.0):
        known.learn(seconds, "a")
    assert known.rank(2.0, "a") is None
    known.learn(4.0, "a")
    assert known.rank(2.0, "a") == pytest.approx((1 + 3) / 8)
    assert known.rank(0.5, "a") == 0
    assert known.rank(9.0, "a") == 1
    assert known.rank(9.0, "b") is None


def test_only_the_last_are_kept() -> None:
    known = ChampionTimes(needed=1, kept=3)
    for seconds in (9.0, 1.0, 2.0, 3.0):
        known.learn(seconds, "a")
    assert known.rank(5.0, "a") == 1
    for i in range(CLASSES + 5):
        known.learn(1.0, str(i))
    assert known.rank(1.0, str(CLASSES + 1)) is None


@settings(max_examples=60, deadline=None)
@given(times, times)
def test_ranks_never_fall_with_the_time(known: list[float], asked: list[float]) -> None:
    ranks = ChampionTimes(needed=1, kept=20)
    for seconds in known:
        ranks.learn(seconds, "")
    found = [ranks.rank(seconds, "") for seconds in sorted(asked)]
    assert found == sorted(found, key=lambda r: -1.0 if r is None else r)
    recent = [float(np.float32(s)) for s in known[-20:]]
    for seconds in asked:
        below = sum(s < seconds for s in recent) + sum(s <= seconds for s in recent)
        assert ranks.rank(seconds, "") == pytest.approx(below / (2 * len(recent)))


def _warm(test: LatencyTest, rng: np.random.Generator, kinds: tuple[str, ...] = ("",)) -> None:
    for _ in range(KEPT):
        for kind in kinds:
            test.learn(float(np.exp(0.2 * rng.normal())), kind)


@pytest.mark.parametrize("tolerance", [0.0, 0.15])
@pytest.mark.parametrize("w", [0.05, 0.5])
def test_the_next_factor_is_fair_on_average_at_the_nulls_edge(tolerance: float, w: float) -> None:
    """The mean over arm and time of what a unit makes of the evidence, by enumeration of times: at
    most 1 for times that are just ``1 + tolerance`` times as long, whatever was seen before."""
    rng = np.random.default_rng(1)
    stored, before = None, 0.0
    for warm in (0, 25):
        made = LatencyTest(tolerance)
        _warm(made, rng)
        for _ in range(warm):
            made.take(
                float(np.exp(0.2 * rng.normal())), challenger=bool(rng.random() < w), weight=w
            )
        stored, before = made.state(), made.log_evidence_slower
        mean = 0.0
        asked = np.exp(0.2 * np.random.default_rng(2).normal(size=12))
        for seconds in asked:
            for challenger, chance in ((True, w), (False, 1 - w)):
                test = LatencyTest(tolerance)
                test.restore(json.loads(json.dumps(stored)))
                # A hair less: division may round a scaled time above the one it came from.
                scaled = seconds * (1 + tolerance) * (1 - 1e-12) if challenger else seconds
                test.take(float(scaled), challenger=challenger, weight=w)
                mean += chance * math.exp(test.log_evidence_slower - before) / len(asked)
        assert mean <= 1 + 1e-9


def test_a_slower_challenger_is_found_and_an_equal_one_passes_the_margin() -> None:
    rng = np.random.default_rng(3)
    slow, equal = LatencyTest(), LatencyTest(margin=0.1)
    _warm(slow, rng)
    _warm(equal, rng)
    for _ in range(3000):
        challenger, seconds = bool(rng.random() < 0.5), float(np.exp(0.2 * rng.normal()))
        slow.take(seconds * (1.2 if challenger else 1.0), challenger=challenger, weight=0.5)
        equal.take(seconds, challenger=challenger, weight=0.5)
        if not challenger:
            slow.learn(seconds)
            equal.learn(seconds)
    assert slow.peak_slower > math.log(1e6)
    assert equal.peak_slower < math.log(1000)
    for level in (0.5, 0.9):
        assert equal.peak_within(level) > math.log(100)
        assert equal.log_evidence_within(level) <= equal.peak_within(level)
        assert slow.peak_within(level) < math.log(100)
        assert equal.peak_faster(level) < math.log(100)
    assert equal.components_slower.size == len(POWERS) * 5
    assert equal.components_within(0.5).size == 5


def test_a_faster_challenger_is_superior_at_every_level() -> None:
    rng = np.random.default_rng(8)
    test = LatencyTest()
    _warm(test, rng)
    for _ in range(1500):
        challenger, seconds = bool(rng.random() < 0.5), float(np.exp(0.2 * rng.normal()))
        test.take(seconds * (0.8 if challenger else 1.0), challenger=challenger, weight=0.5)
    for level in (0.5, 0.9):
        assert test.log_evidence_faster(level) > math.log(100)
        assert test.peak_faster(level) >= test.log_evidence_faster(level)


def test_a_rare_slow_tail_is_found() -> None:
    """One answer in twenty takes three times as long: no median moves."""
    rng = np.random.default_rng(4)
    test = LatencyTest()
    _warm(test, rng)
    for _ in range(3000):
        challenger, seconds = bool(rng.random() < 0.5), float(np.exp(0.2 * rng.normal()))
        slow = 3.0 if challenger and rng.random() < 0.05 else 1.0
        test.take(seconds * slow, challenger=challenger, weight=0.5)
        if not challenger:
            test.learn(seconds)
    assert test.peak_slower > math.log(100)


def test_classes_are_never_compared_with_each_other() -> None:
    """The challenger gets the slow class, the champion the quick one: nothing follows."""
    rng = np.random.default_rng(5)
    test = LatencyTest()
    for _ in range(NEEDED):
        test.learn(1.0, "small")
        test.learn(10.0, "large")
    for _ in range(300):
        challenger = bool(rng.random() < 0.5)
        kind, seconds = ("large", 10.0) if challenger else ("small", 1.0)
        test.take(seconds, challenger=challenger, weight=0.5, request_class=kind)
    assert test.peak_slower < math.log(20)


def test_what_says_nothing() -> None:
    test = LatencyTest()
    assert not test.take(1.0, challenger=True, weight=0.5)  # nothing to compare with
    _warm(test, np.random.default_rng(6))
    assert not test.take(1.0, challenger=True, weight=1.0)
    assert not test.take(1.0, challenger=True, weight=0.5, request_class="new")
    assert test.units == [0, 0]
    assert test.take(1.0, challenger=True, weight=0.5)
    assert test.units == [0, 1]
    for seconds, weight in ((1.0, 2.0), (-1.0, 0.5), (math.inf, 0.5), (math.nan, 0.5)):
        with pytest.raises(ValueError, match="outside"):
            test.take(seconds, challenger=True, weight=weight)


def test_state_restores_bit_for_bit() -> None:
    rng = np.random.default_rng(7)
    one, two = LatencyTest(0.05, margin=0.2), LatencyTest(0.05, margin=0.2)
    for i in range(150):
        seconds, challenger = float(rng.gamma(4)), bool(rng.random() < 0.4)
        kind = "ab"[int(rng.integers(2))]
        for test in (one, two):
            test.take(seconds, challenger=challenger, weight=0.4, request_class=kind)
            test.learn(seconds, kind)
        if i % 40 == 0:
            stored = json.loads(json.dumps(two.state()))
            two = LatencyTest(0.05, margin=0.2)
            two.restore(stored)
    assert one.units != [0, 0]
    assert one.state() == two.state()
    with pytest.raises(StorageError):
        LatencyTest(0.1, margin=0.2).restore(one.state())


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="tolerance"):
        LatencyTest(-0.1)
    with pytest.raises(ValueError, match="levels"):
        LatencyTest(levels=(1.0,))
    with pytest.raises(ValueError, match="needed"):
        LatencyTest(needed=10, kept=5)
