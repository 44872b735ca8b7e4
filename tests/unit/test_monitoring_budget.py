"""The budget of false alarms holds in life: per week or per request, over all signals together,
whatever clock they update on."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from tests import coin

from intonaco.config import Monitoring, Signal
from intonaco.errors import ConfigError
from intonaco.monitoring.monitor import Monitor
from intonaco.monitoring.pace import HOUR, REQUESTS, SAFETY, WEEK, Pace
from intonaco.types import Sample

NOW = 1_700_000_000.0


def asked(signals: int, **settings: float) -> Monitor:
    """A monitor of so many signals that are asked by the clock."""
    signal = Signal(of="python", call="a:b", range=(0, 1), reference=100, every_s=60)
    named = {f"s{i}": signal for i in range(signals)}
    return Monitor("s", Monitoring(signals=named, **settings))  # type: ignore[arg-type]


def weeks(signals: int, worlds: int, *, per_week: float, every: float, seed: int) -> int:
    """Alarms in so many weeks, each begun anew, of signals whose detectors fire by chance, at just
    the rate that they are allowed. Traffic doubles by day."""
    signal = Signal(
        of="python", call="a:b", range=(0, 1), reference=50, detector="tests.coin:Coin.of"
    )
    config = Monitoring(
        signals={f"s{i}": signal for i in range(signals)}, false_alarms_per_week=per_week
    )
    coin.RANDOM.seed(seed)
    alarms = 0
    for _ in range(worlds):
        monitor, at = Monitor("s", config), NOW
        while at < NOW + WEEK:
            by_day = (at % 86_400) > 43_200
            at += every / 2 if by_day else every
            for i in range(signals):
                alarms += len(monitor.take(Sample(signal=f"s{i}", at=at, value=0.5)))
    return alarms


def most(mean: float) -> int:
    """What a Poisson count of that mean exceeds with probability under 1 in 1,000."""
    k, term = 0, math.exp(-mean)
    total = term
    while 1.0 - total > 1e-3:
        k += 1
        term *= mean / k
        total += term
    return k


@pytest.mark.parametrize(("signals", "worlds"), [(1, 80), (4, 30), (100, 2)])
def test_adding_signals_does_not_add_alarms(signals: int, worlds: int) -> None:
    """The budget is one alarm in two weeks, whether of one signal or of a hundred."""
    alarms = weeks(signals, worlds, per_week=0.5, every=1800, seed=signals)
    assert alarms <= most(0.5 * worlds)


@pytest.mark.slow
@pytest.mark.parametrize(("signals", "worlds"), [(1, 600), (4, 200), (100, 20)])
def test_the_weekly_budget_over_many_worlds(signals: int, worlds: int) -> None:
    alarms = weeks(signals, worlds, per_week=0.5, every=1800, seed=1000 + signals)
    assert 0.02 * worlds < alarms <= most(0.5 * worlds)  # kept, and not thrown away


@pytest.mark.parametrize("signals", [1, 4, 100])
def test_thresholds_share_the_budget(signals: int) -> None:
    """What all e-detectors together are allowed a week is the budget at most."""
    monitor = asked(signals, false_alarms_per_week=2)
    for step in range(150):
        for i in range(signals):
            monitor.take(Sample(signal=f"s{i}", at=NOW + 600 * step, value=0.5))
    allowed = sum(WEEK / 600 / math.exp(s.threshold) for s in monitor.status())
    assert 0.5 < allowed <= 2.0


def test_a_weekly_budget_becomes_updates_by_the_measured_pace() -> None:
    monitor = asked(4, false_alarms_per_week=2)
    for step in range(300):
        monitor.take(Sample(signal="s0", at=NOW + 60 * step, value=0.5))
    per_week = WEEK / 60
    found = next(s for s in monitor.status() if s.signal == "s0").threshold
    exact = math.log(per_week / 2 * 4)  # updates a week over this signal's share of the alarms
    assert exact < found < exact + math.log(SAFETY) + 0.3


def test_a_busier_time_raises_the_threshold_and_a_quieter_one_does_not_lower_it() -> None:
    monitor = asked(1, false_alarms_per_week=1)
    at = NOW

    def updates(count: int, every: float) -> float:
        nonlocal at
        for _ in range(count):
            at += every
            monitor.take(Sample(signal="s0", at=at, value=0.5))
        return monitor.status()[0].threshold

    night = updates(200, 60.0)
    day = updates(4000, 2.0)
    assert day > night + math.log(5)
    assert day >= math.log(WEEK / 2.0)  # 1,800 an hour, for a week
    assert updates(500, 300.0) == day


def test_a_budget_in_requests_holds_for_signals_on_other_clocks() -> None:
    """Ten samples a request: ten times as many updates between false alarms."""
    signal = Signal(of="python", call="a:b", range=(0, 1), reference=100)
    monitor = Monitor("s", Monitoring(requests_between_false_alarms=1000, signals={"x": signal}))
    for step in range(3000):
        monitor.requests += step % 10 == 0
        monitor.take(Sample(signal="x", at=NOW + step, value=0.5))
    found = monitor.status()[0].threshold
    assert math.log(1000 * 10) <= found <= math.log(1000 * 10 * SAFETY * 1.5)


def test_a_budget_in_requests_is_what_it_was_for_signals_of_requests() -> None:
    signals = {"errors": Signal(of="errors"), "latency": Signal(of="latency", weight=3)}
    monitor = Monitor("s", Monitoring(requests_between_false_alarms=1000, signals=signals))
    thresholds = {s.signal: s.threshold for s in monitor.status()}
    assert thresholds["errors"] == pytest.approx(math.log(4000))
    assert thresholds["latency"] == pytest.approx(math.log(4000 / 3))


def test_restored_in_mid_stream_it_is_the_same_to_the_last_digit() -> None:
    rng = np.random.default_rng(5)
    values = [float(v) for v in rng.random(600) < 0.2]
    one = asked(2, false_alarms_per_week=3)
    other = asked(2, false_alarms_per_week=3)
    for i, value in enumerate(values):
        sample = Sample(signal=f"s{i % 2}", at=NOW + 13 * i, value=value)
        one.take(sample)
        other.take(sample)
        if i % 97 == 0:
            state = json.loads(json.dumps(other.state()))
            other = asked(2, false_alarms_per_week=3)
            other.restore(state)
    assert json.dumps(one.state()) == json.dumps(other.state())
    assert [s.threshold for s in one.status()] == [s.threshold for s in other.status()]


def test_another_budget_sets_another_threshold_on_restore() -> None:
    before = asked(1, false_alarms_per_week=1)
    for i in range(200):
        before.take(Sample(signal="s0", at=NOW + 60 * i, value=0.5))
    after = asked(1, false_alarms_per_week=10)
    after.restore(before.state())
    assert after.status()[0].threshold == pytest.approx(
        before.status()[0].threshold - math.log(10), abs=0.06
    )
    per_request = Monitoring(
        signals={"s0": Signal(of="errors", reference=100)}, requests_between_false_alarms=500
    )
    fresh = Monitor("s", per_request)
    weekly = Monitor("s", per_request.model_copy(update={"false_alarms_per_week": 1.0}))
    weekly.restore(fresh.state())  # nobody measured how often it updates: a new reference
    assert not weekly.status()[0].armed


def test_a_detector_without_a_log_threshold_cannot_keep_a_weekly_budget() -> None:
    signals = {"x": Signal(of="errors", detector="periodic")}
    with pytest.raises(ConfigError, match=r"signals\.x: the threshold of periodic"):
        Monitor("s", Monitoring(signals=signals, false_alarms_per_week=1))


def test_pace_of_a_burst_counts_at_once() -> None:
    pace = Pace(between=1000.0, stretch=REQUESTS)
    for _ in range(5000):
        pace.count(7.0)  # no request passes meanwhile
    assert pace.updates_between >= 5000
    assert Pace(WEEK, HOUR).updates_between == 0.0


def test_a_change_is_found_under_a_weekly_budget_and_stays_found() -> None:
    monitor = asked(1, false_alarms_per_week=1)
    rng = np.random.default_rng(3)
    found = []
    for step in range(1500):
        value = float(rng.random() < (0.1 if step < 1000 else 0.5))
        found += monitor.take(Sample(signal="s0", at=NOW + 60 * step, value=value))
    (finding,) = found
    assert 1000 < finding.request < 1100
    assert finding.evidence >= finding.threshold > math.log(WEEK / 60)
    assert monitor.status()[0].firing
