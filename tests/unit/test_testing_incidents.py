"""Made-up incidents through the real monitor, diagnosis and policy: causes told against causes at
work. Seeds are fixed; the error budget is that of the default configuration."""

from __future__ import annotations

import pytest

from intonaco.config import Monitoring, Signal
from intonaco.testing.incidents import (
    INCIDENTS,
    Outcome,
    accuracy,
    confusion,
    play,
    possible,
    render,
    signals,
)
from intonaco.testing.incidents.play import REFERENCE
from intonaco.types import Action, Cause

TODAY = set(possible())
ROWS = 8  # worlds an incident in the full run
# runs in which nothing fires are the longest; the full run has them all
LEFT = {"nothing", "nothing: bursts", "nothing: growth", "nothing: larger images"} | {
    "slow upstream",
    "new bad topic + decline",
    "decline, nobody knows why",
    "errors upstream",
    "slow by all machines",
    "new good topic + decline",
    "environment + too much",
    "new bad topic + broken input",
}


def never_trains_for_performance(outcomes: list[Outcome]) -> None:
    """No diagnosis of performance was ever answered by training; and where performance was all
    that was wrong, nothing was trained for at all."""
    for outcome in outcomes:
        assert Cause.PERFORMANCE_DEGRADATION not in outcome.trains_for
        if outcome.truth == {Cause.PERFORMANCE_DEGRADATION}:
            assert not any(action.trains for action in outcome.actions), outcome


@pytest.fixture(scope="module")
def few() -> list[Outcome]:
    return [play(name, 1000 + seed) for seed, name in enumerate(possible()) if name not in LEFT]


def test_a_world_of_most_kinds(few: list[Outcome]) -> None:
    assert len(few) >= 24
    assert accuracy(few) >= 0.85, render(confusion(few))
    never_trains_for_performance(few)


def test_there_are_enough_kinds_and_all_causes() -> None:
    assert len(TODAY) >= 24
    assert len([n for n in TODAY if not INCIDENTS[n].alone]) >= 6
    truths = {cause for name in TODAY for cause in INCIDENTS[name].truth}
    assert truths >= {
        Cause.PERFORMANCE_DEGRADATION,
        Cause.DATA_DRIFT,
        Cause.CONCEPT_DRIFT,
        Cause.QUALITY_DECLINE,
        Cause.UNKNOWN,
    }


def test_the_same_seed_is_the_same_world() -> None:
    assert play("errors by machines", 3) == play("errors by machines", 3)


def test_what_needs_a_signal_that_nobody_reads_is_left_out() -> None:
    bare = possible({"prompt_embedding": object, "clip_score": object})
    assert "broken input" not in bare
    assert "votes fall on a topic" not in bare
    assert "new topic, served badly" in bare
    everything = {need: object for i in INCIDENTS.values() for need in i.needs}
    assert set(possible(everything)) == set(INCIDENTS)


def test_more_demand_than_workers_is_queueing_by_throughput_alone() -> None:
    load = Signal(of="throughput", direction="up", every_s=1.0, reference=60, tolerance=0.05)
    watched = Monitoring(requests_between_false_alarms=5_000, signals={"load": load})
    outcome = play("demand above capacity", 2, monitoring=watched)
    assert set(outcome.signals) == {"load"}
    assert outcome.right, outcome
    assert outcome.actions[0] is Action.TELL


@pytest.mark.parametrize("name", ["nothing: larger images", "nothing: growth"])
def test_fuller_batches_raise_no_alarm_of_latency(name: str) -> None:
    """Times of a batch are those of all images in it. Of these four worlds of larger images each
    raised an alarm while they were compared within a class alone."""
    latency = Signal(
        of="latency", direction="up", reading="ratio", tolerance=0.02, reference=REFERENCE
    )
    watched = signals().model_copy(update={"signals": {"latency": latency}})
    outcomes = [play(name, seed, monitoring=watched) for seed in range(600, 604)]
    assert [o.signals for o in outcomes] == [()] * 4


def test_the_matrix_says_what_was_told() -> None:
    right = play("errors by machines", 3)
    matrix = confusion([right, right])
    assert matrix == {"errors by machines": {"performance degradation": 2}}
    assert render(matrix) == "errors by machines     2 runs: performance degradation 2"
    assert accuracy([right, right]) == 1.0
    assert Action.TELL in right.actions


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_confusion_matrix_is_nine_tenths_right() -> None:
    outcomes = [play(name, seed) for name in possible() for seed in range(ROWS)]
    print(render(confusion(outcomes)))
    assert len(outcomes) >= 200
    assert accuracy(outcomes) >= 0.9, render(confusion(outcomes))
    assert accuracy(outcomes, factors=True) >= 0.9
    never_trains_for_performance(outcomes)
