"""What a rollout's records say: who counts, once, with which probability, on which metric."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from intonaco.config import RolloutConfig, RolloutMargins
from intonaco.errors import StorageError
from intonaco.rollout.analysis import RolloutAnalysis
from intonaco.rollout.outcomes import Medians, error, outcomes
from intonaco.types import Assessment, Attempt, MetricAssessment, Outcome, Record, ScoredRecord

CONFIG = RolloutConfig(
    alpha=0.05,
    metrics=("errors", "slow", "clip_score"),
    slower_than=2.0,
    margins=RolloutMargins(errors=0.08, slow=0.08, clip_score=0.08),
)
MEDIAN = 0.3


def attempt(
    arm: str, outcome: Outcome = Outcome.OK, *, at: float = 0.0, service: float = 0.3
) -> Attempt:
    return Attempt(
        arm=arm,
        release="B" if "r1" in arm else "A",
        outcome=outcome,
        started_at=at,
        seconds=service,
        service_seconds=service if outcome is Outcome.OK else 0.0,
    )


def scored(
    number: int,
    *,
    arm: str = "champion",
    probability: float = 0.5,
    attempts: Sequence[Attempt] | None = None,
    clip: float | None = 0.7,
    at: float | None = None,
    **changes: Any,
) -> ScoredRecord:
    when = float(number) if at is None else at
    tries = tuple(attempts) if attempts is not None else (attempt(arm, at=when),)
    served = any(a.outcome is Outcome.OK for a in tries)
    record = Record(
        gateway="g",
        gateway_epoch=1,
        seq=number,
        service_id="s",
        request_id=f"q{number}",
        at=when,
        unit=f"user-{number}",
        assigned_arm=arm,
        probability=probability,
        routing_epoch=3,
        salt="salt",
        attempts=tries,
        served_by=tries[-1].release if served else None,
        served_arm=tries[-1].arm if served else None,
        status=200 if served else 502,
        seconds=0.3,
        prompt=f"prompt {number % 5}",
        seed=number,
        steps=10,
        guidance_scale=3.0,
        width=32,
        height=32,
    )
    return ScoredRecord(
        record=replace(record, **changes),
        prompt_embedding=(),
        scores={} if clip is None else {"clip": clip},
        extractor="e",
    )


def analysis(**changes: Any) -> RolloutAnalysis:
    settings: dict[str, Any] = {
        "salt": "salt",
        "medians": {"32x32x10": MEDIAN},
        "score_range": (0.0, 1.0),
        "settle_seconds": 2.0,
    }
    return RolloutAnalysis("r1", CONFIG, 0.05, **(settings | changes))


def of(an: RolloutAnalysis, metric: str) -> MetricAssessment:
    return next(a for a in an.assess() if a.metric == metric)


CHALLENGER = "challenger:r1"


# ------------------------------------------------------------------------------------ who counts


def test_without_records_nothing_is_known() -> None:
    for assessment in analysis().assess():
        assert assessment.assessment is Assessment.NO_DATA
        assert assessment.difference is None
        assert assessment.interval is None


@pytest.mark.parametrize(
    "item",
    [
        scored(1, probe=True),
        scored(1, salt="another rollout"),
        scored(1, arm="holdback"),
        scored(1, arm="baseline"),  # the challenger's weight does not follow from its own
        scored(1, attempts=[attempt("champion", Outcome.INVALID)], status=400),
        scored(1, attempts=[], status=401),
    ],
)
def test_records_that_are_no_evidence(item: ScoredRecord) -> None:
    an = analysis()
    assert not an.observe(item)
    assert all(a.units_challenger == a.units_champion == 0 for a in an.assess())


def test_one_event_a_unit_at_its_first_exposure() -> None:
    an = analysis()
    an.observe(scored(1, arm=CHALLENGER, unit="anna"))
    for n in range(2, 30):
        an.observe(
            scored(n, arm=CHALLENGER, unit="anna", attempts=[attempt(CHALLENGER, Outcome.ERROR)])
        )
    assert an.units_challenger == 1
    assert of(an, "errors").units_challenger == 1
    assert of(an, "errors").assessment is Assessment.NO_DATA  # no champion user yet


def test_an_earlier_certain_assignment_does_not_use_a_unit_up() -> None:
    an = analysis()
    an.observe(scored(1, unit="anna", probability=1.0))
    an.observe(scored(2, unit="anna", arm=CHALLENGER, probability=0.05))
    assert an.units_challenger == 1


def test_baseline_counts_with_a_given_weight() -> None:
    an = analysis()
    assert an.observe(scored(1, arm="baseline", probability=0.1), challenger_weight=0.1)
    assert of(an, "errors").units_champion == 1


# ------------------------------------------------------------------------------------ outcomes


def test_a_shielded_failure_is_the_challengers() -> None:
    shielded = scored(
        1, arm=CHALLENGER, attempts=[attempt(CHALLENGER, Outcome.TIMEOUT), attempt("champion")]
    )
    assert shielded.record.status == 200
    assert error(shielded.record) == 1.0


@pytest.mark.parametrize(
    ("attempts", "expected"),
    [
        ([Outcome.OK], 0.0),
        ([Outcome.ERROR, Outcome.OK], 0.0),  # the arm's own second worker answered
        ([Outcome.ERROR], 1.0),
        ([Outcome.REJECTED, Outcome.REJECTED], 1.0),
        ([Outcome.CANCELLED], 0.0),
        ([Outcome.INVALID], None),
        ([], 1.0),  # nobody could even be asked
    ],
)
def test_errors_of_the_own_arm(attempts: list[Outcome], expected: float | None) -> None:
    item = scored(1, attempts=[attempt("champion", o) for o in attempts])
    assert error(item.record) == expected


def test_shed_shadow_copies_are_no_failures() -> None:
    for outcome, expected in ((Outcome.REJECTED, None), (Outcome.TIMEOUT, 1.0)):
        item = scored(1, arm="shadow:r1", shadow_of="q0", attempts=[attempt("shadow:r1", outcome)])
        assert error(item.record) == expected


def test_slow_is_measured_on_the_first_own_attempt() -> None:
    medians = Medians({"32x32x10": MEDIAN})

    def slow(*attempts: Attempt) -> float:
        found = outcomes(
            scored(1, arm=CHALLENGER, attempts=attempts),
            ("slow",),
            medians=medians,
            slower_than=2.0,
            score_range=(-1, 1),
        )
        assert found is not None
        return found["slow"]

    assert slow(attempt(CHALLENGER, service=0.59)) == 0.0
    assert slow(attempt(CHALLENGER, service=0.61)) == 1.0
    timeout = attempt(CHALLENGER, Outcome.TIMEOUT, service=5.0)
    assert slow(timeout, attempt("champion", service=0.3)) == 1.0


def test_an_unknown_class_learns_from_the_champion_before_use() -> None:
    medians = Medians({}, needed=3)
    for n in range(3):
        assert medians.get("32x32x10") is None
        medians.learn(scored(n, attempts=[attempt("champion", service=0.1 * (n + 1))]).record)
    assert medians.get("32x32x10") == pytest.approx(0.2)


def test_an_edit_is_never_held_against_a_generation() -> None:
    """Nor does a limit that was set before edits were told apart judge them."""
    medians = Medians({}, needed=2)
    medians.restore({"fixed": {"32x32x10": MEDIAN}, "learned": {}})

    def slow(task: str) -> float | None:
        item = scored(1, arm=CHALLENGER, attempts=[attempt(CHALLENGER, service=9 * MEDIAN)])
        edit = replace(item, record=replace(item.record, task=task))
        found = outcomes(edit, ("slow",), medians=medians, slower_than=2.0, score_range=(-1, 1))
        assert found is not None
        return found.get("slow")

    assert (slow("generate"), slow("edit")) == (1.0, None)
    for n in range(2):
        record = scored(n, attempts=[attempt("champion", service=8 * MEDIAN)]).record
        medians.learn(replace(record, task="edit"))
    assert (slow("generate"), slow("edit")) == (1.0, 0.0)


def test_clip_is_clamped_and_lower_is_worse() -> None:
    for clip, loss in ((0.9, 0.0), (0.5, 0.75), (0.1, 1.0)):
        found = outcomes(
            scored(1, clip=clip),
            ("clip_score",),
            medians=Medians({}),
            slower_than=2.0,
            score_range=(0.4, 0.8),
        )
        assert found is not None
        assert found["clip_score"] == pytest.approx(loss)


# ------------------------------------------------------------------------------------ judgements


def traffic(
    an: RolloutAnalysis,
    users: int,
    *,
    weight: float = 0.5,
    seed: int = 0,
    first: int = 0,
    failing: float = 0.0,
    service: float = 0.3,
    clip: tuple[float, float] = (0.7, 0.7),
    scored_share: float = 1.0,
) -> None:
    """Distinct users, 10 a second: (champion, challenger) mean cosines, spread 0.1."""
    rng = np.random.default_rng(seed)
    for n in range(first, first + users):
        challenger = bool(rng.random() < weight)
        arm = CHALLENGER if challenger else "champion"
        when = n / 10
        bad = challenger and rng.random() < failing
        tries = [attempt(arm, at=when, service=service if challenger else 0.3)]
        if bad:
            tries = [attempt(arm, Outcome.ERROR, at=when), attempt("champion", at=when)]
        cosine: float | None = float(rng.normal(clip[challenger], 0.1))
        if challenger and rng.random() > scored_share:
            cosine = None
        an.observe(
            scored(
                n,
                arm=arm,
                probability=weight if challenger else 1 - weight,
                attempts=tries,
                clip=cosine,
                at=when,
            )
        )


def test_an_equal_challenger_is_proven_not_inferior() -> None:
    an = analysis()
    traffic(an, 600)
    assert {a.metric: a.assessment for a in an.assess()} == {
        "errors": Assessment.NON_INFERIOR,
        "slow": Assessment.NON_INFERIOR,
        "clip_score": Assessment.NON_INFERIOR,
    }
    assert an.sample_ratio_ok
    clip = of(an, "clip_score")
    assert clip.interval is not None
    assert -clip.margin < clip.interval[0] <= 0 <= clip.interval[1]


def test_proof_survives_a_trickle_and_not_a_reversal() -> None:
    an = analysis(metrics=("errors",))
    number = 0
    while of(an, "errors").assessment is not Assessment.NON_INFERIOR:
        traffic(an, 1, first=number, seed=number)
        number += 1
        assert number < 400
    failures = 0
    while failures < 40:
        failures += 1
        tries = [attempt(CHALLENGER, Outcome.ERROR, at=number / 10)]
        an.observe(scored(number, arm=CHALLENGER, attempts=tries, at=number / 10))
        an.advance(number / 10 + 3)
        number += 1
        errors = of(an, "errors")
        if errors.assessment is not Assessment.NON_INFERIOR:
            break
        assert errors.evidence_non_inferior > 0
    assert 1 < failures < 10


def test_a_better_challenger_is_superior_in_cosine_units() -> None:
    an = analysis()
    traffic(an, 600, clip=(0.5, 0.7))
    clip = of(an, "clip_score")
    assert clip.assessment is Assessment.SUPERIOR
    assert clip.difference == pytest.approx(0.2, abs=0.05)


@pytest.mark.parametrize(
    ("metric", "changes"),
    [
        ("errors", {"failing": 1.0}),
        ("slow", {"service": 1.0}),
        ("clip_score", {"clip": (0.7, 0.4)}),
    ],
)
def test_harm_is_seen_while_few_users_met_it(metric: str, changes: dict[str, Any]) -> None:
    """At 5 % of users: within 300 requests, some 15 challenger users."""
    an = analysis()
    traffic(an, 300, weight=0.05, **changes)
    assert of(an, metric).assessment is Assessment.HARMFUL
    assert of(an, metric).evidence_harm >= of(an, metric).threshold


def test_slow_failures_cannot_hide_behind_quick_successes() -> None:
    """Half of the challenger's requests hang for 5 s. While their ends are not in the log, the
    successes alone must not prove anything; harm is seen as soon as they end."""
    an = analysis(settle_seconds=6.0)
    rng = np.random.default_rng(3)
    logged: list[tuple[float, ScoredRecord]] = []
    for n in range(200):
        challenger, when = bool(rng.random() < 0.5), n / 40
        arm = CHALLENGER if challenger else "champion"
        hangs = challenger and rng.random() < 0.5
        tries = [attempt(arm, at=when)]
        if hangs:
            late = attempt(arm, Outcome.TIMEOUT, at=when, service=5.0)
            tries = [late, attempt("champion", at=when + 5)]
        logged.append((when + (5.3 if hangs else 0.3), scored(n, arm=arm, attempts=tries, at=when)))
    logged.sort(key=lambda pair: pair[0])
    for end, item in logged:
        an.observe(item)
        if end < 5.0:
            assert of(an, "errors").evidence_non_inferior == 0.0
    assert of(an, "errors").assessment is Assessment.HARMFUL
    assert an.sample_ratio_ok


def test_a_broken_split_is_found() -> None:
    an = analysis()
    for n in range(300):  # half of the users reach the challenger, a tenth was said
        challenger = n % 2 == 0
        an.observe(
            scored(
                n,
                arm=CHALLENGER if challenger else "champion",
                probability=0.1 if challenger else 0.9,
            )
        )
    assert not an.sample_ratio_ok
    assert "foretold" in an.sample_ratio_text


def test_scores_missing_on_one_side_prove_nothing() -> None:
    an = analysis()
    traffic(an, 600, scored_share=0.5)
    assert of(an, "clip_score").evidence_non_inferior >= np.log(20)
    assert of(an, "clip_score").assessment is Assessment.UNDECIDED
    assert of(an, "errors").assessment is Assessment.NON_INFERIOR


def test_shadow_pairs_join_in_either_order_and_count_once() -> None:
    an = analysis()
    an.begin_step(0, 0.0, 0.0)
    for n in range(80):
        user = scored(n, probability=1.0, clip=0.6)
        tries = [attempt("shadow:r1", at=float(n))]
        shadow = scored(
            n, arm="shadow:r1", shadow_of=f"q{n}", request_id=f"s{n}", attempts=tries, clip=0.7
        )
        for item in (user, shadow) if n % 2 else (shadow, user):
            an.observe(item)
        an.observe(user)
        an.observe(shadow)
    assert an.shadow_pairs == 80
    assert an.units_challenger == 0
    assert of(an, "clip_score").assessment is Assessment.SUPERIOR
    assert of(an, "clip_score").difference == pytest.approx(0.1)
    assert of(an, "errors").shadow_pairs == 80


def test_failing_shadows_are_harm_before_any_user_meets_them() -> None:
    an = analysis()
    for n in range(12):
        an.observe(scored(n, probability=1.0))
        tries = [attempt("shadow:r1", Outcome.ERROR)]
        an.observe(scored(n, arm="shadow:r1", shadow_of=f"q{n}", attempts=tries, clip=None))
    assert of(an, "errors").assessment is Assessment.HARMFUL


def test_at_all_traffic_errors_are_held_against_the_champion_before() -> None:
    for failing, harmful in ((0.0, False), (0.3, True)):
        an = analysis()
        traffic(an, 600)
        an.begin_step(4, 60.0, 1.0)
        traffic(an, 150, weight=1.0, first=600, failing=failing)
        assert (of(an, "errors").assessment is Assessment.HARMFUL) is harmful
        assert an.units_at_step == 150


def test_units_of_a_step_are_distinct_and_start_with_it() -> None:
    an = analysis()
    an.begin_step(1, 100.0, 0.5)
    an.observe(scored(1, arm=CHALLENGER, at=99.0))
    an.observe(scored(2, arm=CHALLENGER, at=101.0))
    an.observe(scored(3, arm=CHALLENGER, at=102.0, unit="user-2"))
    assert an.units_at_step == 1
    an.begin_step(1, 100.0, 0.5)
    assert an.units_at_step == 1
    an.begin_step(2, 103.0, 1.0)
    assert an.units_at_step == 0


# ------------------------------------------------------------------------------------ state


def test_state_restores_exactly_in_the_middle() -> None:
    whole, parts = analysis(), analysis()
    for start in range(0, 300, 60):
        for an in (whole, parts):
            an.begin_step(start // 100, float(start // 10), 0.5)
            traffic(an, 60, first=start, seed=start, failing=0.02)
            for n in range(start, start + 10):  # half pairs left open
                an.observe(scored(n + 5000, probability=1.0, at=n / 10))
        stored = json.loads(json.dumps(parts.state()))
        parts = analysis(medians={})  # after a restart nobody remembers them but the state
        parts.restore(stored)
    assert parts.state() == whole.state()
    assert parts.assess() == whole.assess()


def test_state_of_another_rollout_is_refused_and_names_nobody() -> None:
    an = analysis()
    traffic(an, 50)
    an.observe(scored(900, probability=1.0, unit="anna", prompt="a secret wish"))
    text = json.dumps(an.state())
    assert "anna" not in text
    assert "secret" not in text
    assert "user-3" not in text
    with pytest.raises(StorageError):
        analysis(salt="other").restore(json.loads(text))


def test_memory_is_bounded_by_ignoring_new_units() -> None:
    an = analysis(max_units=40)
    traffic(an, 200)
    errors = of(an, "errors")
    assert errors.units_challenger + errors.units_champion == 40


def test_silence_settles_by_the_clock() -> None:
    an = analysis(settle_seconds=50.0)
    traffic(an, 100)
    assert of(an, "errors").evidence_non_inferior == 0.0
    an.advance(1000.0)
    assert of(an, "errors").evidence_non_inferior > 0.0


def test_margins_must_fit_the_metric() -> None:
    with pytest.raises(ValueError, match="range"):
        analysis(score_range=(0.5, 0.55))
    with pytest.raises(ValueError, match="some of"):
        analysis(metrics=("speed",))


# ------------------------------------------------------------------------------------ promoted


def bake(
    an: RolloutAnalysis, count: int, *, failing: float, holdback: float, seed: int = 0
) -> None:
    """Users under the table after the promotion; ``failing``: share of the new champion's."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        arm = "holdback" if rng.random() < holdback else "champion"
        failed = arm == "champion" and rng.random() < failing
        tries = [attempt(arm, Outcome.ERROR if failed else Outcome.OK, at=1000.0 + number)]
        share = holdback if arm == "holdback" else 1 - holdback
        an.observe(
            scored(
                number,
                arm=arm,
                probability=share,
                attempts=tries,
                at=1000.0 + number,
                routing_epoch=8,
            )
        )


