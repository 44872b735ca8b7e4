"""Diagnoses to plans: the table, the money, the guards."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.unit.test_decision_diagnosis import NEW, SERVED, finding, prompts

from intonaco.config import Budget, Decision
from intonaco.decision.policy import DecisionContext, decide
from intonaco.types import Action, Cause, Diagnosis, Finding

NOW = 1_700_000_100.0
SETTINGS = Decision(
    budget=Budget(amount=10.0, hourly_price=3.0),
    value_per_request=0.001,
    horizon_days=1,
    cooldown_s=3600,
    min_labelled=100,
    fine_tune=("lora", "lora_long"),
    full_retrain=("full",),
)
CONTEXT = DecisionContext(
    labelled_items=500,
    recipe_seconds={"lora": 600.0, "lora_long": 1800.0, "full": 3000.0},
    spent=1.0,
    reserved=0.5,
    request_rate=5.0,
    last_update_ended_at=None,
    active_update=None,
    previous_release_available=False,
    evaluation_seconds=600.0,
)


def diagnosis(cause: Cause, *findings: Finding, share: float = 0.3, gap: float = 0.75) -> Diagnosis:
    return Diagnosis(
        diagnosis_id="d1",
        service_id="digits",
        at=NOW,
        cause=cause,
        reason="Because.",
        findings=findings,
        moved_share=share,
        quality_gap=gap,
    )


CONCEPT = diagnosis(Cause.CONCEPT_DRIFT, prompts(*NEW))
DECLINE = diagnosis(Cause.QUALITY_DECLINE, finding("clip_score", 0.8, 0.6))


def test_concept_drift_fine_tunes_when_it_pays_and_says_the_sums() -> None:
    plan = decide(CONCEPT, CONTEXT, SETTINGS, NOW)
    assert plan.action is Action.FINE_TUNE
    assert plan.recipes == ("lora", "lora_long")
    # (600 + 600 + 1800 + 600) s of a machine at 3 an hour
    assert plan.estimated_cost == pytest.approx(3.0)
    # lower ends of two clusters' shares 0.10 each, gap 0.75, 5/s, 0.001 each, a day less an hour
    expected = 5.0 * 0.001 * (0.2 * 0.75) * (86_400 - 3_600)
    assert plan.expected_benefit == pytest.approx(expected, rel=1e-4)
    assert plan.budget_left == pytest.approx(8.5)
    for said in ("62.10 EUR", "3.00 EUR", "8.50 EUR", "lora, lora_long"):
        assert said in plan.reason
    assert [c.moved for c in plan.clusters] == [True, True, False]


def test_it_waits_when_it_does_not_pay() -> None:
    plan = decide(CONCEPT, replace(CONTEXT, request_rate=0.1), SETTINGS, NOW)
    assert plan.action is Action.WATCH
    assert "does not pay" in plan.reason
    assert plan.recipes == ()
    assert plan.expected_benefit < plan.estimated_cost


def test_without_labelled_data_it_collects() -> None:
    plan = decide(CONCEPT, replace(CONTEXT, labelled_items=99), SETTINGS, NOW)
    assert plan.action is Action.COLLECT_DATA
    assert "99 labelled items" in plan.reason


def test_the_budget_leaves_recipes_out_then_stops_it() -> None:
    plan = decide(CONCEPT, replace(CONTEXT, spent=8.0), SETTINGS, NOW)
    assert plan.recipes == ("lora",)
    assert "lora_long (2.00 EUR)" in plan.reason
    assert plan.estimated_cost == pytest.approx(1.0)
    broke = decide(CONCEPT, replace(CONTEXT, spent=9.0), SETTINGS, NOW)
    assert broke.action is Action.TELL
    assert broke.recipes == ()
    assert "0.50 EUR in the budget" in broke.reason


def test_a_recipe_of_unknown_length_is_not_free() -> None:
    plan = decide(CONCEPT, replace(CONTEXT, recipe_seconds={"lora": 600.0}), SETTINGS, NOW)
    assert plan.recipes == ("lora",)
    assert "lora_long (its time is not known)" in plan.reason


def test_cooldown() -> None:
    recent = replace(CONTEXT, last_update_ended_at=NOW - 100)
    plan = decide(CONCEPT, recent, SETTINGS, NOW)
    assert plan.action is Action.WATCH
    assert "cooldown is 3600 s" in plan.reason
    assert decide(CONCEPT, recent, SETTINGS, NOW + 3_501).action is Action.FINE_TUNE


@pytest.mark.parametrize("what", [CONCEPT, DECLINE])
def test_an_active_update_comes_first(what: Diagnosis) -> None:
    plan = decide(what, replace(CONTEXT, active_update="u7"), SETTINGS, NOW)
    assert plan.action is Action.WATCH
    assert "u7" in plan.reason


def test_data_drift_never_trains() -> None:
    plan = decide(diagnosis(Cause.DATA_DRIFT, prompts(*SERVED)), CONTEXT, SETTINGS, NOW)
    assert plan.action is Action.WATCH


@pytest.mark.parametrize(
    ("changed", "previous", "action"),
    [(True, True, "roll_back"), (True, False, "tell"), (False, True, "tell")],
)
def test_performance_rolls_back_or_tells_and_never_trains(
    changed: bool, previous: bool, action: str
) -> None:
    context = replace(CONTEXT, release_changed=changed, previous_release_available=previous)
    slow = diagnosis(Cause.PERFORMANCE_DEGRADATION, finding("latency"))
    assert decide(slow, context, SETTINGS, NOW).action == action


def test_quality_decline_rolls_back_a_release_and_else_retrains() -> None:
    tied = replace(CONTEXT, release_changed=True, previous_release_available=True)
    assert decide(DECLINE, tied, SETTINGS, NOW).action is Action.ROLL_BACK
    plan = decide(DECLINE, CONTEXT, SETTINGS, NOW)
    assert plan.action is Action.FULL_RETRAIN
    assert plan.recipes == ("full",)


@pytest.mark.parametrize("what", [CONCEPT, DECLINE], ids=["concept", "decline"])
def test_a_model_that_is_served_elsewhere_is_never_trained(what: Diagnosis) -> None:
    plan = decide(what, replace(CONTEXT, trainable=False), SETTINGS, NOW)
    assert plan.action is Action.TELL
    assert "update start --upstream" in plan.reason
    tied = replace(CONTEXT, trainable=False, release_changed=True, previous_release_available=True)
    assert decide(DECLINE, tied, SETTINGS, NOW).action is Action.ROLL_BACK


def test_changed_probes_under_the_same_release_are_for_a_person() -> None:
    plan = decide(diagnosis(Cause.QUALITY_DECLINE, prompts(*NEW)), CONTEXT, SETTINGS, NOW)
    assert plan.action is Action.TELL
    assert "would learn the fault" in plan.reason


@pytest.mark.parametrize("cause", [Cause.UNKNOWN, Cause.BROKEN_FORMAT, Cause.NEW_DATA])
def test_the_rest_is_for_a_person(cause: Cause) -> None:
    plan = decide(diagnosis(cause), CONTEXT, SETTINGS, NOW)
    assert plan.action is Action.TELL
    assert "Because." in plan.reason


def test_new_technique_is_assembled_without_training() -> None:
    change = {"scheduler": "EulerDiscreteScheduler"}
    what = diagnosis(Cause.NEW_TECHNIQUE)
    plan = decide(what, replace(CONTEXT, assemble=change), SETTINGS, NOW)
    assert plan.action is Action.ASSEMBLE
    assert plan.assemble == change
    assert plan.estimated_cost == pytest.approx(0.5)
    assert decide(what, CONTEXT, SETTINGS, NOW).action is Action.TELL


def test_first_release_is_trained_whatever_it_brings() -> None:
    plan = decide(diagnosis(Cause.FIRST_RELEASE), replace(CONTEXT, request_rate=0.0), SETTINGS, NOW)
    assert (plan.action, plan.recipes) == (Action.FULL_RETRAIN, ("full",))


def test_modes() -> None:
    watching = SETTINGS.model_copy(update={"mode": "watch"})
    plan = decide(CONCEPT, CONTEXT, watching, NOW)
    assert plan.action is Action.WATCH
    assert "Otherwise: fine_tune" in plan.reason
    assert decide(diagnosis(Cause.UNKNOWN), CONTEXT, watching, NOW).action is Action.TELL
    asking = SETTINGS.model_copy(update={"mode": "ask"})
    plan = decide(CONCEPT, CONTEXT, asking, NOW)
    assert plan.action is Action.FINE_TUNE
    assert "a person has to approve" in plan.reason


def test_the_same_inputs_make_the_same_plan() -> None:
    one = decide(CONCEPT, CONTEXT, SETTINGS, NOW)
    assert decide(CONCEPT, CONTEXT, SETTINGS, NOW + 5).plan_id == one.plan_id
    assert decide(CONCEPT, replace(CONTEXT, labelled_items=1), SETTINGS, NOW).plan_id != one.plan_id
