"""Detectors of River and Evidently by name. The adapters' own logic is tested with a small detector
that, like River's, cannot tell its state; the libraries themselves where they are installed."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec

import numpy as np
import pytest

from intonaco.config import DetectorChoice, Signal
from intonaco.errors import ConfigError
from intonaco.monitoring.detectors import DetectorSettings, check_name, resolve
from intonaco.monitoring.detectors.evidently import EvidentlyDetector, WindowTest
from intonaco.monitoring.detectors.river import RiverDetector
from intonaco.protocols import Detector
from intonaco.testing.detectors import check_detector
from intonaco.testing.streams import World, scalar

needs_river = pytest.mark.skipif(find_spec("river") is None, reason="the extra river is missing")
needs_evidently = pytest.mark.skipif(
    find_spec("evidently") is None, reason="the extra evidently is missing"
)


class Level:
    """Up when an exponential mean exceeds a half. Its state is nobody's business."""

    def __init__(self) -> None:
        self.__mean = 0.0

    def update(self, x: float) -> None:
        self.__mean += 0.2 * (x - self.__mean)

    @property
    def drift_detected(self) -> bool:
        return self.__mean > 0.5


def level(reference: int = 10, journal: int = 16) -> RiverDetector:
    return RiverDetector(name="river:Level", make=Level, reference=reference, journal=journal)


def far(reference: np.ndarray, current: np.ndarray) -> bool:
    return bool(abs(reference.mean() - current.mean()) > 0.3)


def windows(*, vectors: bool = False) -> EvidentlyDetector:
    test = WindowTest(name="far", vectors=vectors, drifted=far)
    return EvidentlyDetector(test=test, reference=20, window=5)


def build(choice: str | DetectorChoice, reference: int = 500) -> Detector:
    return resolve(choice)[1](DetectorSettings(reference=reference))


# ------------------------------------------------------------------------------- without libraries


def test_adapters_follow_the_protocol() -> None:
    check_detector(level, [0.0, 0.2] * 15, [1.0] * 40)
    check_detector(windows, [0.0, 0.2] * 15, [1.0] * 40)


def test_a_detector_that_cannot_tell_its_state_is_restored_exactly() -> None:
    values = np.random.default_rng(0).random(90) * 0.9
    for cut in range(0, 90, 7):
        one, two = level(), level()
        one.update_many(values[:cut])
        two.restore(json.loads(json.dumps(one.state())))
        for x in values[cut:]:
            assert one.update(x) == two.update(x)
            assert one.state() == two.state()


def test_a_journal_is_bounded() -> None:
    detector = level(journal=64)
    detector.update_many([0.1] * 100)
    early = len(json.dumps(detector.state()))
    detector.update_many([0.1] * 5_000)
    assert len(json.dumps(detector.state())) <= 1.7 * early


def test_what_it_says_of_its_reference_is_ignored() -> None:
    detector = level(reference=30)
    assert not detector.update_many([1.0] * 30)
    assert detector.evidence == 0.0
    assert detector.update(1.0)
    assert (detector.evidence, detector.threshold) == (1.0, 1.0)


def test_windows_are_compared_when_they_are_full() -> None:
    detector = windows()
    fired = [detector.update(x) for x in [0.0] * 20 + [0.0] * 7 + [1.0] * 8]
    assert fired.index(True) == 29  # three of the second window are of the new level
    assert detector.since == 25


def test_values_that_are_not_a_number_are_left_out() -> None:
    detector = windows()
    detector.update_many([0.0] * 10 + [math.nan] * 5)
    assert not detector.armed
    detector.update_many([0.0] * 10)
    assert detector.armed


def test_scalars_and_vectors_are_told_apart() -> None:
    with pytest.raises(ConfigError, match="takes scalars"):
        windows().update(np.zeros(3))
    with pytest.raises(ConfigError, match="takes vectors"):
        windows(vectors=True).update(0.5)


@pytest.mark.skipif(find_spec("river") is not None, reason="river is installed")
def test_without_the_library_the_error_says_what_to_install() -> None:
    with pytest.raises(ConfigError, match=r"m\.x\.detector: .*river:ADWIN.*extra 'river'") as error:
        check_name("river:ADWIN", "m.x.detector")
    assert "intonaco[river]" in str(error.value.hint)


