"""The watch reads each line once, whatever dies in between; what it made of them can be seen."""

from __future__ import annotations

import json
import random
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from tests.opinionated import Voters
from tests.opinionated import at as asked_at
from tests.traffic import NAMES as DIGITS
from tests.traffic import Traffic
from typer.testing import CliRunner

from intonaco import readmodel
from intonaco.cli.main import app as command_line
from intonaco.clock import FakeClock
from intonaco.codec import encode
from intonaco.config import parse
from intonaco.executor import Parts
from intonaco.ledger import Ledger
from intonaco.rollout.analysis import RolloutAnalysis
from intonaco.segment_log import SegmentWriter
from intonaco.types import (
    Arm,
    ArmRole,
    Assessment,
    Feedback,
    Finding,
    Rollout,
    RolloutStatus,
    RolloutStep,
    RoutingTable,
    ScoredRecord,
    StepKind,
    Tally,
    TrafficWindow,
)
from intonaco.watching import Watch
from intonaco.workspace import Workspace

NOW = 1_700_000_000.0
PRIVATE = ("handwritten", "photo", "please", *(f"u{i}" for i in range(80)))
SIGNALS = """
    errors: {of: errors, reference: 50}
    slow: {of: latency, reference: 60}
    broken: {of: refused, reference: 50}
"""


JUDGED = """
  feedback: {mature_after_s: 5}
rollout: {metrics: [errors, feedback]}
"""


class Service:
    """A workspace with two gateways and a scorer that write what they would."""

    def __init__(self, root: Path, signals: str = SIGNALS, more: str = "") -> None:
        root.mkdir(exist_ok=True)
        self.root = root
        text = f"service: digits\nserving: {{hourly_price: 3.6}}\nmonitoring:\n  signals:{signals}"
        (root / "intonaco.yaml").write_text(text + more)
        self.workspace = Workspace(root)
        self.ledger = Ledger.open(self.workspace.ledger, "digits")
        self.clock = FakeClock(NOW)
        self.parts = Parts(
            config=parse(text + more),
            workspace=self.workspace,
            ledger=self.ledger,
            clock=self.clock,
            **dict.fromkeys(
                (
                    "releases",
                    "datasets",
                    "training",
                    "serving",
                    "router",
                    "registry",
                    "tracker",
                    "embed",
                    "probe",
                    "smoke",
                ),
                cast(Any, None),
            ),
        )
        with self.ledger.begin() as tx:
            fence = tx.lease("test", NOW, 1e9)
        assert fence is not None
        self.fence = fence
        self.watch = Watch(self.parts)
        self.records = {
            name: SegmentWriter(self.workspace.records, name) for name in ("gateway", "gateway-1")
        }
        self.tallies = {name: SegmentWriter(self.workspace.tallies, name) for name in self.records}
        self.scores = SegmentWriter(self.workspace.scores, "scorer")
        self.feedback = {
            name: SegmentWriter(self.workspace.feedback, name) for name in ("gateway", "gateway-1")
        }

    def ask(self, item: ScoredRecord, gateway: str = "gateway", *, scored: bool = True) -> None:
        writer = self.records[gateway]
        record = replace(item.record, gateway=gateway, gateway_epoch=writer.epoch, seq=writer.seq)
        writer.append(encode(record))
        if scored:
            self.scores.append(encode(replace(item, record=record)))

    def tally(self, gateway: str, at: float, **counts: Any) -> None:
        writer, records = self.tallies[gateway], self.records[gateway]
        tally = Tally(
            gateway=gateway,
            gateway_epoch=writer.epoch,
            seq=writer.seq,
            service_id="digits",
            at=at,
            record_epoch=records.epoch,
            record_seq=records.seq,
            **({"requests": 0, "failed": 0, "images": 0, "in_flight": 0} | counts),
        )
        writer.append(encode(tally))

    def look(self, seconds: float = 1.0) -> None:
        self.watch.look(self.fence, self.clock.advance(seconds))

    def restart(self) -> None:
        self.watch = Watch(self.parts)

    def findings(self) -> list[Finding]:
        return self.ledger.all(Finding)

    def close(self) -> None:
        for writer in (
            *self.records.values(),
            *self.tallies.values(),
            *self.feedback.values(),
            self.scores,
        ):
            writer.close()
        self.ledger.close()