def promoted(holdback: float) -> RolloutAnalysis:
    an = analysis()
    traffic(an, 400)
    an.promoted(7)
    an.begin_step(4, 900.0, 1.0 - holdback)
    proven = of(an, "errors")
    assert proven.assessment is Assessment.NON_INFERIOR  # what proved it stays
    assert min(proven.units_challenger, proven.units_champion) > 100
    return an


@pytest.mark.parametrize("holdback", [0.2, 0.0])
def test_a_champion_that_turns_bad_is_found_in_its_bake(holdback: float) -> None:
    """The same users as before count once more: against those held back, or against what the
    champion before it did."""
    an = promoted(holdback)
    bake(an, 300, failing=0.3, holdback=holdback)
    assert of(an, "errors").assessment is Assessment.HARMFUL


@pytest.mark.parametrize("holdback", [0.2, 0.0])
def test_a_good_champion_bakes_in_peace_and_across_restarts(holdback: float) -> None:
    an = promoted(holdback)
    bake(an, 200, failing=0.0, holdback=holdback)
    again = analysis(medians={})
    again.restore(json.loads(json.dumps(an.state())))
    again.promoted(7)
    for each in (an, again):
        bake(each, 200, failing=0.0, holdback=holdback, seed=1)
        assert of(each, "errors").assessment is not Assessment.HARMFUL
    assert again.state() == an.state()


def test_records_of_before_the_promotion_keep_their_arms() -> None:
    an = promoted(0.2)
    an.observe(scored(5000, arm="champion", probability=0.5, routing_epoch=7))
    an.observe(scored(5001, arm="champion", probability=0.8, routing_epoch=8))
    errors = of(an, "errors")
    assert (errors.units_champion, errors.units_challenger) == (1, 1)
