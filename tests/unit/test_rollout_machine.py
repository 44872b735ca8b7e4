"""The rollout machine: tables of single decisions, and what holds whatever happens."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from intonaco.codec import decode, encode
from intonaco.config import RolloutConfig, Step
from intonaco.rollout.machine import (
    RolloutDecision,
    RolloutFacts,
    steps_for,
    tick,
    weights_of,
)
from intonaco.types import (
    Assessment,
    BreakerTrip,
    MetricAssessment,
    Rollout,
    RolloutStatus,
    StepKind,
    Verdict,
)

CONFIG = RolloutConfig(
    steps=(
        Step(kind=StepKind.SHADOW, weight=0.2, min_seconds=10, min_units=20),
        Step(weight=0.05, min_seconds=10, min_units=5),
        Step(weight=0.5, min_seconds=10, min_units=20),
        Step(weight=1.0, min_seconds=10, min_units=30),
    ),
    max_seconds=1000,
)
METRICS = ("errors", "slow", "clip_score")


def assessed(
    *found: Assessment, metrics: tuple[str, ...] = METRICS
) -> tuple[MetricAssessment, ...]:
    return tuple(
        MetricAssessment(
            metric=m,
            assessment=a,
            difference=0.031,
            interval=(0.01, 0.05),
            margin=0.05,
            evidence_harm=5.2,
            evidence_non_inferior=4.0,
            threshold=4.4,
            units_challenger=40,
            units_champion=700,
        )
        for m, a in zip(metrics, found, strict=False)
    )


PROVEN = assessed(Assessment.NON_INFERIOR, Assessment.SUPERIOR, Assessment.NON_INFERIOR)
UNDECIDED = assessed(Assessment.NON_INFERIOR, Assessment.UNDECIDED, Assessment.NON_INFERIOR)
HARMFUL = assessed(Assessment.NON_INFERIOR, Assessment.HARMFUL, Assessment.NON_INFERIOR)
TRIP = BreakerTrip(release="B", at=5.0, first_failure_at=4.0, failures=3, reason="3 in a row")
FINE = RolloutFacts(
    assessments=PROVEN,
    units_at_step=100,
    shadow_pairs=100,
    challenger_ready=True,
    observed_epoch_applied=True,
)


def rollout(config: RolloutConfig = CONFIG, champion: str | None = "A") -> Rollout:
    return Rollout(
        rollout_id="r1",
        service_id="s",
        update_id="u",
        champion=champion,
        challenger="B",
        steps=steps_for(config),
        status=RolloutStatus.RUNNING,
        started_at=0.0,
        max_seconds=config.max_seconds,
        salt="salt",
    )


def go(to: int, facts: RolloutFacts = FINE) -> Rollout:
    """A rollout that has just entered step ``to``, 20 s a step."""
    state = rollout()
    for n in range(to + 1):
        state = tick(state, facts, 20.0 * n).rollout
    assert state.step == to
    return state


def test_runs_through_all_steps_to_promotion() -> None:
    state, now, seen = rollout(), 0.0, []
    while not state.status.final:
        decision = tick(state, FINE, now)
        state, now = decision.rollout, now + 10
        seen.append((decision.weights["shadow"], decision.weights["challenger"]))
    assert seen == [(0.2, 0.0), (0.0, 0.05), (0.0, 0.5), (0.0, 1.0), (0.0, 1.0)]
    assert state.status is RolloutStatus.PROMOTED
    assert state.verdict is Verdict.PASS
    assert state.ended_at == 40.0
    assert [h.left_at for h in state.history] == [10.0, 20.0, 30.0, 40.0]
    assert "errors " in state.reason
    assert "margin" in state.reason
    assert decode(Rollout, encode(state)) == state


@pytest.mark.parametrize(
    "changes",
    [
        {"units_at_step": 4},
        {"challenger_ready": False},
        {"observed_epoch_applied": False},
        {"frozen": True},
    ],
)
def test_a_step_is_left_only_with_everything_it_asks_for(changes: dict[str, Any]) -> None:
    state = go(1)
    assert tick(state, replace(FINE, **changes), 100.0).rollout.step == 1
    assert tick(state, FINE, 25.0).rollout.step == 1  # too early
    assert tick(state, FINE, 100.0).rollout.step == 2


def test_an_unready_challenger_gets_no_traffic() -> None:
    decision = tick(rollout(), replace(FINE, challenger_ready=False), 0.0)
    assert decision.weights == {"challenger": 0.0, "shadow": 0.0}
    assert not decision.rollout.history


@pytest.mark.parametrize(
    ("changes", "verdict", "words"),
    [
        ({"trips": (TRIP,)}, Verdict.FAIL, "3 in a row"),
        ({"assessments": HARMFUL}, Verdict.FAIL, "slow +3.1% [+1.0%, +5.0%] from 40 challenger"),
        ({"dead": True}, Verdict.FAIL, "gone"),
        ({"command": "abort", "actor": "ada"}, Verdict.FAIL, "aborted by ada"),
        (
            {"sample_ratio_ok": False, "sample_ratio_text": "9 of 10"},
            Verdict.ERROR,
            "not the one that was logged: 9 of 10",
        ),
    ],
)
@pytest.mark.parametrize("held", ["running", "paused", "frozen"])
def test_harm_rolls_back_at_once(
    changes: dict[str, Any], verdict: Verdict, words: str, held: str
) -> None:
    state = go(2)
    if held == "paused":
        state = tick(state, replace(FINE, command="pause"), 41.0).rollout
        assert state.status is RolloutStatus.PAUSED
    facts = replace(FINE, frozen=held == "frozen", **changes)
    decision = tick(state, facts, 42.0)
    assert decision.rollout.status is RolloutStatus.ROLLED_BACK
    assert decision.rollout.verdict is verdict
    assert words in decision.rollout.reason
    assert decision.events == (("rolled_back", decision.rollout.reason),)
    assert decision.weights == {"challenger": 0.0, "shadow": 0.0}
    assert tick(decision.rollout, FINE, 43.0).rollout == decision.rollout


@pytest.mark.parametrize(
    "assessments", [UNDECIDED, (), PROVEN[:2], assessed(*[Assessment.NO_DATA] * 3)]
)
def test_not_to_everybody_without_proof(assessments: tuple[MetricAssessment, ...]) -> None:
    state = rollout()
    facts = replace(FINE, assessments=assessments)
    for n in range(6):
        state = tick(state, facts, 20.0 * n).rollout
    assert state.step == 2
    assert state.history[-1].decision.startswith("waiting for ")
    ended = tick(state, facts, 1000.0)
    assert ended.rollout.status is RolloutStatus.INCONCLUSIVE
    assert ended.rollout.verdict is Verdict.INCONCLUSIVE
    assert ended.weights["challenger"] == 0.0
    assert "1000 s" in ended.rollout.reason


def test_waiting_is_told_once_and_again_only_if_it_changes() -> None:
    state = go(2)
    first = tick(state, replace(FINE, assessments=UNDECIDED), 100.0)
    assert first.events == (("waiting", "waiting for slow (undecided)"),)
    assert tick(first.rollout, replace(FINE, assessments=UNDECIDED), 101.0).events == ()
    assert tick(first.rollout, replace(FINE, assessments=PROVEN[:2]), 102.0).events != ()


def test_proof_that_melts_away_at_the_last_step_does_not_promote() -> None:
    state = go(3)
    facts = replace(FINE, assessments=UNDECIDED)
    assert tick(state, facts, 100.0).rollout.status is RolloutStatus.RUNNING
    assert tick(state, facts, 1000.0).rollout.status is RolloutStatus.INCONCLUSIVE


def test_no_guardrail_is_no_proof() -> None:
    state = tick(go(2), replace(FINE, guardrails=()), 100.0).rollout
    assert state.step == 2


def test_a_first_release_is_promoted_when_it_is_ready() -> None:
    config = RolloutConfig(steps=(Step(weight=1.0, min_seconds=0, min_units=0),))
    state = rollout(config, champion=None)
    ready = RolloutFacts(challenger_ready=True, observed_epoch_applied=True)
    assert not tick(state, RolloutFacts(), 1.0).rollout.history
    state = tick(state, ready, 2.0).rollout
    assert weights_of(state)["challenger"] == 1.0
    assert tick(state, RolloutFacts(challenger_ready=True), 3.0).rollout == state
    assert tick(state, ready, 3.0).rollout.status is RolloutStatus.PROMOTED


def test_pause_holds_the_weights_and_the_deadline() -> None:
    state = tick(go(1), replace(FINE, command="pause"), 25.0).rollout
    held = tick(state, FINE, 5000.0)
    assert held.rollout.status is RolloutStatus.PAUSED
    assert held.weights["challenger"] == 0.05
    state = tick(held.rollout, replace(FINE, command="resume"), 5025.0).rollout
    assert state.max_seconds == 6000.0
    assert tick(state, FINE, 5030.0).rollout.step == 2


def test_commands_hurry_but_drop_no_proof() -> None:
    assert tick(go(0), replace(FINE, command="skip", shadow_pairs=0), 1.0).rollout.step == 1
    assert tick(go(1), replace(FINE, command="promote"), 21.0).rollout.step == 3
    at_last = tick(go(3), replace(FINE, command="promote", units_at_step=0), 61.0).rollout
    assert at_last.status is RolloutStatus.PROMOTED
    for facts, words in (
        (replace(FINE, command="promote", assessments=UNDECIDED), "slow (undecided)"),
        (replace(FINE, command="promote", frozen=True), "frozen"),
        (replace(FINE, command="resume"), "not paused"),
        (replace(FINE, command="explode"), "no such command"),
    ):
        decision = tick(go(1), facts, 21.0)
        assert decision.rollout.step == 1
        assert [kind for kind, _ in decision.events] == ["refused"]
        assert words in decision.events[0][1]


def test_blue_green_is_shadow_then_everybody() -> None:
    blue_green = CONFIG.model_copy(update={"strategy": "blue_green"})
    assert [(s.kind, s.weight) for s in steps_for(blue_green)] == [
        (StepKind.SHADOW, 0.2),
        (StepKind.CANARY, 1.0),
    ]
    bare = RolloutConfig(strategy="blue_green", steps=(Step(weight=1.0, min_units=7),))
    assert [(s.kind, s.weight, s.min_units) for s in steps_for(bare)] == [
        (StepKind.SHADOW, 1.0, 7),
        (StepKind.CANARY, 1.0, 7),
    ]


# ------------------------------------------------------------------------------------ whatever


kinds = st.sampled_from(list(Assessment))


class AnyTraffic(RuleBasedStateMachine):
    """Random facts and commands in random order."""

    @initialize(
        champion=st.sampled_from(["A", None]), strategy=st.sampled_from(["canary", "blue_green"])
    )
    def begin(self, champion: str | None, strategy: str) -> None:
        config = CONFIG.model_copy(update={"strategy": strategy})
        self.state = rollout(config, champion)
        self.now = 0.0
        self.weights = {"challenger": 0.0, "shadow": 0.0}
        self.ended: RolloutDecision | None = None

    @rule(
        seconds=st.floats(0.0, 60.0),
        found=st.lists(kinds, max_size=3),
        lucky=st.booleans(),
        units=st.integers(0, 50),
        ready=st.booleans(),
        applied=st.booleans(),
        frozen=st.booleans(),
        command=st.sampled_from([None, None, None, "pause", "resume", "promote", "skip", "x"]),
        trouble=st.sampled_from([None] * 12 + ["trip", "dead", "split", "abort"]),
    )
    def look(
        self,
        seconds: float,
        found: list[Assessment],
        lucky: bool,
        units: int,
        ready: bool,
        applied: bool,
        frozen: bool,
        command: str | None,
        trouble: str | None,
    ) -> None:
        self.now += seconds
        facts = RolloutFacts(
            assessments=PROVEN if lucky else assessed(*found),
            units_at_step=units,
            shadow_pairs=units,
            trips=(TRIP,) if trouble == "trip" else (),
            challenger_ready=ready or lucky,
            observed_epoch_applied=applied or lucky,
            sample_ratio_ok=trouble != "split",
            dead=trouble == "dead",
            command="abort" if trouble == "abort" else command,
            frozen=frozen and not lucky,
        )
        before = self.state
        decision = tick(before, facts, self.now)
        assert decision == tick(before, facts, self.now)
        after = decision.rollout
        assert set(decision.weights) == {"challenger", "shadow"}
        assert all(0.0 <= w <= 1.0 for w in decision.weights.values())
        if self.ended is not None:
            assert after == self.ended.rollout
            assert decision.events == ()
            return
        harmful = any(a.assessment is Assessment.HARMFUL for a in facts.assessments)
        if trouble or harmful:
            assert after.status is RolloutStatus.ROLLED_BACK
        proven = {
            a.metric
            for a in facts.assessments
            if a.assessment in (Assessment.NON_INFERIOR, Assessment.SUPERIOR)
        }
        gained = decision.weights["challenger"] - self.weights["challenger"]
        if after.champion is not None and (
            after.status is RolloutStatus.PROMOTED
            or (decision.weights["challenger"] == 1.0 and gained > 0)
        ):
            assert proven == set(METRICS)
        if after.status in (RolloutStatus.ROLLED_BACK, RolloutStatus.INCONCLUSIVE):
            assert decision.weights == {"challenger": 0.0, "shadow": 0.0}
        else:
            assert gained >= 0
            assert after.step - before.step in (0, 1) or command == "promote"
        if gained > 0:
            assert facts.challenger_ready
            assert not facts.frozen
            assert before.status is RolloutStatus.RUNNING
        self.state, self.weights = after, dict(decision.weights)
        if after.status.final:
            assert after.reason
            assert after.verdict is not None
            assert after.ended_at == self.now
            self.ended = decision

    @invariant()
    def history_is_in_order(self) -> None:
        if not hasattr(self, "state"):
            return
        history = self.state.history
        assert all(h.left_at is not None for h in history[:-1])
        assert all(a.left_at == b.entered_at for a, b in pairwise(history))
        if history:
            assert (history[-1].left_at is not None) == self.state.status.final


AnyTraffic.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestAnyTraffic = AnyTraffic.TestCase
