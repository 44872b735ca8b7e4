"""A split's arms: who takes part, who is taken out, who wins, and what a person's word can do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from pydantic import ValidationError

from intonaco.codec import decode, encode
from intonaco.config import RolloutConfig, SplitConfig
from intonaco.rollout.machine import RolloutFacts, tick, weights_of
from intonaco.rollout.quarantine import quarantined
from intonaco.rollout.split import ArmFacts, arms_for, planned, shares
from intonaco.rollout.strategies import steps_for
from intonaco.types import (
    Action,
    Assessment,
    BreakerTrip,
    Candidate,
    Cause,
    MetricAssessment,
    PairComparison,
    Phase,
    Plan,
    Rollout,
    RolloutStatus,
    StepKind,
    Update,
    Verdict,
)

METRICS = ("errors", "slow", "clip_score")
SUPERIOR, NON_INFERIOR = Assessment.SUPERIOR, Assessment.NON_INFERIOR
UNDECIDED, HARMFUL = Assessment.UNDECIDED, Assessment.HARMFUL
TRIP = BreakerTrip(release="rel-b", at=5.0, first_failure_at=4.0, failures=3, reason="in a row")


def assessed(
    errors: Assessment = NON_INFERIOR,
    slow: Assessment = NON_INFERIOR,
    clip: Assessment = NON_INFERIOR,
    difference: float = 0.03,
) -> tuple[MetricAssessment, ...]:
    return tuple(
        MetricAssessment(
            metric=metric,
            assessment=found,
            difference=difference,
            interval=(difference - 0.01, difference + 0.01),
            margin=0.05,
            evidence_harm=1.0,
            evidence_non_inferior=5.0,
            threshold=5.5,
            units_challenger=50,
            units_champion=50,
        )
        for metric, found in zip(METRICS, (errors, slow, clip), strict=True)
    )


WINS = assessed(clip=SUPERIOR)
PROVEN = assessed()
OPEN = assessed(errors=UNDECIDED)


def arm(name: str, found: tuple[MetricAssessment, ...] = PROVEN, **changes: Any) -> ArmFacts:
    return replace(ArmFacts(name=name, assessments=found, units=100), **changes)


def facts(*arms: ArmFacts, **changes: Any) -> RolloutFacts:
    return replace(RolloutFacts(arms=arms, observed_epoch_applied=True), **changes)


def rollout(names: str = "abc", **ab: Any) -> Rollout:
    config = RolloutConfig(
        strategy="ab",
        ab=SplitConfig(**({"min_seconds": 10, "min_units": 20} | ab)),
        bake_seconds=10,
        max_seconds=1000,
    )
    split = planned({n: f"rel-{n}" for n in names}, config.ab)
    return Rollout(
        rollout_id="r",
        service_id="s",
        update_id="u",
        champion="A",
        challenger=split.arms[0].release,
        steps=steps_for(config, split=split),
        status=RolloutStatus.RUNNING,
        started_at=0.0,
        max_seconds=1000,
        stuck_seconds=60.0,
        split=split,
    )


def begun(names: str = "abc", **ab: Any) -> Rollout:
    decision = tick(rollout(names, **ab), facts(*(arm(n, ()) for n in names)), 0.0)
    assert decision.events[0][0] == "begun"
    return decision.rollout


def split_of(state: Rollout) -> Any:
    assert state.split is not None
    return state.split


# ------------------------------------------------------------------------------------ beforehand


def test_shares_by_name_together_and_equal() -> None:
    assert shares(SplitConfig(), ("a", "b", "c")) == {"a": 0.25, "b": 0.25, "c": 0.25}
    together = SplitConfig(split={"champion": 0.4, "challenger": 0.6})
    assert shares(together, ("a", "b")) == {"a": 0.3, "b": 0.3}
    named = SplitConfig(split={"champion": 0.4, "a": 0.5, "challenger": 0.1})
    assert shares(named, ("a", "b")) == {"a": 0.5, "b": 0.1}
    only = SplitConfig(split={"champion": 0.4, "a": 0.6})
    assert shares(only, ("a", "b")) == {"a": 0.6}  # nobody said what b should get
    split = planned({"b": "rel-b"}, named)
    assert split.champion_share == pytest.approx(0.9)  # what a would have had is the champion's
    changed = planned({"b": "rel-b"}, only)  # edited after b was staged
    assert [(a.name, a.share) for a in changed.arms] == [("b", 0.5)]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"strategy": "ab", "ab": {"metric": "beauty"}}, "'beauty' is not one of errors"),
        ({"strategy": "ab", "ab": {"split": {"champion": 0.5, "a": 0.4}}}, "sum to 0.9"),
        ({"strategy": "ab", "ab": {"split": {"a": 0.5, "b": 0.5}}}, "share of the champion"),
        ({"strategy": "ab", "ab": {"split": {"champion": 1.0}}}, "less than 1"),
        (
            {
                "strategy": "ab",
                "ab": {"split": {"champion": 0.5, "b": 0.5}, "arms": {"x": "0" * 64}},
            },
            "no share for x",
        ),
        ({"strategy": "ab", "ab": {"arms": {"x": "abc"}}}, "should match pattern"),
        ({"strategy": "ab", "ab": {"arms": {"champion": "0" * 64}}}, "no names for arms"),
        ({"strategy": "canary", "ab": {"metric": "slow"}}, "not read by strategy 'canary'"),
        ({"strategy": "ab", "metrics": ["errors", "slow"]}, "clip_score is not one of metrics"),
        ({"steps": [{"kind": "split"}]}, "a split is not listed"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        RolloutConfig.model_validate(given)


def update(*candidates: Candidate) -> Update:
    plan = Plan(
        plan_id="p",
        service_id="s",
        at=0.0,
        action=Action.FINE_TUNE,
        cause=Cause.REQUESTED,
        reason="",
    )
    return Update(
        update_id="u",
        service_id="s",
        plan=plan,
        phase=Phase.STAGE,
        created_at=0.0,
        phase_since=0.0,
        champion="A",
        candidates=candidates,
        chosen="rel-a",
    )


def candidate(name: str, verdict: Verdict = Verdict.PASS, release: str | None = None) -> Candidate:
    return Candidate(name=name, verdict=verdict, release_id=release or f"rel-{name}")


def test_arms_are_the_candidates_that_passed_and_named_releases() -> None:
    known, unknown, bad = ("1" * 64, "2" * 64, "3" * 64)
    config = SplitConfig(arms={"old": known, "strange": unknown, "burnt": bad})
    made = update(
        candidate("a"),
        candidate("b", Verdict.FAIL),
        candidate("c d/e"),
        candidate("same", release="rel-a"),
        candidate("now", release="A"),
    )
    arms, left_out = arms_for(made, config, {known, bad}, {bad: "harmful"})
    assert arms == {"a": "rel-a", "c-d-e": "rel-c d/e", "old": known}
    assert left_out == (
        "same is the same release as another arm",
        "now is the champion",
        "strange has never passed the gate",
        "burnt is in quarantine: harmful",
    )
    many = update(*(candidate(f"n{k}") for k in range(7)))
    arms, left_out = arms_for(many, SplitConfig(), (), {})
    assert len(arms) == 5
    assert left_out[0] == "n5 would be one more than 5 arms"


def test_a_split_begins_when_all_are_ready() -> None:
    state = rollout()
    assert [s.kind for s in state.steps] == [
        StepKind.SPLIT, StepKind.CANARY, StepKind.PROMOTE, StepKind.BAKE,
    ]  # fmt: skip
    decision = tick(state, facts(arm("a"), arm("b", ready=False), arm("c")), 1.0)
    assert decision.rollout.history == ()
    assert decision.weights["challenger"] == 0.0
    assert weights_of(begun())["challenger"] == pytest.approx(0.75)
    assert begun().challengers == ("rel-a", "rel-b", "rel-c")
    assert decode(Rollout, encode(begun())) == begun()


def test_a_ledger_from_before_has_no_split() -> None:
    old = encode(replace(begun(), split=None)).replace(',"split":null', "")
    assert "split" not in old.replace('"kind":"split"', "")
    assert decode(Rollout, old).split is None


# ------------------------------------------------------------------------------------ taken out


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ({"assessments": assessed(errors=HARMFUL)}, "harmful: errors"),
        ({"trips": (TRIP,)}, "the breaker tripped after 3 failures"),
        ({"dead": True, "ready": False}, "its worker is gone"),
    ],
)
def test_one_is_taken_out_and_the_rest_goes_on(gone: dict[str, Any], words: str) -> None:
    bad = replace(arm("b"), **gone)
    for state in (begun(), replace(begun(), status=RolloutStatus.PAUSED, paused_at=1.0)):
        decision = tick(state, facts(arm("a"), bad, arm("c"), frozen=True), 5.0)
        assert [kind for kind, _ in decision.events] == ["removed"]
        assert words in decision.events[0][1]
        split = split_of(decision.rollout)
        assert [a.name for a in split.live] == ["a", "c"]
        assert split.arm("b").removed_at == 5.0
        assert decision.weights["challenger"] == pytest.approx(0.5)
        assert decision.rollout.status is state.status
        # It never comes back, however well it looks later.
        later = tick(decision.rollout, facts(arm("a"), arm("b", WINS), arm("c")), 6.0)
        assert [a.name for a in split_of(later.rollout).live] == ["a", "c"]
        assert quarantined([later.rollout]).keys() == {"rel-b"}


def test_a_stuck_arm_is_taken_out_alone() -> None:
    state = begun()
    slow = (arm("a"), arm("b", ready=False), arm("c"))
    for now in (5.0, 30.0, 64.0):
        state = tick(state, facts(*slow), now).rollout
        assert len(split_of(state).live) == 3
    decision = tick(state, facts(*slow), 65.0)
    assert decision.events[0] == (
        "removed",
        "b (rel-b) is taken out, its users go to the champion: not ready for 60 s",
    )
    assert decision.rollout.status is RolloutStatus.RUNNING
    assert decision.rollout.stuck_since is None


def test_nobody_goes_to_a_champion_that_is_not_ready() -> None:
    bad = arm("b", assessed(errors=HARMFUL))
    held = tick(begun(), facts(arm("a"), bad, arm("c"), champion_ready=False), 5.0)
    assert len(split_of(held.rollout).live) == 3
    let_go = tick(held.rollout, facts(arm("a"), bad, arm("c")), 6.0)
    assert len(split_of(let_go.rollout).live) == 2
    dead = tick(begun(), facts(arm("a"), replace(bad, dead=True), champion_ready=False), 5.0)
    assert split_of(dead.rollout).arm("b").removed_at == 5.0


def test_the_last_one_taken_out_rolls_back() -> None:
    bad = assessed(clip=HARMFUL)
    decision = tick(begun("ab"), facts(arm("a", bad), arm("b", dead=True)), 5.0)
    assert decision.rollout.status is RolloutStatus.ROLLED_BACK
    assert decision.rollout.verdict is Verdict.FAIL
    assert decision.rollout.reason.startswith("no challenger is left: a: harmful: clip_score")
    assert [kind for kind, _ in decision.events] == ["removed", "removed", "rolled_back"]
    assert decision.weights["challenger"] == 0.0


def test_a_split_that_is_not_the_logged_one_is_an_error() -> None:
    decision = tick(begun(), facts(arm("a"), arm("b"), arm("c"), sample_ratio_ok=False), 5.0)
    assert decision.rollout.verdict is Verdict.ERROR
    assert not quarantined([decision.rollout])


# ------------------------------------------------------------------------------------ who wins


def test_the_winner_goes_to_everybody_and_is_promoted() -> None:
    state = begun()
    three = (arm("a", WINS), arm("b", OPEN), arm("c"))
    assert tick(state, facts(*three), 9.0).rollout.step == 0  # too early
    few = (arm("a", WINS), replace(arm("b", OPEN), units=19), arm("c"))
    assert tick(state, facts(*few), 20.0).rollout.step == 0  # too few
    decision = tick(state, facts(*three), 20.0)
    now = decision.rollout
    assert (now.step, now.challenger, now.challengers) == (1, "rel-a", ("rel-a",))
    assert split_of(now).winner == "a"
    assert decision.weights == {"challenger": 1.0, "shadow": 0.0}
    alone = RolloutFacts(assessments=WINS, challenger_ready=True, observed_epoch_applied=True)
    for at in (30.0, 40.0, 50.0):
        now = tick(now, alone, at).rollout
    assert now.status is RolloutStatus.PROMOTED
    assert now.reason.startswith("a is better than the champion: clip_score +0.020 to +0.040")


def test_of_several_the_best_estimate_and_what_is_not_proven_is_said() -> None:
    best = assessed(clip=SUPERIOR, difference=0.05)
    pairs = (
        PairComparison(first="a", second="b", difference=-0.02, interval=(-0.04, 0.0)),
        PairComparison(first="b", second="c", difference=0.01, interval=(-0.01, 0.03)),
    )
    decision = tick(begun(), facts(arm("a", WINS), arm("b", best), arm("c"), pairs=pairs), 20.0)
    split = split_of(decision.rollout)
    assert split.winner == "b"
    assert "proven better than a (+0.000 to +0.040)" in split.text.replace("-0.000", "+0.000")
    assert "the best estimate, not proven better than c (-0.010 to +0.030)" in split.text


def test_down_is_better_for_errors() -> None:
    found = {n: assessed(errors=SUPERIOR, difference=d) for n, d in (("a", -0.02), ("b", -0.05))}
    state = begun("ab", metric="errors")
    pairs = (PairComparison(first="a", second="b", difference=0.03, interval=(0.0, 0.06)),)
    decision = tick(state, facts(*(arm(n, f) for n, f in found.items()), pairs=pairs), 20.0)
    assert split_of(decision.rollout).winner == "b"
    assert "proven better than a" in split_of(decision.rollout).text
    assert "not proven" not in split_of(decision.rollout).text


@pytest.mark.parametrize(
    "found", [PROVEN, OPEN, assessed(clip=SUPERIOR, slow=UNDECIDED), (), WINS[1:]]
)
def test_nobody_wins_without_all_of_it(found: tuple[MetricAssessment, ...]) -> None:
    decision = tick(begun("a"), facts(arm("a", found)), 20.0)
    assert decision.rollout.step == 0
    assert decision.events[0][0] == "waiting"
    assert decision.events[0][1].startswith("waiting for an arm to win on clip_score: a lacks ")
    ended = tick(decision.rollout, facts(arm("a", found)), 1000.0)
    assert ended.rollout.status is RolloutStatus.INCONCLUSIVE
    assert ended.rollout.reason.startswith("not proven within 1000 s: a with 100 users: ")
    assert ended.weights["challenger"] == 0.0


def test_what_is_waited_for_is_told_once() -> None:
    state = tick(begun("a"), facts(arm("a", OPEN)), 20.0).rollout
    assert tick(state, facts(arm("a", OPEN)), 21.0).events == ()
    assert tick(state, facts(arm("a", PROVEN)), 22.0).events[0][0] == "waiting"


# ------------------------------------------------------------------------------------ by hand


def refused(state: Rollout, command: str, *arms: ArmFacts, **changes: Any) -> str:
    decision = tick(state, facts(*arms, command=command, actor="ann", **changes), 5.0)
    (kind, text), *_ = decision.events
    assert kind == "refused"
    assert decision.rollout.step == state.step
    return text


def test_commands_that_make_no_sense_are_refused_with_a_sentence() -> None:
    state, two = begun("ab"), (arm("a", PROVEN), arm("b", OPEN))
    assert "to win on clip_score" in refused(state, "promote", *two)
    assert "to win on clip_score" in refused(state, "skip", *two)
    assert "b lacks errors (undecided)" in refused(state, "promote", *two, arm="b")
    assert "no arm 'x' is in the split; there are a, b" in refused(state, "promote", *two, arm="x")
    assert "does not wait for an approval" in refused(state, "approve", *two, arm="a")
    assert "promote --arm names one" in refused(state, "skip", *two, arm="a")
    assert "frozen" in refused(state, "promote", *two, arm="a", frozen=True)
    told = begun("ab", winner="none")
    assert "nobody is promoted" in refused(told, "promote", *two, arm="a")
    asks = begun("ab", winner="ask")
    assert "approve" in refused(asks, "skip", arm("a", WINS), arm("b"))
    assert "approve" in refused(asks, "promote", arm("a", WINS), arm("b"), arm="a")


def test_a_person_may_take_an_arm_that_is_proven_no_worse() -> None:
    two = (arm("a", PROVEN), arm("b", OPEN))
    asked = facts(*two, command="promote", arm="a", actor="ann", why="cheaper")
    decision = tick(begun("ab"), asked, 5.0)
    assert split_of(decision.rollout).winner == "a"
    assert "lacking to be better on clip_score" in split_of(decision.rollout).text
    assert split_of(decision.rollout).text.endswith("promoted by ann: cheaper")
    assert decision.weights["challenger"] == 1.0


def test_skip_takes_the_winner_before_its_time() -> None:
    asked = facts(arm("a", WINS), arm("b"), command="skip", actor="ann")
    assert split_of(tick(begun("ab"), asked, 5.0).rollout).winner == "a"
    told = tick(begun("ab", winner="none"), asked, 5.0).rollout
    assert told.status is RolloutStatus.OBSERVED


def test_an_approval_takes_the_winner_or_the_one_named() -> None:
    state = begun("ab", winner="ask")
    two = (arm("a", WINS), arm("b", PROVEN))
    waits = tick(state, facts(*two), 20.0)
    assert waits.events == (("waiting", "waiting for a person's word (approve): a wins"),)
    asked = facts(*two, command="approve", actor="ann")
    assert split_of(tick(waits.rollout, asked, 21.0).rollout).winner == "a"
    named = split_of(tick(waits.rollout, replace(asked, arm="b"), 21.0).rollout)
    assert named.winner == "b"
    silent = tick(waits.rollout, facts(*two), 1000.0)
    assert silent.rollout.status is RolloutStatus.INCONCLUSIVE


def test_abort_sends_everybody_back() -> None:
    asked = facts(arm("a", WINS), arm("b"), command="abort", actor="ann")
    decision = tick(begun("ab"), asked, 5.0)
    assert decision.rollout.status is RolloutStatus.ROLLED_BACK
    assert set(quarantined([decision.rollout])) == {"rel-a", "rel-b"}


# ------------------------------------------------------------------------------------ whatever

NAMES = "abc"
kinds = st.sampled_from(list(Assessment))


class AnySplit(RuleBasedStateMachine):
    """Random facts and commands in random order."""

    @initialize(then=st.sampled_from(["promote", "ask", "none"]))
    def begin(self, then: str) -> None:
        self.state, self.now = rollout(NAMES, winner=then), 0.0

    @rule(
        seconds=st.floats(0.0, 60.0),
        found=st.fixed_dictionaries({n: st.tuples(kinds, kinds, kinds) for n in NAMES}),
        lucky=st.sampled_from([None, None, *NAMES]),
        ready=st.sets(st.sampled_from(NAMES), min_size=2),
        dead=st.sampled_from([None] * 8 + list(NAMES)),
        tripped=st.sampled_from([None] * 8 + list(NAMES)),
        healthy=st.booleans(),
        applied=st.booleans(),
        frozen=st.booleans(),
        command=st.sampled_from([None] * 6 + ["pause", "resume", "promote", "skip", "approve"]),
        named=st.sampled_from([None, *NAMES, "x"]),
    )
    def look(
        self,
        seconds: float,
        found: dict[str, tuple[Assessment, Assessment, Assessment]],
        lucky: str | None,
        ready: set[str],
        dead: str | None,
        tripped: str | None,
        healthy: bool,
        applied: bool,
        frozen: bool,
        command: str | None,
        named: str | None,
    ) -> None:
        before, self.now = self.state, self.now + seconds
        comparing = split_of(before).winner is None
        arms = tuple(
            ArmFacts(
                name=n,
                assessments=WINS if n == lucky else assessed(*found[n]),
                units=30,
                ready=n in ready,
                dead=n == dead,
                trips=(TRIP,) if n == tripped else (),
            )
            for n in NAMES
        )
        given = RolloutFacts(
            arms=arms if comparing else (),
            assessments=() if comparing else PROVEN,
            challenger_ready=not comparing,
            champion_ready=healthy,
            observed_epoch_applied=applied,
            frozen=frozen,
            command=command,
            arm=named,
        )
        decision = tick(before, given, self.now)
        assert decision == tick(before, given, self.now)
        after, split = decision.rollout, split_of(decision.rollout)
        assert 0.0 <= decision.weights["challenger"] <= 1.0
        assert {a.name for a in split.live} == {a.name for a in split_of(before).live} - self._out(
            before, given
        )
        # Parts of the line never change.
        assert [(a.name, a.share, a.start) for a in split.arms] == [
            (a.name, a.share, a.start) for a in split_of(before).arms
        ]
        if comparing and split.winner is not None:
            won = split.arm(split.winner)
            proven = {a.assessment for a in won.assessments}
            assert proven <= {SUPERIOR, NON_INFERIOR}
            assert after.challenger == won.release
            assert won.removed_at is None
            assert not frozen
            assert before.status is RolloutStatus.RUNNING
            by_hand = command in ("promote", "approve") and named == won.name
            assert by_hand or won.assessments[2].assessment is SUPERIOR
            assert split.then != "ask" or command == "approve"
        if split.winner is None:
            assert after.promoted_at is None
            assert not (after.history and after.status is RolloutStatus.PROMOTED)
            shares = sum(a.share for a in split.live)
            assert decision.weights["challenger"] in (0.0, pytest.approx(shares))
        if split.then == "none":
            assert after.promoted_at is None
        if not split.live:
            assert after.status is RolloutStatus.ROLLED_BACK or after.returning
        if after.status.final and after.status is not RolloutStatus.PROMOTED:
            assert decision.weights["challenger"] == 0.0
            assert after.reason
        self.state = after

    def _out(self, before: Rollout, given: RolloutFacts) -> set[str]:
        """Who has to go."""
        if before.status.final or split_of(before).winner is not None:
            return set()
        gone = set()
        for arm_facts in given.arms:
            arm = split_of(before).arm(arm_facts.name)
            since = self.now if arm.stuck_since is None else arm.stuck_since
            stuck = not arm_facts.ready and self.now - since >= before.stuck_seconds
            bad = any(a.assessment is HARMFUL for a in arm_facts.assessments)
            if arm_facts.dead or ((arm_facts.trips or bad or stuck) and given.champion_ready):
                gone.add(arm_facts.name)
        return gone


TestAnySplit = AnySplit.TestCase
TestAnySplit.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
