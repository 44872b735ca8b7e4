"""Votes through the controller's whole tick: from the log of feedback to a finding, its cause and a
plan; and a model that is served elsewhere, which nobody here can train."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.content import feedback
from tests.traffic import Traffic
from tests.watched import Watched

from intonaco.codec import encode
from intonaco.segment_log import SegmentWriter
from intonaco.types import Action, Cause, Diagnosis, Factor, Plan, ScoredRecord

MATURE = 20.0  # seconds; a request comes every 0.2
UPSTREAM = "{theirs: {url: 'http://127.0.0.1:9', model: m}}"


@pytest.fixture
def opened() -> Iterator[list[Watched]]:
    worlds: list[Watched] = []
    yield worlds
    for world in worlds:
        world.close()


def made(opened: list[Watched], root: Path, upstreams: str = "") -> Watched:
    world = Watched(
        root,
        monitoring=f"feedback: {{mature_after_s: {MATURE:g}, per_unit: 1000}}",
        signals="thumbs: {of: thumbs, direction: down, reference: 300, tolerance: 0.02}",
        probes=(),
        upstreams=upstreams,
    )
    opened.append(world)
    return world


def serve(world: Watched, items: Iterable[ScoredRecord], *, disliked: str = "") -> None:
    """Users are answered, and two of three vote, within the time that images take to mature. On
    what they ask with ``disliked`` in it, votes are mostly down."""
    random = np.random.default_rng(7)
    with_votes = SegmentWriter(world.workspace.feedback, "gateway")
    waiting: list[tuple[float, str]] = []
    for number, item in enumerate(items, start=1):
        world.clock.advance(0.2)
        now = world.clock.now()
        asked = world._now(item)
        world.scores.append(encode(asked))
        liked = 0.2 if disliked and disliked in asked.record.prompt else 0.85
        vote = "up" if random.random() < liked else "down"
        after = float(random.uniform(1.0, 10.0))
        said = feedback(asked, after, vote=vote, unit=asked.record.unit)
        if random.random() < 0.67:
            waiting.append((now + after, encode(said)))
        for _, line in [w for w in waiting if w[0] <= now]:
            with_votes.append(line)
        waiting = [w for w in waiting if w[0] > now]
        if number % 10 == 0:
            world.tick(0.0)
    with_votes.close()
    for _ in range(6):
        world.tick(30.0)


def told(world: Watched) -> Diagnosis:
    return world.ledger.all(Diagnosis, status="incident")[-1]


def test_votes_that_fall_within_a_topic_are_concept_drift(
    opened: list[Watched], tmp_path: Path
) -> None:
    world, traffic = made(opened, tmp_path / "w"), Traffic(seed=5)
    serve(world, traffic.many(900))
    assert world.findings() == []
    serve(world, traffic.many(700), disliked="two")
    (finding,) = world.findings()
    assert (finding.signal, finding.direction) == ("thumbs", "down")
    assert finding.value_now < finding.value_before - 0.05
    diagnosis = told(world)
    assert diagnosis.cause is Cause.CONCEPT_DRIFT
    assert diagnosis.also == ()
    plans = world.ledger.all(Plan)
    assert {p.action for p in plans} <= {Action.COLLECT_DATA, Action.WATCH, Action.TELL}
    assert plans


def test_a_model_of_others_is_watched_and_never_trained(
    opened: list[Watched], tmp_path: Path
) -> None:
    world = made(opened, tmp_path / "w", upstreams=UPSTREAM)
    traffic = Traffic(seed=6)
    others = (unbatched(i) for i in traffic.many(500))
    world.serve(others)
    assert world.findings() == []
    world.serve(unbatched(i) for i in traffic.many(120, failing=0.4))
    assert {f.signal for f in world.findings()} == {"errors"}
    diagnosis = told(world)
    assert (diagnosis.cause, diagnosis.factor) == (
        Cause.PERFORMANCE_DEGRADATION,
        Factor.UPSTREAM,
    )
    world.serve(unbatched(i) for i in traffic.many(300, new=0.5))
    world.tick(400.0)
    assert any(
        Cause.CONCEPT_DRIFT in (d.cause, *d.also)
        for d in world.ledger.all(Diagnosis, status="incident")
    )
    actions = {p.action for p in world.ledger.all(Plan)}
    assert not any(action.trains for action in actions)
    assert Action.TELL in actions


def unbatched(item: ScoredRecord) -> ScoredRecord:
    """Others tell of an image how long it took, and nothing else."""
    attempts = tuple(
        replace(a, queue_seconds=0.0, batch_size=0, padded_size=0, gpu_seconds=0.0)
        for a in item.record.attempts
    )
    return replace(item, record=replace(item.record, attempts=attempts))