def test_options_come_from_the_configuration() -> None:
    signal = Signal.model_validate(
        {
            "of": "clip_score",
            "detector": {"name": "stratified", "options": {"of": "e-rate", "topics": 3}},
        }
    )
    name, factory = resolve(signal.detector)
    assert name == "stratified(of=e-rate, topics=3)"
    assert getattr(factory(DetectorSettings()), "topics", None) == 3


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("e-mean", {"zeal": 1}, "options.zeal: e-mean has no such option; known: seasons"),
        ("e-rate", {"seasons": "many"}, "seasons: 1 to 288 parts of a day"),
        ("stratified", {"of": "e-detector"}, "options.of: one of e-mean, e-rate, e-quantile"),
        ("stratified", {"topics": 0}, "topics: a whole number, 1 or more"),
        ("periodic", {"every": 3}, "options.every: periodic has no such option; known: none"),
        ("e-detector", {"z": 1}, "options: e-detector has none"),
    ],
)
def test_wrong_options_are_refused(name: str, options: dict[str, int], complaint: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_name(DetectorChoice.model_validate({"name": name, "options": options}), "detector")
    assert complaint in str(error.value)


# ----------------------------------------------------------------------------------- with libraries


@needs_river
@pytest.mark.parametrize(
    ("name", "options"),
    [("ADWIN", {"delta": 0.002}), ("PageHinkley", {"threshold": 5.0}), ("KSWIN", {})],
)
def test_river_by_name(name: str, options: dict[str, float]) -> None:
    choice = DetectorChoice.model_validate({"name": f"river:{name}", "options": options})
    values, change = scalar("thumb_60", 3_000, seed=1, change_at=1_500)
    assert change is not None
    quiet, moved = values[:1_200].tolist(), [0.0] * 1_000
    if name == "KSWIN":  # it fires on the null itself every few hundred values
        quiet = values[:600].tolist()
    check_detector(lambda: build(choice, reference=len(quiet)), quiet, moved)


@needs_river
def test_river_is_restored_exactly_in_mid_stream() -> None:
    values, _ = scalar("clip_null", 2_500, seed=3)
    for name in ("ADWIN", "PageHinkley", "KSWIN"):
        choice = DetectorChoice(name=f"river:{name}", options={"journal": 800})
        one, two = build(choice, 10_000), build(choice, 10_000)
        one.update_many(values[:1_900])
        two.restore(json.loads(json.dumps(one.state())))
        for x in values[1_900:]:
            assert one.update(x) == two.update(x)
        assert one.state() == two.state()


@needs_river
@pytest.mark.parametrize(
    ("choice", "complaint"),
    [
        ({"name": "river:ADWON"}, "no drift detector 'ADWON'; known: ADWIN"),
        ({"name": "river:ADWIN", "options": {"gamma": 1}}, "options.gamma: river:ADWIN has no"),
        ({"name": "river:ADWIN", "options": {"delta": "x"}}, "refuses them"),
    ],
)
def test_river_says_what_it_has(choice: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        check_name(DetectorChoice.model_validate(choice), "detector")


@needs_river
def test_what_river_has_not_is_refused() -> None:
    factory = resolve("river:ADWIN")[1]
    with pytest.raises(ConfigError, match="river:ADWIN has no direction"):
        factory(DetectorSettings(direction="down"))
    with pytest.raises(ConfigError, match="river:ADWIN has no tolerance"):
        factory(DetectorSettings(tolerance=0.1))


@needs_evidently
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # its own
@pytest.mark.parametrize(("name", "threshold"), [("ks", 1e-4), ("wasserstein", 0.3), ("psi", 0.2)])
def test_evidently_by_name(name: str, threshold: float) -> None:
    values, _ = scalar("latency_null", 1_100, seed=2)
    options = {"window": 200, "threshold": threshold}
    choice = DetectorChoice.model_validate({"name": f"evidently:{name}", "options": options})
    moved = (3.0 * values[:400]).tolist()
    check_detector(lambda: build(choice, reference=600), values[:1_000].tolist(), moved)


@needs_evidently
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # its own
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("distance", {}),
        ("mmd", {"threshold": 0.02}),
        ("model", {"threshold": 0.7}),
        ("ratio", {"component_stattest_threshold": 0.6}),
    ],
)
def test_evidently_on_embeddings(name: str, options: dict[str, float]) -> None:
    world = World(0)
    quiet = list(world.stream("null_iid", 400, seed=1).x[:, :24].astype(float))
    moved = [row + 0.5 for row in quiet[:200]]
    options = {"window": 100, **options}
    choice = DetectorChoice.model_validate({"name": f"evidently:{name}", "options": options})
    check_detector(lambda: build(choice, reference=200), quiet, moved)


@needs_evidently
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # its own
def test_evidently_says_what_it_has() -> None:
    with pytest.raises(ConfigError, match=r"no test 'kss'.*known: distance.*ks, "):
        check_name("evidently:kss", "detector")
    with pytest.raises(ConfigError, match="refuses them"):
        check_name(DetectorChoice(name="evidently:mmd", options={"zeal": 1}), "detector")
    with pytest.raises(ConfigError, match="has no such option; known: feature, threshold, window"):
        check_name(DetectorChoice(name="evidently:ks", options={"zeal": 1}), "detector")