@pytest.fixture
def service(tmp_path: Path) -> Any:
    made = Service(tmp_path / "svc")
    yield made
    made.close()


def live(root: Path, kills: bool) -> tuple[str, str, list[str]]:
    """Twenty seconds of traffic; the watch is thrown away now and then, with what it had not
    written down."""
    service, traffic = Service(root), Traffic(seed=3)
    traffic.at = NOW
    rng, dice = random.Random(1), random.Random(2)
    for step in range(80):
        for _ in range(rng.randrange(12)):
            service.ask(traffic.ask(failing=0.02, slow=0.05), rng.choice(("gateway", "gateway-1")))
        at = NOW + 0.3 * step
        service.tally(rng.choice(("gateway", "gateway-1")), at, requests=3, refused={"x": 1})
        if kills and dice.random() < 0.4:
            service.watch.look(service.fence, service.clock.now())  # and dies before it is due
            service.restart()
        service.look(0.3)
    service.look(5.0)
    windows = [encode(w) for w in service.ledger.all(TrafficWindow)]
    state = json.dumps(service.watch._state())
    door = json.dumps(service.watch._door_state())
    service.close()
    return state, door, windows


def test_killed_in_mid_stream_everything_is_the_same_to_the_last_digit(tmp_path: Path) -> None:
    whole = live(tmp_path / "whole", kills=False)
    cut = live(tmp_path / "cut", kills=True)
    assert whole[0] == cut[0]
    assert whole[1] == cut[1]
    assert whole[2] == cut[2]
    assert len(whole[2]) >= 3


def test_traffic_is_seen_without_a_scorer_and_by_whoever_asks(service: Service) -> None:
    traffic = Traffic(seed=5)
    traffic.at = NOW
    with service.ledger.begin(fence=service.fence) as tx:
        arm = Arm(
            name="champion",
            role=ArmRole.CHAMPION,
            release=traffic.release,
            urls=("http://127.0.0.1:1", "http://127.0.0.1:2"),
            weight=1.0,
        )
        tx.routing(RoutingTable(service_id="digits", epoch=1, salt="", arms=(arm,)), NOW)
    for i in range(60):
        service.ask(traffic.ask(failing=0.2), ("gateway", "gateway-1")[i % 2], scored=False)
    service.tally("gateway", NOW + 5, requests=30, failed=4, refused={"invalid_json": 7})
    service.look(20.0)
    facts = readmodel.traffic(service.ledger, service.parts.config, service.clock.now())
    assert (facts["requests"], facts["failed"], facts["refused"]) == (60, 4, {"invalid_json": 7})
    whole = next(c for c in facts["cells"] if c["release"] == traffic.release and not c["class"])
    made = whole["outcomes"]["ok"]
    assert made + whole["outcomes"]["error"] == 60
    assert 0.7 < whole["times"]["service"]["p50"] < 1.3
    assert whole["times"]["service"]["p50"] <= whole["times"]["service"]["p99"]
    assert whole["cost_per_image"] == pytest.approx(whole["times"]["device"]["mean"] * 0.001)
    assert facts["capacity"] == pytest.approx(2.0 / whole["times"]["service"]["mean"])
    assert sum(c["images"] for c in facts["course"]) == made
    exposed = readmodel.exposition(service.ledger, service.parts.config, service.clock.now())
    for line in (
        f'intonaco_service_duration_seconds{{release="{traffic.release[:10]}",arm="champion",',
        'intonaco_requests_refused{code="invalid_json"} 7',
        "intonaco_capacity_per_second ",
        'intonaco_drift_evidence_ratio{stream="errors"} 0',
        "intonaco_budget_remaining_ratio 1",
    ):
        assert line in exposed
    ran = CliRunner().invoke(command_line, ["traffic", "--workspace", str(service.root)])
    assert ran.exit_code == 0, ran.output
    said = json.dumps(facts) + exposed + ran.output
    said += "".join(encode(w) for w in service.ledger.all(TrafficWindow))
    assert not [n for n in (*PRIVATE, *DIGITS[2:]) if f'"{n}' in said or f" {n} " in said]


