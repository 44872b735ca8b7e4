"""What is kept of requests: that it compares like with like, is bounded, and survives a restart."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from tests.traffic import NAMES, Traffic

from intonaco.decision.history import DIMENSIONS, KEPT, SAMPLED, History
from intonaco.types import ClusterMove, Feedback, Outcome, ScoredRecord


def cluster(traffic: Traffic, topic: int, *, moved: bool = False) -> ClusterMove:
    return ClusterMove(
        cluster=topic,
        share_before=0.2,
        share_now=0.2,
        share_now_interval=(0.1, 0.3),
        quality_inside=None,
        quality_outside=None,
        sample_prompts=(NAMES[topic],),
        sample_images=(),
        centroid=tuple(traffic.vectors[topic].mean(axis=0)),
        moved=moved,
    )


def vote(item: ScoredRecord, said: str, kind: str = "explicit") -> Feedback:
    record = item.record
    return Feedback(
        gateway="g",
        gateway_epoch=1,
        seq=record.seq,
        service_id="digits",
        at=record.at + 5,
        request_id=record.request_id,
        made_at=record.at,
        assigned_arm=record.assigned_arm,
        release="a" * 64,
        unit=record.unit,
        kind=kind,
        vote=said if kind == "explicit" else None,
    )


def batched(item: ScoredRecord, padded: int) -> ScoredRecord:
    """The same request in a fuller batch, which takes longer and costs each image less."""
    attempt = item.record.attempts[0]
    whole = attempt.service_seconds * (0.7 + 0.3 * padded)
    attempt = replace(
        attempt, padded_size=padded, service_seconds=whole, gpu_seconds=whole / padded
    )
    return replace(item, record=replace(item.record, attempts=(attempt,)))


def test_slow_failed_and_served_requests_are_told_apart() -> None:
    history, traffic = History(), Traffic(seed=1)
    for item in traffic.many(600):
        history.observe(item)
    since = traffic.at + 1e-3
    for item in traffic.many(300, slow=0.3, failing=0.2):
        history.observe(item)
    change = history.change(since)
    assert change is not None
    assert change.times is not None
    assert change.load is not None
    assert change.requests_now == 300
    assert change.failed_before["error"].share == 0.0
    assert change.failed_now["error"].share == pytest.approx(0.2, abs=0.06)
    assert change.times.slow.share == pytest.approx(0.3, abs=0.12)
    assert change.times.slow_before.share < 0.08
    assert change.times.quick == pytest.approx(1.0, abs=0.05)
    assert change.load.rate_now == pytest.approx(5.0, rel=0.2)


def test_fuller_batches_are_not_slow() -> None:
    history, traffic = History(), Traffic(seed=2)
    for item in traffic.many(600):
        history.observe(batched(item, 1))
    since = traffic.at + 1e-3
    for item in traffic.many(200):
        history.observe(batched(item, 4))
    change = history.change(since)
    assert change is not None
    assert change.times is not None
    assert change.times.slow.count == 0
    assert change.times.ratio < 0.7  # device time of one image


def test_topics_are_compared_with_themselves_and_with_their_votes() -> None:
    history, traffic = History(), Traffic(seed=3, dimension=100, phrase=0.25)
    rng = np.random.default_rng(0)

    def feed(n: int, liked: float) -> None:
        for item in traffic.many(n):
            history.observe(item)
            hit = item.record.prompt.split()
            up = rng.random() < (liked if "one" in hit else 0.8)
            history.hear(vote(item, "up" if up else "down"))
            history.hear(vote(item, "", kind="regenerate"))

    feed(800, liked=0.8)
    since = traffic.at + 1e-3
    feed(400, liked=0.2)
    change = history.change(since, [cluster(traffic, k) for k in range(5)])
    assert change is not None
    liked = {t.cluster: t.liked_now.share for t in change.topics}
    assert liked[1] == pytest.approx(0.2, abs=0.15)
    assert min(v for k, v in liked.items() if k != 1) > 0.6
    for topic in change.topics:
        assert topic.requests_now == pytest.approx(80, abs=30)
        assert topic.score_now is not None
        assert topic.score_now[0] == pytest.approx(0.8, abs=0.06)
        assert topic.liked_before.share == pytest.approx(0.8, abs=0.15)


def test_a_vote_that_is_read_before_its_record_waits_for_it() -> None:
    """Also over a kill, and not for ever."""
    traffic = Traffic(seed=3)
    items = list(traffic.many(60))
    early, late, cut = History(), History(), History()
    for item in items:
        late.observe(item)
    for item in items:
        early.hear(vote(item, "up"))
        late.hear(vote(item, "up"))
    cut.restore(early.state())
    for item in items:
        early.observe(item)
        cut.observe(item)
    assert early.state() == late.state() == cut.state()
    old = vote(items[0], "up")
    for n in range(2 * KEPT):
        early.hear(replace(old, request_id=f"nobody {n}"))
    for item in traffic.many(KEPT + 10):
        early.observe(item)
    assert early.state()["votes"] == []


def test_arms_are_told_apart_in_the_same_minutes() -> None:
    history, traffic = History(), Traffic(seed=4)
    for item in traffic.many(500):
        history.observe(item)
    since = traffic.at + 1e-3
    for number in range(300):
        bad = number % 4 != 0
        history.observe(
            traffic.ask(arm="champion" if bad else "holdback", failing=0.5 if bad else 0.0)
        )
    for how in ({"probe": True}, {"shadow_of": "r1"}, {"arm": "challenger:x"}):
        for _ in range(30):
            history.observe(traffic.ask(failing=1.0, **how))
    change = history.change(since)
    assert change is not None
    assert change.champion is not None
    assert change.previous is not None
    assert change.champion.failed.share == pytest.approx(0.5, abs=0.1)
    assert change.previous.failed.share == 0.0
    assert change.previous.failed.total == 75


def test_who_was_refused_and_served_by_nobody_counts_as_load_not_as_failure() -> None:
    history, traffic = History(), Traffic(seed=4)
    for item in traffic.many(500):
        history.observe(item)
    since = traffic.at + 1e-3
    for item in traffic.many(100):
        full = replace(item.record.attempts[0], outcome=Outcome.REJECTED)
        record = replace(item.record, attempts=(full,), served_by=None)
        history.observe(replace(item, record=record, scores={}))
    change = history.change(since)
    assert change is not None
    assert change.load is not None
    assert change.load.refused_now.share == 1.0
    assert change.failed_now["error"].count == change.failed_now["timeout"].count == 0


def test_too_few_requests_say_nothing() -> None:
    history, traffic = History(), Traffic(seed=5)
    assert history.change(0.0) is None
    for item in traffic.many(100):
        history.observe(item)
    assert history.change(traffic.at + 1) is None
    assert history.change(0.0) is None  # nothing before it
    history.clear()
    assert history.change(traffic.at - 5) is None


def test_memory_is_bounded_and_the_past_is_sampled() -> None:
    history, traffic = History(), Traffic(seed=6)
    for item in traffic.many(1000):
        history.observe(item)
    since = traffic.at + 1e-3
    for number, item in enumerate(traffic.many(KEPT + 500, slow=0.5)):
        named = replace(item.record, steps=number)  # a class of its own each
        history.observe(replace(item, record=named) if number % 2 else item)
    change = history.change(since)
    assert change is not None
    assert change.requests_now == KEPT
    assert 100 < change.requests_before < SAMPLED
    state = history.state()
    assert len(state["ids"]) == KEPT
    assert len(json.dumps(state)) < 1_000_000


@pytest.mark.parametrize("dimension", [8, DIMENSIONS, 384])
def test_restored_goes_on_exactly(dimension: int) -> None:
    traffic = Traffic(seed=7, dimension=dimension)
    one = History()
    items = list(traffic.many(1500, slow=0.1, failing=0.1))
    for item in items[:1100]:
        one.observe(item)
        one.hear(vote(item, "up"))
    two = History()
    two.restore(json.loads(json.dumps(one.state())))
    for history in (one, two):
        for item in items[1100:]:
            history.observe(item)
            history.hear(vote(item, "down"))
    clusters = [cluster(traffic, k) for k in range(3)]
    since = items[1200].record.at
    assert one.change(since, clusters) == two.change(since, clusters)
    assert json.dumps(one.state()) == json.dumps(two.state())
