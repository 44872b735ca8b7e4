"""Rates, quantiles, and what all detectors of scalars share. Seeded simulations; the budget of each
is one false alarm in A updates, and alarms are counted against the 5 % point of the Poisson
distribution with the mean that it allows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from intonaco.config import DetectorChoice
from intonaco.errors import ConfigError
from intonaco.monitoring.detectors import (
    DetectorSettings,
    MeanDetector,
    QuantileDetector,
    RateDetector,
    resolve,
)
from intonaco.monitoring.detectors.ratios import Ratios
from intonaco.monitoring.detectors.scalar import ScalarDetector
from intonaco.protocols import Detector
from intonaco.testing.detectors import check_detector
from intonaco.testing.scalars import Found, built_in, figures, keeps, measure, table
from intonaco.testing.streams import scalar

A = 2_000
THRESHOLD = math.log(A)
KINDS: tuple[type[ScalarDetector], ...] = (MeanDetector, RateDetector, QuantileDetector)
Values = np.ndarray[Any, np.dtype[np.float64]]
Draw = Callable[[np.random.Generator, int], Values]

SHAPES: dict[str, Draw] = {
    "normal": lambda r, n: r.standard_normal(n),
    "80 %": lambda r, n: (r.random(n) < 0.8).astype(float),
    "2 in 1,000": lambda r, n: (r.random(n) < 0.002).astype(float),
    "lognormal": lambda r, n: np.exp(r.standard_normal(n)),
    "Cauchy": lambda r, n: r.standard_cauchy(n),
    "whole numbers": lambda r, n: np.round(r.gamma(2, 1, n)),
}
CONTINUOUS = ("normal", "lognormal", "Cauchy", "whole numbers")


def first_alarm(detector: Detector, values: Sequence[float] | Values) -> int | None:
    return next((i + 1 for i, x in enumerate(values) if detector.update(x)), None)


def alarms(kind: type[ScalarDetector], draw: Draw, reference: int, runs: int) -> tuple[int, int]:
    """Alarms and updates while armed; a run of 3,000 ends with its alarm."""
    found = updates = 0
    r = np.random.default_rng([1, reference])
    for _ in range(runs):
        detector = kind(threshold=THRESHOLD, reference=reference)
        values = draw(r, reference + 3_000)
        fired = first_alarm(detector, values.tolist())
        found += fired is not None
        updates += (fired or len(values)) - reference
    return found, updates


@pytest.mark.parametrize(
    ("kind", "shape", "reference"),
    [
        (MeanDetector, "normal", 50),
        (MeanDetector, "Cauchy", 300),
        (RateDetector, "80 %", 50),
        (RateDetector, "2 in 1,000", 300),
        (QuantileDetector, "lognormal", 50),
        (QuantileDetector, "whole numbers", 300),
    ],
)
def test_keeps_its_budget_whatever_shape_and_reference(
    kind: type[ScalarDetector], shape: str, reference: int
) -> None:
    found, updates = alarms(kind, SHAPES[shape], reference, runs=10)
    assert keeps(found, updates / A), (found, updates)


@pytest.mark.slow
@pytest.mark.parametrize("reference", [50, 300, 2_000])
@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        *((kind, shape) for kind in (MeanDetector, QuantileDetector) for shape in CONTINUOUS),
        *((RateDetector, shape) for shape in ("80 %", "2 in 1,000")),
        (MeanDetector, "80 %"),
    ],
)
def test_keeps_its_budget_in_full(kind: type[ScalarDetector], shape: str, reference: int) -> None:
    found, updates = alarms(kind, SHAPES[shape], reference, runs=80)
    assert keeps(found, updates / A), (found, updates)


def test_the_mean_of_an_e_value_is_one_at_each_place() -> None:
    """Exactly, over all orders of the values, even of a tiny reference: the property behind it."""
    r = np.random.default_rng(0)
    values = np.exp(r.standard_normal(30))
    bets = np.stack([1.0 + values, 1.0 + 3.0 * (values > 1)], axis=1)
    highest = np.zeros(2)  # without the pseudo value the mean is 1, with it less
    at_place = []
    for _ in range(4_000):
        shuffled = bets[r.permutation(30)]
        ratios = Ratios(highest)
        ratios.learn(shuffled[:22], np.zeros(22, dtype=np.int64))
        e = [ratios.e(row, row) for row in shuffled[22:]]
        at_place.append(np.prod(e, axis=0))
    error = np.std(at_place, axis=0) / math.sqrt(len(at_place))
    count = np.arange(23, 31)
    lost = float(np.prod((count + 1) / count))  # the pseudo value counts but is worth nothing here
    assert np.all(np.abs(np.mean(at_place, axis=0) / lost - 1.0) < 4 * error)


@pytest.mark.parametrize(
    ("kind", "worst_median"),
    [("clip_01", 270), ("thumb_70", 250), ("latency_15", 60), ("latency_tail", 260)],
)
def test_delay(kind: str, worst_median: int) -> None:
    found = measure(kind, seeds=14, reference=2_000, events=4_000)
    assert np.median(found.delays) <= worst_median
    assert found.misses == 0
    assert keeps(found.false_alarms, found.null_events / 10_000)


@pytest.mark.slow
@pytest.mark.parametrize("reference", [2_000, 10_000])
def test_the_whole_table(reference: int) -> None:
    found = table(reference=reference)
    assert all(f.kept for f in found.values())
    delays = figures(found)
    assert delays["scalar.clip_01.median_delay"] <= 270
    assert delays["scalar.thumb_70.median_delay"] <= 250
    assert delays["scalar.latency_15.median_delay"] <= 60
    assert delays["scalar.latency_tail.median_delay"] <= 260


def test_figures_have_the_names_that_are_published() -> None:
    one = Found(delays=(3, 5), false_alarms=1, null_events=20_000)
    kinds = ("clip_01", "thumb_70", "latency_15", "latency_tail")
    nulls = ("clip_null", "thumb_null", "latency_null")
    assert figures(dict.fromkeys([*kinds, *nulls], one)) == {
        **{f"scalar.{k}.median_delay": 4.0 for k in kinds},
        **{f"scalar.{k}.alarms_per_10k": 0.5 for k in nulls},
    }
    assert keeps(14, 20.0)
    assert keeps(28, 20.0)
    assert not keeps(29, 20.0)
    assert built_in("clip_null", 100).threshold == pytest.approx(math.log(10_000))


def test_errors_from_a_spotless_reference() -> None:
    """None among 2,000: a single error is no news, nor are some within the tolerance; one in fifty
    is."""

    def detector(tolerance: float = 0.0) -> RateDetector:
        made = RateDetector(threshold=math.log(20_000), reference=2_000, tolerance=tolerance)
        made.update_many(np.zeros(2_000))
        return made

    r = np.random.default_rng(1)
    one = detector()
    assert first_alarm(one, [0.0] * 2_000 + [1.0]) is None
    assert not detector(0.01).update_many((r.random(5_000) < 0.01).astype(float))
    fired = [first_alarm(detector(), (r.random(2_000) < 0.02).astype(float)) for _ in range(9)]
    assert None not in fired
    assert np.median([f for f in fired if f]) <= 300


def test_latency_is_told_apart_by_what_changed() -> None:
    leading = {}
    for kind in ("latency_15", "latency_tail"):
        values, change = scalar(kind, 3_000, seed=2, change_at=1_500)
        assert change is not None
        detector = QuantileDetector(threshold=math.log(10_000), reference=1_000)
        assert first_alarm(detector, values) is not None
        assert abs(detector.since - change) < 200
        assert sum(detector.shares().values()) == pytest.approx(1.0)
        leading[kind] = next(iter(detector.shares()))
    assert leading == {"latency_15": "up level", "latency_tail": "up tail"}


def test_scale_and_units_do_not_matter() -> None:
    values, _ = scalar("clip_02", 2_500, seed=4, change_at=1_500)
    fired = set()
    for scale in (1.0, 1e-3, 250.0):
        detector = MeanDetector(threshold=THRESHOLD, reference=1_000)
        fired.add(first_alarm(detector, values * scale))
    assert len(fired) == 1
    assert None not in fired
    seconds, _ = scalar("latency_15", 2_500, seed=4, change_at=1_500)
    raw, log = (QuantileDetector(threshold=THRESHOLD, reference=1_000) for _ in range(2))
    assert abs((first_alarm(raw, seconds) or 0) - (first_alarm(log, np.log(seconds)) or 0)) <= 2


@pytest.mark.parametrize(
    ("kind", "shift", "tolerance"),
    [(MeanDetector, 0.1, 0.12), (RateDetector, 0.1, 0.12), (QuantileDetector, 0.2, 0.25)],
)
def test_tolerance_and_direction(
    kind: type[ScalarDetector], shift: float, tolerance: float
) -> None:
    def fires(direction: Any, by: float, tolerance: float = 0.0) -> bool:
        r = np.random.default_rng(7)

        def draw(n: int, moved: float) -> Values:
            if kind is RateDetector:
                return (r.random(n) < 0.5 + moved).astype(float)
            if kind is MeanDetector:
                return r.normal(0.5 + moved, 0.1, n)
            return np.asarray(np.exp(r.normal(1.0, 0.2, n)) * (1.0 + moved))

        detector = kind(
            threshold=THRESHOLD, reference=1_000, direction=direction, tolerance=tolerance
        )
        detector.update_many(draw(1_000, 0.0))
        return detector.update_many(draw(600, by))

    assert fires("up", shift)
    assert not fires("up", -shift)
    assert fires("down", -shift)
    assert not fires("down", shift)
    assert fires("both", shift)
    assert fires("both", -shift)
    assert not fires("both", shift, tolerance)


def test_seasons_take_a_daily_swing_for_what_it_is() -> None:
    r = np.random.default_rng(3)
    n = 3 * 2_000  # three days, 2,000 values each
    at = np.arange(2 * n) * (86_400.0 / 2_000)
    swing = 0.04 * np.sin(2 * np.pi * at / 86_400.0)
    values = 0.3 + swing + 0.04 * r.standard_normal(2 * n)
    fired = {}
    for seasons in (1, 24):
        detector = MeanDetector(threshold=math.log(20_000), reference=n, seasons=seasons)
        for x, t in zip(values, at, strict=True):
            detector.update(x, at=float(t))
        fired[seasons] = detector.drift_detected
    assert fired == {1: True, 24: False}
    fell = MeanDetector(threshold=math.log(20_000), reference=n, seasons=24)
    for number, (x, t) in enumerate(zip(values, at, strict=True)):
        fell.update(x - 0.02 * (number >= n + 500), at=float(t))
        if fell.drift_detected:
            assert n + 500 < number < n + 800
            break
    assert fell.drift_detected
    fell.reset()
    with pytest.raises(ConfigError, match="no `at`"):
        fell.update(0.3)


def test_values_that_are_not_finite_change_nothing_but_the_count() -> None:
    one, two = (MeanDetector(threshold=THRESHOLD, reference=50) for _ in range(2))
    values = np.random.default_rng(0).normal(size=200).tolist()
    one.update_many(values)
    for x in values:
        two.update(x)
        two.update(math.nan)
        two.update(-math.inf)
    assert one.evidence == two.evidence
    assert two.updates == 600


QUIET: dict[str, tuple[list[Any], list[Any]]] = {
    "e-mean": (
        np.random.default_rng(0).normal(0.3, 0.04, 500).tolist(),
        np.random.default_rng(1).normal(0.2, 0.04, 200).tolist(),
    ),
    "e-rate": (
        (np.random.default_rng(0).random(500) < 0.1).astype(float).tolist(),
        (np.random.default_rng(1).random(200) < 0.8).astype(float).tolist(),
    ),
    "e-quantile": (
        np.random.default_rng(0).lognormal(1.0, 0.3, 500).tolist(),
        np.random.default_rng(1).lognormal(2.0, 0.3, 200).tolist(),
    ),
    "periodic": ([0.5] * 500, [0.5] * 600),
    "stratified": (
        np.random.default_rng(0).normal(0.3, 0.04, 500).tolist(),
        np.random.default_rng(1).normal(0.1, 0.04, 200).tolist(),
    ),
}


@pytest.mark.parametrize("name", QUIET)
def test_built_ins_follow_the_protocol(name: str) -> None:
    quiet, moved = QUIET[name]
    choice: str | DetectorChoice = name
    if name == "stratified":
        choice = DetectorChoice(name=name, options={"topics": 1, "fewest": 20})
    settings = DetectorSettings(requests_between_false_alarms=1_000, reference=200)

    def make() -> Detector:
        return resolve(choice)[1](settings)

    assert isinstance(make(), Detector)
    if name == "stratified":  # the moved values come with a topic, which must not be a new one
        moved = [*quiet, *moved]
    check_detector(make, quiet, moved)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seasons", [1, 6])
def test_restored_goes_on_exactly_at_any_point(kind: type[ScalarDetector], seasons: int) -> None:
    values, _ = scalar("thumb_60" if kind is RateDetector else "latency_15", 900, 1, 600)
    for cut in (0, 100, 300, 301, 650, 800):
        one, two = (kind(threshold=THRESHOLD, reference=300, seasons=seasons) for _ in range(2))
        for number, x in enumerate(values[:cut]):
            one.update(x, at=number * 997.0)
        two.restore(json.loads(json.dumps(one.state())))
        for number, x in enumerate(values[cut:], cut):
            assert one.update(x, at=number * 997.0) == two.update(x, at=number * 997.0)
            assert one.evidence == two.evidence
        assert one.since == two.since
        assert one.value == two.value
        assert json.dumps(one.state()) == json.dumps(two.state())


def test_state_is_small_once_armed() -> None:
    for kind in KINDS:
        detector = kind(threshold=1e9, reference=2_000)
        detector.update_many(scalar("latency_null", 2_500, seed=1)[0])
        assert len(json.dumps(detector.state())) < 8_000


def test_evidence_stays_finite_without_an_alarm() -> None:
    detector = RateDetector(threshold=math.inf, reference=100)
    detector.update_many([0.0] * 100 + [1.0] * 3_000)
    assert detector.evidence > 100
    assert math.isfinite(detector.statistic)