def test_records_that_stop_coming_are_a_finding_once(service: Service) -> None:
    traffic = Traffic(seed=6)
    for _ in range(3):
        service.ask(traffic.ask())
    service.look()
    service.tally("gateway-1", NOW, requests=1, images=1)  # wrote nothing: all is well
    for writer in service.records.values():
        writer.seq += 5  # what it says it wrote lies nowhere
    service.tally("gateway", NOW + 1, requests=5, images=5)
    for _ in range(100):
        service.look()
    assert [f.signal for f in service.findings()] == ["records"]
    assert "no record of them came" in service.findings()[0].text
    service.restart()
    service.look(100.0)
    assert len(service.findings()) == 1


def test_a_line_that_cannot_be_read_is_left_out(service: Service) -> None:
    traffic = Traffic(seed=7)
    service.ask(traffic.ask())
    service.scores.append('{"half": "a line"}')
    service.records["gateway"].append("[]")
    service.tallies["gateway"].append("{}")
    service.ask(traffic.ask())
    service.look()
    service.look()
    assert service.watch.requests == 2
    total = readmodel.traffic(service.ledger, service.parts.config, service.clock.now(), 744)
    assert total["requests"] == 2


def test_windows_over_their_time_are_deleted(service: Service) -> None:
    traffic = Traffic(seed=8)
    traffic.at = NOW
    service.ask(traffic.ask())
    service.look()
    assert {w.level for w in service.ledger.all(TrafficWindow)} == {"minute", "hour", "day"}
    traffic.at = NOW + 3 * 3600
    service.ask(traffic.ask())
    service.look(3 * 3600 + 60)
    kept = [(w.level, w.start > NOW) for w in service.ledger.all(TrafficWindow)]
    assert kept.count(("minute", False)) == 0
    assert kept.count(("hour", False)) == 1


def test_signal_points_do_not_pile_up(service: Service) -> None:
    """Two hours with a point every 10 s, and then a look: of all but the last half hour a point a
    minute is left."""
    with service.ledger.begin() as tx:
        for k in range(720):
            tx.signals(NOW - 7200 + k * 10, [])
    traffic = Traffic(seed=8)
    traffic.at = NOW
    service.ask(traffic.ask())
    service.look()
    at = [when for when, _ in service.ledger.signal_points(limit=10**6)]
    assert len([a for a in at if a >= NOW - 1740]) == 174 + 1
    assert 85 <= len([a for a in at if a < NOW - 1860]) <= 91


def test_polls_reach_the_monitor_and_their_silence_is_told(tmp_path: Path) -> None:
    signals = """
    clock: {of: python, call: "time:time", range: [0, 4.0e+9], every_s: 1}
    gpu: {of: gpu_utilisation, every_s: 1, silent_after_s: 30}
"""
    service = Service(tmp_path / "svc", signals)
    try:
        for _ in range(1000):
            service.look()
            status = {s.signal: s for s in service.watch.monitor.status()}
            if status["clock"].requests >= 2 and service.findings():
                break
        assert status["clock"].value == pytest.approx(1.8e9, rel=0.3)
        assert [f.signal for f in service.findings()] == ["gpu"]
        assert "no worker serves the champion" in service.findings()[0].text
    finally:
        service.close()


def a_rollout(**changes: Any) -> Rollout:
    made = Rollout(
        rollout_id="u1-1",
        service_id="digits",
        update_id="u1",
        champion="a" * 64,
        challenger="b" * 64,
        steps=(RolloutStep(kind=StepKind.CANARY, weight=0.5),),
        status=RolloutStatus.RUNNING,
        started_at=NOW,
        step_since=NOW,
        salt="live",
        alpha=0.05,
        max_seconds=60.0,
    )
    return replace(made, **changes)


