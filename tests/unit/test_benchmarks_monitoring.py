"""The benchmark of monitoring: parts, peers and what is drawn of their figures."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from intonaco.monitoring.detectors.river import RiverDetector
from intonaco.testing import drift
from intonaco.testing.streams import World

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import parts
from monitoring import bench, peers, tables

VALUES = {
    "drift.new10.median_delay": 67.0,
    "drift.null_iid.alarms_per_10k": 0.0,
    "drift.peers.intonaco.null_iid.alarms_per_10k": 0.0,
    "drift.peers.intonaco.new10.median_delay": 70.0,
    "drift.peers.intonaco.new50.median_delay": 8.0,
    "drift.peers.intonaco.us_per_event": 17.0,
    "drift.peers.river_x.null_iid.alarms_per_10k": 12.0,
    "drift.peers.river_x.new10.misses": 4.0,
    "scalar.peers.river_x.clip_01.median_delay": 500.0,
    "policy.cost_over_oracle": 1.2,
}


def test_parts_are_chosen_and_one_that_fails_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken() -> dict[str, float]:
        raise OSError("no disk")

    monkeypatch.setattr(bench, "PARTS", {"a": lambda: {"a.x": 1.0}, "b": broken})
    with pytest.raises(parts.Incomplete) as found:
        bench.run()
    assert (found.value.values, found.value.failed) == ({"a.x": 1.0}, ("b",))
    monkeypatch.setenv("MONITORING_PARTS", "a")
    with pytest.raises(parts.Incomplete) as found:
        bench.run()
    assert (found.value.values, found.value.failed) == ({"a.x": 1.0}, ())
    monkeypatch.setenv("MONITORING_PARTS", "c")
    with pytest.raises(ValueError, match="no 'c'; known: a, b"):
        bench.run()


def test_what_is_not_installed_is_told_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    assert len(peers.missing()) == 3
    assert "pip install 'intonaco[river]'" in peers.missing()[0]
    assert [peer.name for peer in peers.VECTOR_PEERS if peer.installed] == [peers.OURS]
    assert bench.beside() == {}


def test_novelty_is_high_for_a_new_topic_and_standard_before() -> None:
    stream = World(3).stream("new50", 3_000, 1, change_at=2_000)
    projections = peers.Projections(stream.x[:2_000])
    novelty = projections.of("novelty", stream.x)
    assert abs(novelty[:2_000].mean()) < 0.05
    assert abs(novelty[:2_000].std() - 1.0) < 0.05
    new = stream.topic == 40
    assert novelty[new].mean() > novelty[:2_000].mean() + 2.0
    pc1 = projections.of("pc1", stream.x)
    assert pc1.shape == (3_000,)
    assert np.var(pc1[:2_000]) > np.var(stream.x[:2_000], axis=0).max()


class Steps:
    """Up once three values above 2 were seen; the shape of a detector of a library."""

    def __init__(self) -> None:
        self.seen = 0

    def update(self, x: float) -> None:
        self.seen += x > 2.0

    @property
    def drift_detected(self) -> bool:
        return self.seen >= 3


def test_a_peer_is_judged_on_the_streams_that_ours_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(peer: peers.Peer) -> RiverDetector:
        return RiverDetector(
            name=peer.name, make=Steps, reference=peer.reference, journal=peers.JOURNAL
        )

    peer = peers.Peer(name="steps", detector="steps", sees="novelty", reference=20)
    monkeypatch.setattr(peers, "VECTOR_PEERS", (peer,))
    monkeypatch.setattr(peers, "make", make)
    monkeypatch.setattr(drift, "WEEK", 4_000)
    streams = peers.Streams(worlds=(3,), seeds=(0,), null_events=500, kinds=("null_iid", "new50"))
    found = peers.run_part(streams, 3, "iid")
    figures = peers.vector_figures(found)
    assert found["steps"]["null_iid"].null_events == 500
    assert figures["drift.peers.steps.null_iid.alarms_per_10k"] > 0
    assert figures["drift.peers.steps.new50.median_delay"] < 50
    assert figures["drift.peers.steps.streams"] == 2


def test_the_page_shows_what_was_measured_and_no_more() -> None:
    page = tables.page(VALUES)
    assert "| new10 | 67 | 290 |" in page
    assert "| **ours** (0) | 0 |" in page
    assert "| river x (0) | 12 |" in page
    assert "| policy.cost_over_oracle | 1.2 |" in page
    assert "not rerun" in page
    alone = tables.page({"policy.cost_over_oracle": 1.2})
    assert "side by side" not in alone
    assert tables.pictures({"policy.cost_over_oracle": 1.2}) == {}


def test_pictures_are_small_and_whole() -> None:
    drawn = tables.pictures(VALUES)
    assert set(drawn) == {"delay.svg", "alarms.svg"}
    for text in drawn.values():
        assert ElementTree.fromstring(text).tag.endswith("svg")
        assert len(text) < 100_000
    assert "river x" in drawn["alarms.svg"]
