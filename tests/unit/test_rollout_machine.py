"""The rollout machine: tables of single decisions, and what holds whatever happens."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from pydantic import ValidationError

from intonaco.codec import decode, encode
from intonaco.config import Config, RolloutConfig, Step
from intonaco.rollout.machine import (
    RolloutDecision,
    RolloutFacts,
    tick,
    weights_of,
)
from intonaco.rollout.strategies import capacity_of, steps_for, straight
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
    bake_seconds=10,
)
PROMOTED = RolloutStatus.PROMOTED
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
        steps=steps_for(config) if champion else straight(config),
        status=RolloutStatus.RUNNING,
        started_at=0.0,
        max_seconds=config.max_seconds,
        on_inconclusive=config.on_inconclusive,
        stuck_seconds=config.stuck_seconds,
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
    assert seen == [(0.2, 0.0), (0.0, 0.05), (0.0, 0.5), *[(0.0, 1.0)] * 4]
    assert state.status is RolloutStatus.PROMOTED
    assert state.verdict is Verdict.PASS
    assert state.promoted_at == 40.0
    assert state.ended_at == 60.0
    assert [h.left_at for h in state.history] == [10.0, 20.0, 30.0, 40.0, 50.0, 60.0]
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
    state = rollout(CONFIG, champion=None)
    ready = RolloutFacts(challenger_ready=True, observed_epoch_applied=True)
    assert not tick(state, RolloutFacts(), 1.0).rollout.history
    state = tick(state, ready, 2.0).rollout
    assert weights_of(state)["challenger"] == 1.0
    unconfirmed = tick(state, RolloutFacts(challenger_ready=True), 3.0).rollout
    assert unconfirmed.promoted_at is None
    state = tick(state, ready, 3.0).rollout
    assert (state.promoted_at, state.status) == (3.0, RolloutStatus.RUNNING)
    # There is nothing to go back to, so it stays whatever it does.
    state = tick(state, replace(ready, dead=True, trips=(TRIP,)), 4.0).rollout
    refused = tick(state, replace(ready, command="abort"), 5.0)
    assert refused.events == (("refused", "abort refused: there is nothing to go back to"),)
    state = tick(state, ready, 6.0).rollout
    assert tick(state, ready, 16.0).rollout.status is RolloutStatus.PROMOTED


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
    assert at_last.promoted_at == 61.0
    assert tick(go(5), replace(FINE, command="skip"), 101.0).rollout.status is PROMOTED
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
    assert kinds_of(blue_green) == "shadow 0.2, analysis 0, canary 1, promote 0, bake 0"
    bare = RolloutConfig(
        strategy="blue_green",
        steps=(Step(weight=1.0, min_units=7), Step(kind=StepKind.APPROVE)),
        bake_seconds=0,
    )
    assert kinds_of(bare) == "shadow 1, approve 0, analysis 0, canary 1, promote 0"
    assert steps_for(bare)[0].min_units == 7


def test_shadow_only_promotes_nobody() -> None:
    config = CONFIG.model_copy(update={"strategy": "shadow_only"})
    assert kinds_of(config) == "shadow 0.2, analysis 0"
    state = rollout(config)
    for n in range(3):
        state = tick(state, replace(FINE, assessments=UNDECIDED), 20.0 * n).rollout
        assert weights_of(state) == {"challenger": 0.0, "shadow": 0.2}
    ended = tick(state, FINE, 80.0)
    assert ended.rollout.status is RolloutStatus.OBSERVED
    assert ended.rollout.verdict is Verdict.PASS
    assert ended.weights == {"challenger": 0.0, "shadow": 0.0}


def test_written_out_steps_are_taken_as_they_are() -> None:
    steps = (
        Step(kind=StepKind.STAGE),
        Step(weight=0.1),
        Step(kind=StepKind.PAUSE, min_seconds=None),
        Step(weight=0.5),
        Step(kind=StepKind.PROMOTE),
        Step(kind=StepKind.BAKE, min_seconds=60, weight=0.05),
    )
    listed = "stage 0, canary 0.1, pause 0, canary 0.5, canary 1, promote 0, bake 0.05"
    assert kinds_of(RolloutConfig(steps=steps)) == listed


def kinds_of(config: RolloutConfig) -> str:
    return ", ".join(f"{s.kind} {s.weight:g}" for s in steps_for(config))


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([{"weight": 0.5}, {"weight": 0.1}], "must not fall"),
        ([{"weight": 0.5}, {"kind": "stage"}], "first step"),
        ([{"weight": 0.5}, {"kind": "shadow", "weight": 0.1}], "shadow step after"),
        ([{"kind": "promote"}, {"weight": 0.1}], "only be bake"),
        ([{"kind": "bake"}], "comes after promote"),
        ([{"kind": "canary"}], "needs one above 0"),
        ([{"kind": "approve", "min_units": 3}], "min_units is not read by a approve step"),
        ([{"weight": 0.5, "min_seconds": None}], "only a pause"),
        ([], "at least 1"),
    ],
)
def test_lists_that_make_no_sense_are_refused(steps: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        RolloutConfig.model_validate({"steps": steps})


# ------------------------------------------------------------------------------------ bake, waits


def baking(holdback: float = 0.1, **facts: Any) -> Rollout:
    """A promoted rollout in its bake, entered at 100."""
    config = CONFIG.model_copy(update={"holdback": holdback})
    state = rollout(config)
    for n in range(6):
        state = tick(state, replace(FINE, **facts), 20.0 * n).rollout
    assert state.steps[state.step].kind is StepKind.BAKE
    return state


def test_the_bake_holds_users_back_and_ends_promoted() -> None:
    state = baking()
    assert weights_of(state) == {"challenger": 0.9, "shadow": 0.0}
    assert tick(state, FINE, 105.0).rollout.status is RolloutStatus.RUNNING
    # Nothing new has to be proven, and no deadline of the evidence ends it.
    ended = tick(state, replace(FINE, assessments=()), 5000.0)
    assert ended.rollout.status is RolloutStatus.PROMOTED
    assert ended.rollout.reason.startswith("every guardrail is proven")
    assert ended.weights["challenger"] == 1.0


def test_a_bake_ends_only_once_all_that_was_served_in_it_is_judged() -> None:
    state = baking()  # from 100 to 110
    late = replace(FINE, unjudged_at=109.0)
    waits = tick(state, late, 111.0)
    assert [text for _, text in waits.events] == [
        "waiting for the scores of what users were given in this time"
    ]
    state = tick(waits.rollout, late, 112.0).rollout
    assert state.status is RolloutStatus.RUNNING
    overdue = tick(state, late, 111.0 + state.max_seconds)
    assert [kind for kind, _ in overdue.events] == ["overdue"]
    assert tick(overdue.rollout, late, 9e9).events == ()
    # What was served after its time does not hold it up, nor what is harmful go on.
    ended = tick(overdue.rollout, replace(FINE, unjudged_at=110.5), 112.0).rollout
    assert ended.status is RolloutStatus.PROMOTED
    harmed = tick(overdue.rollout, replace(late, assessments=HARMFUL), 112.0).rollout
    assert harmed.status is RolloutStatus.ROLLED_BACK


def test_no_step_ends_before_it_began() -> None:
    """The clock was set back between two controllers, of which the second has nothing to compare
    it with."""
    ended = tick(go(1), replace(FINE, command="abort"), -3600.0).rollout
    assert all(h.left_at is not None and h.left_at >= h.entered_at for h in ended.history)


def test_the_proof_is_told_by_who_is_crowned_and_the_bake_by_who_stays() -> None:
    state, now, told = rollout(), 0.0, dict[str, str]()
    while not state.status.final:
        decision = tick(state, FINE, now)
        told |= dict(decision.events)
        state, now = decision.rollout, now + 20.0
    assert told["crowned"].startswith("every guardrail is proven")
    assert told["promoted"] == "it stays champion: no reason to go back in 40 s"
    assert state.history[-1].decision == f"promoted: {told['promoted']}"
    assert state.reason == told["crowned"]
    asked = replace(FINE, command="skip", actor="ann")
    (_, text), *_ = tick(baking(), asked, 101.0).events
    assert text == "it stays champion: no reason to go back in 21 s (skipped by ann)"


@pytest.mark.parametrize(
    "changes", [{"trips": (TRIP,)}, {"assessments": HARMFUL}, {"dead": True}, {"command": "abort"}]
)
def test_harm_in_the_bake_goes_back(changes: dict[str, Any]) -> None:
    decision = tick(baking(), replace(FINE, **changes), 101.0)
    assert decision.rollout.status is RolloutStatus.ROLLED_BACK
    assert decision.rollout.promoted_at == 80.0
    assert decision.weights["challenger"] == 0.0


def test_it_does_not_go_back_to_a_champion_that_is_not_ready() -> None:
    sick = replace(FINE, assessments=HARMFUL, champion_ready=False)
    for state, share in ((go(2), 0.5), (baking(), 0.9)):
        first = tick(state, sick, 200.0)
        assert first.rollout.status is RolloutStatus.RUNNING
        assert first.weights["challenger"] == share
        assert [kind for kind, _ in first.events] == ["returning"]
        again = tick(first.rollout, sick, 201.0)
        assert again.events == ()
        # Once decided it goes back, whatever the evidence says by then.
        back = tick(again.rollout, FINE, 202.0).rollout
        assert back.status is RolloutStatus.ROLLED_BACK
        assert back.reason.startswith("harmful: slow")
        assert back.verdict is Verdict.FAIL
        # If the challenger cannot answer either, nothing is lost by going back.
        dead = tick(again.rollout, replace(sick, dead=True), 202.0).rollout
        assert dead.status is RolloutStatus.ROLLED_BACK


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"challenger_ready": False}, "it is not ready"),
        ({"observed_epoch_applied": False}, "the gateway does not follow"),
    ],
)
def test_stuck_for_too_long_goes_back(changes: dict[str, Any], words: str) -> None:
    stuck = replace(FINE, **changes)
    state = tick(go(1), stuck, 100.0).rollout
    assert tick(state, FINE, 650.0).rollout.stuck_since is None
    state = tick(state, stuck, 699.0).rollout
    assert state.status is RolloutStatus.RUNNING
    ended = tick(state, stuck, 700.0).rollout
    assert ended.status is RolloutStatus.ROLLED_BACK
    assert ended.reason == f"no progress for 600 s: {words}"


def waits_at(step: Step) -> Rollout:
    """A rollout that entered ``step``, after 5 % of users, at 20."""
    config = RolloutConfig(
        steps=(Step(weight=0.05, min_seconds=10, min_units=5), step, Step(weight=0.5)),
        max_seconds=10_000,
    )
    state = rollout(config)
    for now in (0.0, 20.0):
        state = tick(state, FINE, now).rollout
    assert state.steps[state.step].kind is step.kind
    assert weights_of(state)["challenger"] == 0.05
    return state


def test_an_approval_is_waited_for_and_never_skipped() -> None:
    state = waits_at(Step(kind=StepKind.APPROVE, deadline_s=100))
    assert tick(state, FINE, 119.0).rollout == state
    for command in ("skip", "promote", "resume"):
        decision = tick(state, replace(FINE, command=command), 50.0)
        assert [kind for kind, _ in decision.events] == ["refused"]
        assert decision.rollout.step == state.step
    before = go(1)
    early = tick(before, replace(FINE, command="approve"), 25.0)
    assert early.events == (("refused", "approve refused: it does not wait for an approval"),)
    word = replace(FINE, command="approve", actor="ada", why="looks fine", asked_at=90.0)
    approved = tick(state, word, 500.0)  # read late, given in time
    assert approved.rollout.step == state.step + 1
    assert "approved by ada: looks fine" in approved.events[0][1]
    late = tick(state, replace(word, asked_at=120.0), 120.0).rollout
    assert late.status is RolloutStatus.INCONCLUSIVE
    assert late.reason == "nobody approved within 100 s"
    harm = tick(state, replace(FINE, assessments=HARMFUL), 30.0).rollout
    assert harm.status is RolloutStatus.ROLLED_BACK


def test_an_approval_that_may_be_late_is_told_once() -> None:
    state = waits_at(Step(kind=StepKind.APPROVE, deadline_s=100, on_timeout="hold"))
    first = tick(state, FINE, 120.0)
    assert [kind for kind, _ in first.events] == ["overdue"]
    assert tick(first.rollout, FINE, 121.0).events == ()
    word = replace(FINE, command="approve")
    assert tick(first.rollout, word, 5000.0).rollout.step == state.step + 1


def test_a_pause_does_not_use_up_an_approval() -> None:
    state = waits_at(Step(kind=StepKind.APPROVE, deadline_s=100))
    state = tick(state, replace(FINE, command="pause"), 60.0).rollout
    state = tick(state, FINE, 5000.0).rollout
    state = tick(state, replace(FINE, command="resume"), 5060.0).rollout
    assert tick(state, FINE, 5110.0).rollout.status is RolloutStatus.RUNNING
    assert tick(state, FINE, 5120.0).rollout.status is RolloutStatus.INCONCLUSIVE


def test_a_pause_step_ends_by_time_or_by_hand() -> None:
    timed = waits_at(Step(kind=StepKind.PAUSE, min_seconds=30))
    assert tick(timed, FINE, 49.0).rollout.step == 1
    assert tick(timed, FINE, 50.0).rollout.step == 2
    held = waits_at(Step(kind=StepKind.PAUSE, min_seconds=None))
    assert tick(held, FINE, 9000.0).rollout.step == 1
    assert tick(held, replace(FINE, command="resume"), 9000.0).rollout.step == 2
    assert tick(held, replace(FINE, command="skip"), 9000.0).rollout.step == 2


def test_an_analysis_step_waits_for_the_proof() -> None:
    state = waits_at(Step(kind=StepKind.ANALYSIS))
    waiting = tick(state, replace(FINE, assessments=UNDECIDED), 30.0)
    assert waiting.events == (("waiting", "waiting for slow (undecided)"),)
    assert tick(waiting.rollout, FINE, 31.0).rollout.step == 2


def test_evidence_that_does_not_come_can_be_waited_for() -> None:
    state = replace(go(2), on_inconclusive="hold")
    facts = replace(FINE, assessments=UNDECIDED)
    first = tick(state, facts, 1000.0)
    assert [kind for kind, _ in first.events] == ["overdue"]
    assert "not proven within 1000 s" in first.events[0][1]
    second = tick(first.rollout, facts, 2000.0)
    assert second.rollout.status is RolloutStatus.RUNNING
    assert second.weights["challenger"] == 0.5
    assert tick(second.rollout, FINE, 3000.0).rollout.step == 3


def test_who_is_asked_may_accept_what_is_undecided_and_nothing_else() -> None:
    state = replace(go(2), on_inconclusive="ask")
    undecided = replace(FINE, assessments=UNDECIDED)
    word = replace(undecided, command="approve", actor="ada", why="seen 300 pictures")
    early = tick(state, word, 500.0)
    assert early.events == (("refused", "approve refused: it does not wait for an approval"),)
    asked = tick(state, undecided, 1000.0)
    assert [kind for kind, _ in asked.events] == ["asking"]
    again = tick(asked.rollout, undecided, 1001.0).events
    assert again == (("waiting", "waiting for slow (undecided)"),)
    unmeasured = assessed(Assessment.NON_INFERIOR, Assessment.UNDECIDED)
    for facts, words in (
        (replace(word, why=""), "say why with --reason"),
        (replace(word, assessments=unmeasured), "clip_score was not measured"),
        (replace(word, assessments=PROVEN), "nothing is undecided"),
    ):
        refused = tick(asked.rollout, facts, 1001.0)
        assert not refused.rollout.accepted
        assert words in refused.events[0][1]
    accepted = tick(asked.rollout, word, 1001.0)
    said = "accepted unproven by ada: seen 300 pictures: slow undecided"
    assert accepted.events == (("accepted", said),)
    assert accepted.rollout.accepted == ("slow",)
    # What was proven then and is undecided now was not accepted; what is harmful never is.
    other = assessed(Assessment.UNDECIDED, Assessment.UNDECIDED, Assessment.NON_INFERIOR)
    assert tick(accepted.rollout, replace(FINE, assessments=other), 1002.0).rollout.step == 2
    harm = tick(accepted.rollout, replace(FINE, assessments=HARMFUL), 1002.0).rollout
    assert harm.status is RolloutStatus.ROLLED_BACK
    state, now = accepted.rollout, 1002.0
    while not state.status.final:
        state, now = tick(state, undecided, now).rollout, now + 20.0
    assert state.status is PROMOTED
    assert state.verdict is Verdict.INCONCLUSIVE
    assert state.reason.startswith(said + "; proven: errors")
    assert decode(Rollout, encode(state)) == state


# ------------------------------------------------------------------------------------ workers


def rolling(replicas: int = 4, surge: int = 1, unavailable: int = 0) -> Rollout:
    config = CONFIG.model_copy(
        update={"strategy": "rolling", "max_surge": surge, "max_unavailable": unavailable}
    )
    whole = Config.model_validate(
        {"service": "s", "serving": {"replicas": replicas}, "rollout": config.model_dump()}
    )
    capacity = capacity_of(whole)
    return replace(rollout(), steps=steps_for(whole.rollout, capacity), capacity=capacity)


def test_rolling_is_a_list_of_waves() -> None:
    state = rolling(5, surge=2)
    assert [(s.kind, s.weight, s.replicas) for s in state.steps] == [
        (StepKind.SHADOW, 0.2, 0),
        (StepKind.CANARY, 0.4, 2),
        (StepKind.CANARY, 0.8, 4),
        (StepKind.CANARY, 1.0, 5),
        (StepKind.PROMOTE, 0.0, 0),
        (StepKind.BAKE, 0.0, 0),
    ]
    single = kinds_of(CONFIG.model_copy(update={"strategy": "blue_green"}))
    alone = rolling(1)
    assert ", ".join(f"{s.kind} {s.weight:g}" for s in alone.steps) == single


def test_a_wave_waits_for_its_workers_and_then_for_nothing_else() -> None:
    state = replace(rolling(), history=())
    for n, ready in enumerate((1, 1)):
        facts = replace(FINE, challenger_replicas=ready, champion_replicas=4)
        state = tick(state, facts, 20.0 * n).rollout
    assert state.step == 1  # a quarter of the users
    early = tick(state, facts, 25.0).rollout
    assert (early.step, early.capacity, early.step_since) == (1, state.capacity, state.step_since)
    begun = tick(state, facts, 31.0)
    assert begun.events == (("scaling", "2 of 4 workers are to be the challenger's"),)
    assert begun.weights["challenger"] == 0.25
    waiting = tick(begun.rollout, replace(facts, units_at_step=0), 32.0)
    assert waiting.events[0][1] == "waiting for 1 of 2 workers of the challenger to be ready"
    two = replace(facts, challenger_replicas=2, units_at_step=0)
    entered = tick(waiting.rollout, two, 33.0)
    assert (entered.rollout.step, entered.weights["challenger"]) == (2, 0.5)
    # A person ends a wave early, and passes over none.
    for command in ("skip", "promote"):
        hurried = tick(entered.rollout, replace(two, command=command, actor="ada"), 34.0)
        assert hurried.events[0][0] == "scaling"
        assert "by ada" in hurried.events[0][1]
        assert hurried.rollout.step == 2
        three = replace(two, challenger_replicas=3)
        assert tick(hurried.rollout, three, 35.0).rollout.step == 3


def test_no_worker_of_the_last_wave_is_started_without_proof() -> None:
    state = rolling(2)
    facts = replace(FINE, challenger_replicas=1, champion_replicas=2, assessments=UNDECIDED)
    for n in range(4):
        state = tick(state, facts, 20.0 * n).rollout
    assert state.step == 1
    assert state.capacity is not None
    assert state.capacity.challenger == 1
    assert state.history[-1].decision == "waiting for slow (undecided)"
    proven = tick(state, replace(facts, assessments=PROVEN), 90.0)
    assert proven.events[0][0] == "scaling"


def test_users_go_back_as_the_champions_workers_come_back() -> None:
    state = rolling()
    for n, there in enumerate((1, 1, 1, 2)):
        facts = replace(FINE, challenger_replicas=there, champion_replicas=4 - there)
        state = tick(state, replace(facts, champion_replicas=2), 20.0 * n).rollout
    assert weights_of(state)["challenger"] == 0.5
    harm = replace(facts, assessments=HARMFUL, champion_ready=False)
    shares = []
    for now, ready in ((100.0, 2), (101.0, 3), (102.0, 3)):
        decision = tick(state, replace(harm, champion_replicas=ready), now)
        state = decision.rollout
        shares.append(decision.weights["challenger"])
    assert shares == [0.5, 0.25, 0.25]
    back = tick(state, replace(harm, champion_replicas=4, champion_ready=True), 103.0)
    assert back.rollout.status is RolloutStatus.ROLLED_BACK
    assert back.weights["challenger"] == 0.0
    assert back.rollout.reason.startswith("harmful: slow")


def test_in_place_replaces_without_proof_and_says_so() -> None:
    config = CONFIG.model_copy(
        update={
            "strategy": "in_place",
            "force": True,
            "steps": (Step(kind=StepKind.APPROVE, deadline_s=5000), *CONFIG.steps),
        }
    )
    assert kinds_of(config) == "approve 0, replace 1, promote 0, bake 0"
    gone = RolloutFacts(observed_epoch_applied=True)  # the challenger is not loaded
    state = tick(rollout(config), gone, 0.0).rollout
    state = tick(state, gone, 700.0).rollout
    assert state.stuck_since is None  # nobody asked for it yet
    replaced = tick(state, replace(gone, command="approve"), 800.0)
    assert replaced.weights["challenger"] == 1.0
    loading = tick(replaced.rollout, replace(gone, champion_ready=False), 801.0).rollout
    assert loading.stuck_since == 801.0
    ready = replace(gone, challenger_ready=True, champion_ready=False)
    unseen = tick(loading, replace(ready, observed_epoch_applied=False), 802.0).rollout
    assert unseen.promoted_at is None
    crowned = tick(unseen, ready, 803.0).rollout
    assert crowned.promoted_at == 803.0
    # A dead challenger is not left for a champion that is not there: it is started first.
    dead = replace(ready, challenger_ready=False, dead=True)
    returning = tick(crowned, dead, 804.0).rollout
    assert returning.returning == "the challenger's worker is gone"
    back = tick(returning, replace(dead, champion_ready=True, dead=False), 850.0).rollout
    assert back.status is RolloutStatus.ROLLED_BACK
    ended = tick(tick(crowned, ready, 804.0).rollout, ready, 900.0).rollout
    assert (ended.status, ended.verdict) == (PROMOTED, Verdict.INCONCLUSIVE)


# ------------------------------------------------------------------------------------ whatever


kinds = st.sampled_from(list(Assessment))


class AnyTraffic(RuleBasedStateMachine):
    """Random facts and commands in random order."""

    @initialize(
        champion=st.sampled_from(["A", None]),
        strategy=st.sampled_from(["canary", "blue_green", "shadow_only"]),
        holdback=st.sampled_from([0.0, 0.05]),
        waits=st.booleans(),
    )
    def begin(self, champion: str | None, strategy: str, holdback: float, waits: bool) -> None:
        steps = list(CONFIG.steps)
        if waits:
            steps[2:2] = [
                Step(kind=StepKind.APPROVE, deadline_s=300),
                Step(kind=StepKind.PAUSE, min_seconds=None),
                Step(kind=StepKind.ANALYSIS),
            ]
        config = CONFIG.model_copy(
            update={"strategy": strategy, "holdback": holdback, "steps": tuple(steps)}
        )
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
        healthy=st.booleans(),
        command=st.sampled_from(
            [None, None, None, "pause", "resume", "promote", "skip", "approve", "x"]
        ),
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
        healthy: bool,
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
            champion_ready=healthy or lucky,
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
        alone = before.promoted_at is not None and before.champion is None
        if (trouble or harmful or before.returning) and not alone:
            can = facts.champion_ready or before.champion is None or facts.dead
            late = before.returning_verdict is Verdict.INCONCLUSIVE
            ended = RolloutStatus.INCONCLUSIVE if late else RolloutStatus.ROLLED_BACK
            assert after.status is (ended if can else before.status)
            assert can or after.returning
        proven = {
            a.metric
            for a in facts.assessments
            if a.assessment in (Assessment.NON_INFERIOR, Assessment.SUPERIOR)
        }
        gained = decision.weights["challenger"] - self.weights["challenger"]
        crowned = after.promoted_at is not None and before.promoted_at is None
        if after.champion is not None and (
            crowned
            or (before.promoted_at is None and decision.weights["challenger"] == 1.0 and gained > 0)
        ):
            assert proven == set(METRICS)
        if after.step > before.step and before.history:
            left = {s.kind for s in before.steps[before.step : after.step]}
            assert StepKind.APPROVE not in left or command == "approve"
        if after.status.final and after.status is not RolloutStatus.PROMOTED:
            assert decision.weights == {"challenger": 0.0, "shadow": 0.0}
        elif after.promoted_at is not None:
            assert decision.weights["challenger"] >= 0.95
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
