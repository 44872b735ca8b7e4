"""The monitor: what counts, when it fires, what it says, and that it goes on after a restart."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import replace

import pytest
from tests.traffic import Traffic

from intonaco.config import Monitoring, Signal
from intonaco.errors import ConfigError
from intonaco.monitoring.monitor import Monitor
from intonaco.monitoring.signals import LatencyClasses, champion_score, failed
from intonaco.types import Attempt, Finding, Outcome, ScoredRecord

ALL = ("prompts", "clip_score", "errors", "latency")


def settings(reference: int = 250, **changes: float) -> Monitoring:
    return Monitoring(
        requests_between_false_alarms=changes.pop("between", 5_000),
        signals={
            "prompts": Signal(of="prompt_embedding", reference=reference),
            "clip_score": Signal(
                of="clip_score", direction="down", reference=reference, given_topic=False
            ),
            "errors": Signal(of="errors", direction="up", tolerance=0.01, reference=reference),
            "latency": Signal(of="latency", direction="up", tolerance=0.02, reference=reference),
        },
    )


def watch(monitor: Monitor, items: Iterable[ScoredRecord]) -> list[Finding]:
    return [finding for item in items for finding in monitor.observe(item)]


@pytest.fixture
def armed() -> tuple[Monitor, Traffic]:
    monitor, traffic = Monitor("digits", settings()), Traffic(seed=1, phrase=0.25)
    assert watch(monitor, traffic.many(400)) == []
    assert all(s.armed for s in monitor.status())
    return monitor, traffic


def test_quiet_on_thousands_of_null_requests() -> None:
    for seed in range(3):
        monitor, traffic = Monitor("digits", settings()), Traffic(seed=seed, phrase=0.3)
        assert watch(monitor, traffic.many(2_500, failing=0.005, slow=0.01)) == []


def test_demo_like_shift_gives_one_finding_per_signal(armed: tuple[Monitor, Traffic]) -> None:
    monitor, traffic = armed
    findings = watch(monitor, traffic.many(600, new=0.3))
    assert sorted(f.signal for f in findings) == ["clip_score", "prompts"]
    by = {f.signal: f for f in findings}
    prompts = by["prompts"]
    assert prompts.request - 400 <= 150
    assert 200 < prompts.armed_at < 400
    assert abs(prompts.since - 400) <= 40
    assert prompts.evidence >= prompts.threshold
    assert prompts.direction == "moved"
    assert prompts.value_before == 0.0
    assert 0.15 < prompts.value_now < 0.5
    assert any(c.moved for c in prompts.clusters)
    assert any(not c.moved for c in prompts.clusters)
    assert "CLIP score there" in prompts.text
    score = by["clip_score"]
    assert score.unit == "cosine"
    assert score.value_before == pytest.approx(0.80, abs=0.03)
    assert 0.3 < score.value_now < 0.75
    firing = {s.signal for s in monitor.status() if s.firing}
    assert firing == {"prompts", "clip_score"}


def test_given_the_topic_a_new_topic_is_no_fall_of_quality() -> None:
    score = Signal(of="clip_score", direction="down", reference=200)
    own = settings().signals | {"clip_score": score}
    monitor = Monitor("digits", settings().model_copy(update={"signals": own}))
    traffic = Traffic(seed=1, phrase=0.25)
    assert watch(monitor, traffic.many(400)) == []
    assert {f.signal for f in watch(monitor, traffic.many(400, new=0.3))} == {"prompts"}
    fell = watch(monitor, traffic.many(400, new=0.3, known_quality=0.60))
    assert {f.signal for f in fell} == {"clip_score"}


def test_refresh_knows_more_than_the_finding_did(armed: tuple[Monitor, Traffic]) -> None:
    monitor, traffic = armed
    finding = next(f for i in traffic.many(600, new=0.3) for f in monitor.observe(i))
    assert not monitor.settled(finding)
    watch(monitor, traffic.many(200, new=0.3))
    assert monitor.settled(finding)
    later = monitor.refresh(finding)
    assert later.finding_id == finding.finding_id
    assert later.request == finding.request
    assert sum(c.moved for c in later.clusters) == 5
    assert later.value_now == pytest.approx(0.3, abs=0.08)


def test_rebaseline_learns_the_new_normal(armed: tuple[Monitor, Traffic]) -> None:
    monitor, traffic = armed
    assert watch(monitor, traffic.many(300, new=0.3))
    monitor.rebaseline(traffic.release)
    assert not any(s.armed or s.firing for s in monitor.status())
    better = {"new": 0.3, "new_quality": 0.8}
    assert watch(monitor, traffic.many(1_500, **better)) == []
    assert all(s.armed for s in monitor.status())
    assert [f.signal for f in watch(monitor, traffic.many(300, new=0.3, known_quality=0.4))]


def test_errors_and_latency(armed: tuple[Monitor, Traffic]) -> None:
    monitor, traffic = armed
    first = watch(monitor, traffic.many(300, failing=0.25))
    assert [f.signal for f in first] == ["errors"]
    assert first[0].direction == "up"
    assert first[0].value_now == pytest.approx(0.25, abs=0.2)  # of few requests
    assert "requests now fail" in first[0].text
    second = watch(monitor, traffic.many(300, slow=0.4))
    assert [f.signal for f in second] == ["latency"]
    assert "times the usual" in second[0].text


def test_only_the_champions_own_users_count_for_quality() -> None:
    config = settings()
    pooled = config.signals["clip_score"].model_copy(update={"given_topic": False})
    signals = {**config.signals, "clip_score": pooled}
    monitor = Monitor("digits", config.model_copy(update={"signals": signals}))
    traffic = Traffic(seed=2)
    for how in ({"probe": True}, {"shadow_of": "r1"}):
        assert monitor.observe(traffic.ask(failing=1.0, **how)) == []
    assert monitor.requests == 0
    for _ in range(5):
        monitor.observe(traffic.ask(arm="challenger:x", failing=1.0))
    seen = {s.signal: s.requests for s in monitor.status()}
    assert seen == {"prompts": 5, "clip_score": 0, "errors": 0, "latency": 0}
    for _ in range(5):
        monitor.observe(traffic.ask(arm="baseline"))
    seen = {s.signal: s.requests for s in monitor.status()}
    assert seen["prompts"] == 10
    assert seen["clip_score"] == seen["errors"] == 5


def test_a_known_release_excludes_attempts_of_others() -> None:
    monitor, traffic = Monitor("digits", settings(), release="b" * 64), Traffic(seed=2)
    monitor.observe(traffic.ask())
    assert {s.signal: s.requests for s in monitor.status()} == {
        "prompts": 1,
        "clip_score": 0,
        "errors": 0,
        "latency": 0,
    }


def test_what_failed_means() -> None:
    item = Traffic(seed=0).ask()
    good = item.record.attempts[0]

    def of(*outcomes: Outcome, served: str | None = "a" * 64) -> float | None:
        attempts = tuple(replace(good, outcome=o) for o in outcomes)
        return failed(replace(item.record, attempts=attempts, served_by=served), None)

    assert of(Outcome.OK) == 0.0
    assert of(Outcome.ERROR, Outcome.OK) == 1.0
    assert of(Outcome.TIMEOUT, served=None) == 1.0
    assert of(Outcome.INVALID, served=None) is None
    assert of(Outcome.CANCELLED, served=None) is None
    assert of(Outcome.REJECTED, Outcome.OK) == 0.0
    assert of(Outcome.REJECTED, served=None) == 1.0
    assert of() is None


def test_the_shields_answer_is_not_the_champions_score() -> None:
    """A user of the challenger whom the champion answered says nothing about the champion."""
    item = Traffic(seed=0).ask()
    shielded = replace(item.record, assigned_arm="challenger:x")
    assert champion_score(item, "clip", None) is not None
    assert champion_score(replace(item, record=shielded), "clip", None) is None


def test_latency_is_told_within_its_class() -> None:
    record = Traffic(seed=0).ask().record
    classes = LatencyClasses(slower_than=2.0, learn=3)

    def slow(seconds: float, steps: int, task: str = "generate") -> float | None:
        attempt: Attempt = replace(record.attempts[0], service_seconds=seconds)
        asked = replace(record, steps=steps, task=task, attempts=(attempt,))
        return classes.slow(asked, None)

    assert [slow(s, 10) for s in (1.0, 1.2, 1.1)] == [None, None, None]
    assert slow(2.0, 10) == 0.0
    assert slow(2.3, 10) == 1.0
    assert [slow(s, 50) for s in (5.0, 5.0, 5.0, 5.0)] == [None, None, None, 0.0]
    assert [slow(3.0, 10, "edit") for _ in range(4)] == [None, None, None, 0.0]
    assert slow(3.0, 10) == 1.0
    again = LatencyClasses(slower_than=2.0, learn=3)
    again.restore(json.loads(json.dumps(classes.state())))
    assert again.state() == classes.state()


def test_missing_scores_are_no_data_not_good_data() -> None:
    monitor, traffic = Monitor("digits", settings()), Traffic(seed=2)
    for item in traffic.many(400):
        monitor.observe(replace(item, scores={}, prompt_embedding=()))
    status = {s.signal: s for s in monitor.status()}
    assert not status["clip_score"].armed
    assert not status["prompts"].armed
    assert status["prompts"].value is None
    assert monitor.reference_quality() is None


def test_a_robot_repeating_itself_raises_no_alarm(armed: tuple[Monitor, Traffic]) -> None:
    monitor, traffic = armed
    item = next(i for i in traffic.many(100, new=1.0))
    robot = replace(item.record, unit="robot")
    assert watch(monitor, [replace(item, record=robot)] * 300) == []


def test_another_extractor_starts_prompts_and_scores_anew(armed: tuple[Monitor, Traffic]) -> None:
    monitor, traffic = armed
    assert watch(monitor, [replace(traffic.ask(), extractor="f" * 64)]) == []
    armed_now = {s.signal: s.armed for s in monitor.status()}
    assert armed_now == {"prompts": False, "clip_score": False, "errors": True, "latency": True}


def test_budget_of_false_alarms_is_shared_by_weight() -> None:
    monitor = Monitor("digits", settings(between=1_000))
    thresholds = [s.threshold for s in monitor.status()]
    assert sum(math.exp(-t) for t in thresholds) == pytest.approx(1 / 1_000)


@pytest.mark.parametrize("cut", [10, 300, 405, 520])
def test_restored_goes_on_exactly(cut: int) -> None:
    traffic = Traffic(seed=5, phrase=0.25)
    items = [*traffic.many(400), *traffic.many(250, new=0.3, slow=0.1, failing=0.1)]
    one = Monitor("digits", settings())
    watch(one, items[:cut])
    two = Monitor("digits", settings())
    two.restore(json.loads(json.dumps(one.state())))
    findings = watch(one, items[cut:])
    assert watch(two, items[cut:]) == findings
    assert findings or cut == 520
    assert json.dumps(one.state()) == json.dumps(two.state())
    assert one.status() == two.status()


def test_restore_into_another_configuration_keeps_what_still_fits() -> None:
    traffic = Traffic(seed=5)
    one = Monitor("digits", settings())
    watch(one, traffic.many(400))
    changed = settings()
    signals = {**changed.signals, "errors": Signal(of="errors", detector="periodic")}
    del signals["latency"]
    two = Monitor("digits", changed.model_copy(update={"signals": signals}))
    two.restore(json.loads(json.dumps(one.state())))
    status = {s.signal: s for s in two.status()}
    assert set(status) == {"prompts", "clip_score", "errors"}
    kept = next(s for s in one.status() if s.signal == "prompts")
    assert status["prompts"] == replace(kept, threshold=status["prompts"].threshold)
    assert status["prompts"].threshold < kept.threshold  # three share what four did
    assert status["errors"].requests == 0


def test_unknown_detector_fails_at_start() -> None:
    signals = {"prompts": Signal(of="prompt_embedding", detector="nonsense")}
    with pytest.raises(ConfigError, match="nonsense"):
        Monitor("digits", Monitoring(signals=signals))


def test_silence_is_a_finding_once_an_episode() -> None:
    monitor = Monitor("digits", settings())
    assert monitor.silence(1000.0, 990.0, 0) is None
    assert monitor.silence(2000.0, 990.0, 0) is None  # no traffic is no silence
    assert monitor.silence(2010.0, 990.0, 500) is None
    assert monitor.silence(2010.0 + 60.0 - 1, 990.0, 500) is None
    finding = monitor.silence(2010.0 + 61.0, 990.0, 500)
    assert finding is not None
    assert finding.signal == "scorer"
    assert "500 bytes" in finding.text
    assert monitor.silence(3000.0, 990.0, 500) is None
    assert monitor.silence(3001.0, 3000.0, 0) is None
    assert monitor.silence(3002.0, 3000.0, 10) is None
    assert monitor.silence(3102.0, 3101.0, 10) is None  # behind, but working
    assert monitor.silence(3200.0, None, 10) is not None


def test_a_controller_that_was_down_blames_no_scorer_for_it() -> None:
    before = Monitor("digits", settings())
    assert before.silence(1000.0, 999.0, 500) is None
    assert before.silence(1040.0, 999.0, 500) is None
    after = Monitor("digits", settings())
    after.restore(json.loads(json.dumps(before.state())))
    assert after.silence(9000.0, 999.0, 500) is None
    assert after.silence(9015.0, 999.0, 500) is None
    found = after.silence(9025.0, 999.0, 500)  # 40 s before it stopped and 25 s since
    assert found is not None
    assert found.value_now == 65.0
    again = Monitor("digits", settings())
    again.restore(json.loads(json.dumps(after.state())))
    assert again.silence(9500.0, 999.0, 500) is None  # told
