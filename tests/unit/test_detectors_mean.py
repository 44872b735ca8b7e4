"""The detector of the mean, the mixture under it, the null baseline, and names."""

from __future__ import annotations

import doctest
import importlib
import json
import math

import numpy as np
import pytest

from intonaco.errors import ConfigError
from intonaco.monitoring.detectors import (
    DetectorSettings,
    MeanDetector,
    PeriodicDetector,
    check_name,
    resolve,
)
from intonaco.monitoring.detectors.settings import Direction
from intonaco.testing.detectors import check_detector
from intonaco.testing.streams import scalar

A = 2_000
THRESHOLD = math.log(A)


def first_alarm(detector: MeanDetector, values: np.ndarray) -> int | None:
    return next((i + 1 for i, x in enumerate(values) if detector.update(x)), None)


@pytest.mark.parametrize(
    ("kind", "direction"), [("clip_null", "down"), ("thumb_null", "both"), ("thumb_null", "down")]
)
def test_keeps_its_false_alarm_rate(kind: str, direction: Direction) -> None:
    alarms, updates = 0, 0
    for seed in range(20):
        values, _ = scalar(kind, 3_000, seed=seed)
        detector = MeanDetector(threshold=THRESHOLD, reference=300, direction=direction)
        fired = first_alarm(detector, values)
        alarms += fired is not None
        updates += (fired or 3_000) - 300
    # at most 54,000 updates, 27 alarms allowed: 36 are seen with a chance of 5 %. A run ends with
    # its alarm
    assert alarms <= 35 * updates / 54_000


def test_a_small_reference_does_not_break_the_guarantee() -> None:
    """A mean of 200 values, kept as it is, needs a slack or half of these runs end in an alarm. The
    growing one needs none."""
    alarms = 0
    for seed in range(12):
        values, _ = scalar("thumb_null", 3_000, seed=seed)
        detector = MeanDetector(threshold=math.log(20_000), reference=200)
        alarms += first_alarm(detector, values) is not None
    assert alarms <= 3  # 1.7 allowed in the mean


@pytest.mark.parametrize(
    ("kind", "direction", "worst"),
    [("clip_02", "down", 250), ("thumb_60", "down", 250), ("thumb_60", "both", 300)],
)
def test_delay(kind: str, direction: Direction, worst: int) -> None:
    delays, begins = [], []
    for seed in range(8):
        values, change = scalar(kind, 4_000, seed=seed, change_at=1_500)
        assert change is not None
        detector = MeanDetector(threshold=THRESHOLD, reference=1_000, direction=direction)
        fired = first_alarm(detector, values)
        assert fired is not None
        assert fired > change
        delays.append(fired - change)
        begins.append(detector.since - change)
    assert max(delays) <= worst
    assert abs(np.median(begins)) <= 40


def test_direction_and_tolerance() -> None:
    def fires(direction: Direction, shift: float, tolerance: float = 0.0) -> bool:
        r = np.random.default_rng(7)
        detector = MeanDetector(
            threshold=THRESHOLD, reference=400, direction=direction, tolerance=tolerance
        )
        detector.update_many(r.normal(0.5, 0.05, 400))
        return detector.update_many(r.normal(0.5 + shift, 0.05, 400))

    assert fires("up", 0.1)
    assert not fires("up", -0.1)
    assert fires("down", -0.1)
    assert not fires("down", 0.1)
    assert fires("both", 0.1)
    assert fires("both", -0.1)
    assert not fires("both", 0.1, tolerance=0.12)


def test_restored_goes_on_exactly() -> None:
    values, _ = scalar("thumb_60", 1_200, seed=1, change_at=800)
    for cut in (0, 100, 300, 850):
        one, two = (MeanDetector(threshold=THRESHOLD, reference=300) for _ in range(2))
        one.update_many(values[:cut])
        two.restore(json.loads(json.dumps(one.state())))
        for x in values[cut:]:
            assert one.update(x) == two.update(x)
            assert one.evidence == two.evidence
        assert one.state() == two.state()


@pytest.mark.parametrize("direction", ["down", "both"])
def test_follows_the_protocol(direction: Direction) -> None:
    r = np.random.default_rng(0)

    def make() -> MeanDetector:
        return MeanDetector(threshold=THRESHOLD, reference=200, direction=direction)

    check_detector(make, list(r.uniform(0.6, 0.9, 400)), list(r.uniform(0.3, 0.6, 200)))


def test_baseline_follows_the_protocol() -> None:
    check_detector(lambda: PeriodicDetector(every=30), [0.5] * 20, [0.5] * 20)


def test_names() -> None:
    settings = DetectorSettings(requests_between_false_alarms=100, reference=40)
    built = {
        stream: type(resolve("auto", stream=stream)[1](settings)).__name__
        for stream in ("vector", "bounded", "rate", "positive")
    }
    assert built == {
        "vector": "EmbeddingDetector",
        "bounded": "MeanDetector",
        "rate": "RateDetector",
        "positive": "QuantileDetector",
    }
    name, factory = resolve("auto", stream="rate", given_topic=True)
    assert name == "stratified(of=e-rate)"
    assert type(factory(settings)).__name__ == "StratifiedDetector"
    name, factory = resolve("periodic")
    assert (name, factory(settings).threshold) == ("periodic", 100.0)
    own = "intonaco.monitoring.detectors.mean:MeanDetector.of"
    assert isinstance(resolve(own)[1](settings), MeanDetector)


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"monitoring\.x\.detector.*e-mean, e-quantile, .*river:NAME"
    ):
        check_name("e-detecter", "monitoring.x.detector")
    check_name("auto", "monitoring.x.detector")


@pytest.mark.parametrize(
    "module", ["embedding", "mean", "periodic", "quantile", "rate", "stratified"]
)
def test_examples_in_the_docs_run(module: str) -> None:
    found = importlib.import_module(f"intonaco.monitoring.detectors.{module}")
    result = doctest.testmod(found)
    assert result.attempted > 0
    assert result.failed == 0