def test_a_rollout_knows_the_champions_times_from_before(tmp_path: Path) -> None:
    """From its first user on; and evidence of other settings is gathered anew, not read."""
    rollout = "\nrollout: {metrics: [errors, latency], margins: {latency: %s}}\n"
    service, traffic = Service(tmp_path / "svc", more=rollout % 0.2), Traffic(seed=8)
    traffic.at = NOW
    with service.ledger.begin(fence=service.fence) as tx:
        tx.crown(traffic.release, NOW, "first")
    service.look()
    for _ in range(80):
        service.ask(traffic.ask())
    service.look()
    with service.ledger.begin(fence=service.fence) as tx:
        tx.rollout(a_rollout(champion=traffic.release))
    service.look()
    analysis = service.watch.analysis
    assert isinstance(analysis, RolloutAnalysis)
    assert analysis.metrics == ("errors", "latency")
    for n in range(20):
        item = traffic.ask()
        arm = "challenger:r1" if n % 2 else "champion"
        one = replace(item.record.attempts[0], arm=arm)
        record = replace(
            item.record, assigned_arm=arm, probability=0.5, salt="live", unit=f"v{n}",
            attempts=(one,),
        )  # fmt: skip
        service.ask(replace(item, record=record))
    service.look()
    latency = analysis.assess()[1]
    assert latency.assessment is not Assessment.NO_DATA
    assert latency.difference is not None
    service.look(5.0)
    service.restart()
    again = service.watch.analysis
    assert again is not None
    assert again.state() == analysis.state()
    text = (service.root / "intonaco.yaml").read_text().replace("0.2", "0.3")
    service.parts = replace(service.parts, config=parse(text))
    service.restart()
    anew = service.watch.analysis
    assert isinstance(anew, RolloutAnalysis)
    assert anew.units_challenger == 0
    service.close()


def judged(root: Path, kills: bool) -> tuple[str, RolloutAnalysis]:
    """Two minutes of a rollout whose users vote; the watch is thrown away now and then, with what
    it had not written down."""
    service = Service(root, more=JUDGED)
    with service.ledger.begin(fence=service.fence) as tx:
        tx.crown("a" * 64, NOW, "first")
        tx.rollout(a_rollout(salt="salt", challenger="b" * 64))
    voters = Voters(
        rng=np.random.default_rng(3), requests=600, users=400, grumblers=3, weights=(0.2, 0.5),
        mature=25.0, late=0.2,
    )  # fmt: skip
    items = deque(voters.items())
    dice = random.Random(2)
    for second in range(150):
        until = 5.0 * (second + 1)
        while items and when(items[0]) <= until:
            item = items.popleft()
            if isinstance(item, Feedback):
                at = NOW + item.at / 5
                line = encode(replace(item, at=at, made_at=NOW + item.made_at / 5))
                service.feedback[dice.choice(("gateway", "gateway-1"))].append(line)
            else:
                service.scores.append(encode(asked_at(item, NOW + item.record.at / 5)))
        if kills and dice.random() < 0.4:
            service.watch.look(service.fence, service.clock.now())  # and dies before it is due
            service.restart()
        elif not kills:
            dice.random()
        service.look()
    service.look(5.0)
    analysis = service.watch.analysis
    assert isinstance(analysis, RolloutAnalysis)
    service.close()
    return json.dumps(analysis.state()), analysis


def when(item: ScoredRecord | Feedback) -> float:
    return item.at if isinstance(item, Feedback) else item.record.at


def test_a_kill_loses_no_vote_and_counts_none_twice(tmp_path: Path) -> None:
    whole, analysis = judged(tmp_path / "whole", kills=False)
    cut, _ = judged(tmp_path / "cut", kills=True)
    assert whole == cut
    found = analysis.assess()[1]
    assert found.metric == "feedback"
    assert found.units_challenger > 40
    assert found.difference not in (None, 0.0)
