"""The benchmark of sequential tests: peers' rules by hand, bounds, what is drawn."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from sequential import bench, drawing, peers


def _lifetime(bad_minutes: list[int]) -> peers.Array:
    """One rollout: the canary at 1 in these minutes, at 0 in the others, the baseline at 0."""
    minutes = np.zeros((2, 1, peers.MINUTES))
    minutes[0, 0, bad_minutes] = 1.0
    return minutes


def _rolled_back_at(setting: peers.Setting, minutes: peers.Array, limit: float) -> int | None:
    over = setting.evidence(minutes)[0] > limit
    return int(over.argmax()) if over.any() else None


def test_argo_aborts_when_more_than_its_limit_failed_in_all() -> None:
    """`failureLimit: 3` takes the fourth failure, wherever the others were."""
    bad = _lifetime([3, 20, 21, 90])
    assert _rolled_back_at(peers.argo(1, 3), bad, 0.5) == 90
    assert _rolled_back_at(peers.argo(1, 0), bad, 0.5) == 3
    assert _rolled_back_at(peers.argo(1, 5), bad, 0.5) is None
    # In windows of five minutes a bad one is a fifth; two of them, in one window, are two.
    assert _rolled_back_at(peers.argo(5, 0), bad, 0.1) == 4
    assert _rolled_back_at(peers.argo(5, 0), bad, 0.3) == 24


def test_flagger_counts_and_acts_with_the_next_tick() -> None:
    bad = _lifetime([3, 20, 21, 60, 90])
    assert _rolled_back_at(peers.flagger(5), bad, 0.5) == 91
    assert _rolled_back_at(peers.flagger(1), bad, 0.5) == 4
    assert _rolled_back_at(peers.flagger(10), bad, 0.5) is None


def test_kayenta_judges_by_the_hour() -> None:
    rng = np.random.default_rng(0)
    equal = 1 + 0.1 * rng.normal(size=(2, 1, peers.MINUTES))
    worse = equal.copy()
    worse[0] *= 1.5
    assert _rolled_back_at(peers.kayenta(), worse, 1.2) == peers.HOUR - 1
    assert _rolled_back_at(peers.kayenta(), equal, 1.2) is None


def test_rules_are_tuned_to_the_same_false_alarms(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(shift: float) -> peers.Make:
        def lifetimes(runs: int, rng: np.random.Generator) -> peers.Array:
            found = 1 + 0.1 * rng.normal(size=(2, runs, peers.MINUTES))
            found[0] += shift
            return found

        return lifetimes

    monkeypatch.setattr(peers, "SETTINGS", (peers.argo(5, 0), peers.flagger(5)))
    found = peers.judge(make(0.0), make(0.3), make(0.05), runs=200, alpha=0.05, seed=1)
    for one in found:
        # Both the limit and its test are of 800 lifetimes.
        assert one.tuned <= 0.05 + 3 * math.sqrt(2 * 0.05 * 0.95 / 800)
        assert one.drifting > one.tuned
        assert one.requests <= 15 * peers.PER_MINUTE


def test_bounds_are_log_100_over_the_information() -> None:
    by_name = {scenario.name: scenario for scenario in bench.SCENARIOS}
    w, q, p = 0.05, 0.01, 0.02
    theta = w * p / (w * p + (1 - w) * q)
    given_an_error = theta * math.log(theta / w) + (1 - theta) * math.log((1 - theta) / (1 - w))
    nearly = math.log(100) / (given_an_error * (w * p + (1 - w) * q))
    assert bench.bound(by_name["errors_1_2_w5"]) == pytest.approx(nearly, rel=0.02)
    # A shift of d standard deviations seen by a few: d^2 / 2 for each, less a little.
    d = math.log(1.1) / 0.2
    assert 0.05 * bench.bound(by_name["p90_10_w5"]) == pytest.approx(
        math.log(100) / (d**2 / 2), rel=0.1
    )
    assert bench.bound(by_name["score_05"]) == pytest.approx(121, rel=0.02)


def test_a_bad_release_is_caught_within_the_limits() -> None:
    for name in ("p90_20_w50", "score_05"):
        scenario = next(s for s in bench.SCENARIOS if s.name == name)
        most = drawing.limit(name)
        assert most is not None
        assert bench.median_units(scenario, 40) / bench.bound(scenario) <= most


VALUES = {
    "sequential.errors_1_2_w5.requests": 1700.0,
    "sequential.errors_1_2_w5.median_over_bound": 1.35,
    "sequential.errors_1_2_w5.argo.requests": 2380.0,
    "sequential.errors_1_2_w5.requests_over_best_peer": 0.71,
    "sequential.errors_1_2_w5.peer_false_alarms_drift": 0.04,
    "sequential.errors_1_2_w5.drift.requests_over_best_peer": 0.5,
    "sequential.score_05.requests": 158.0,
    "sequential.score_05.median_over_bound": 1.31,
    "sequential.score_05.requests_over_best_peer": 1.1,
    "sequential.score_05.peer_false_alarms_drift": 0.98,
    "sequential.score_05.drift.requests_over_best_peer": 0.2,
    "sequential.errors.type1": 0.0075,
}


def test_the_page_and_the_picture_show_what_was_measured() -> None:
    page = drawing.page(VALUES)
    row = "| 1,700 | 1.35 | 1.6 | 2,380 | — | — | 0.71 | 4 % | 0.50 |"
    assert f"| errors 1 to 2 %, 5 % of traffic {row}" in page
    assert "| errors | 0.0075 |" in page
    text = drawing.pictures(VALUES)["requests.svg"]
    assert ElementTree.fromstring(text).tag.endswith("svg")
    assert "score lower by 0.05" in text
    assert drawing.pictures({"sequential.errors.type1": 0.1}) == {}
