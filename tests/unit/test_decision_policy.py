"""Diagnoses to plans: the table, the money, the guards."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.unit.test_decision_diagnosis import NEW, QUIET, SERVED, finding, prompts

from intonaco.config import Budget, Decision, QuietHours, Recovery
from intonaco.decision.diagnosis import diagnose
from intonaco.decision.economics import Life
from intonaco.decision.explain import explain
from intonaco.decision.policy import DecisionContext, TriggerFacts, decide
from intonaco.types import Action, Cause, Diagnosis, Factor, Finding, Plan

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


@pytest.mark.parametrize("what", [Cause.PERFORMANCE_DEGRADATION, Cause.UNKNOWN])
def test_a_person_is_told_while_an_update_is_under_way(what: Cause) -> None:
    plan = decide(diagnosis(what), replace(CONTEXT, active_update="u7"), SETTINGS, NOW)
    assert plan.action is Action.TELL
    changed = replace(
        CONTEXT, active_update="u7", release_changed=True, previous_release_available=True
    )
    performance = diagnosis(Cause.PERFORMANCE_DEGRADATION)
    assert decide(performance, changed, SETTINGS, NOW).action is Action.WATCH  # one at a time


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
    moved = diagnosis(Cause.QUALITY_DECLINE, prompts(*NEW))
    plan = decide(replace(moved, factor=Factor.ENVIRONMENT), CONTEXT, SETTINGS, NOW)
    assert plan.action is Action.TELL
    assert "would learn the fault" in plan.reason
    assert decide(moved, CONTEXT, SETTINGS, NOW).action is Action.TELL


@pytest.mark.parametrize("of", ["probe", "diversity", "blank_images", "safety"])
@pytest.mark.parametrize("fell", [False, True])
def test_what_no_training_mends_is_never_trained(of: str, fell: bool) -> None:
    """A collapse, a changed probe, unsafe pictures: also where scores fell with them, the budget is
    full and data is at hand."""
    signs = [finding("it", 0.0, 0.9, of=of)]
    signs += [finding("clip_score", 0.8, 0.3, of="clip_score")] if fell else []
    d = diagnose(signs, replace(QUIET, probes_ok=None), NOW)
    assert d.cause is Cause.QUALITY_DECLINE
    assert decide(d, CONTEXT, SETTINGS, NOW).action is Action.TELL
    tied = replace(CONTEXT, release_changed=True, previous_release_available=True)
    assert decide(d, tied, SETTINGS, NOW).action is Action.ROLL_BACK


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


# ----------------------------------------------------------------------------- what is weighed


def rule(plan: Plan) -> str:
    assert plan.reckoning is not None
    return plan.reckoning.rule


@pytest.mark.parametrize("cause", list(Cause))
def test_every_cause_has_a_plan_that_says_its_rule(cause: Cause) -> None:
    plan = decide(diagnosis(cause), CONTEXT, SETTINGS, NOW)
    assert rule(plan)
    assert plan.reason


@pytest.mark.parametrize("changed", [True, False])
@pytest.mark.parametrize("previous", [True, False])
@pytest.mark.parametrize("labelled", [0, 10_000])
def test_latency_never_leads_to_training(changed: bool, previous: bool, labelled: int) -> None:
    context = replace(
        CONTEXT,
        release_changed=changed,
        previous_release_available=previous,
        labelled_items=labelled,
        fine_tunes_since_full=50,
    )
    for found in ((finding("latency"),), (finding("errors"), prompts(*NEW))):
        plan = decide(diagnosis(Cause.PERFORMANCE_DEGRADATION, *found), context, SETTINGS, NOW)
        assert not plan.action.makes_update


def test_a_large_shift_trains_everything() -> None:
    plan = decide(diagnosis(Cause.CONCEPT_DRIFT, prompts(*NEW), share=0.85), CONTEXT, SETTINGS, NOW)
    assert (plan.action, plan.recipes) == (Action.FULL_RETRAIN, ("full",))
    assert "large shift" in plan.reason


def test_many_fine_tunes_are_followed_by_a_full_training() -> None:
    assert decide(CONCEPT, replace(CONTEXT, fine_tunes_since_full=9), SETTINGS, NOW).action is (
        Action.FINE_TUNE
    )
    plan = decide(CONCEPT, replace(CONTEXT, fine_tunes_since_full=10), SETTINGS, NOW)
    assert plan.action is Action.FULL_RETRAIN
    assert "10 fine-tunes" in plan.reason


def test_a_full_training_that_cannot_be_paid_leaves_the_fine_tune() -> None:
    context = replace(CONTEXT, fine_tunes_since_full=10, spent=8.0, pressure=0.0)
    plan = decide(CONCEPT, context, SETTINGS, NOW)
    assert plan.action is Action.FINE_TUNE


def test_what_did_not_help_three_times_is_for_a_person() -> None:
    assert decide(CONCEPT, replace(CONTEXT, unhelpful=2), SETTINGS, NOW).action.trains
    for what in (CONCEPT, DECLINE):
        plan = decide(what, replace(CONTEXT, unhelpful=3), SETTINGS, NOW)
        assert plan.action is Action.TELL
        assert "Change the model" in plan.reason


def test_quiet_hours_wait_but_never_with_a_rollback() -> None:
    always = QuietHours.model_validate({"from": "00:00", "to": "23:59"})
    quiet = SETTINGS.model_copy(update={"quiet_hours": (always,)})
    plan = decide(CONCEPT, CONTEXT, quiet, NOW)
    assert (plan.action, rule(plan)) == (Action.WATCH, "quiet hours")
    assert plan.look_again_at is not None
    assert plan.look_again_at > NOW
    tied = replace(CONTEXT, release_changed=True, previous_release_available=True)
    assert decide(DECLINE, tied, quiet, NOW).action is Action.ROLL_BACK


def test_rent_or_buy_waits_until_as_much_was_lost_as_it_costs() -> None:
    patient = SETTINGS.model_copy(update={"patience": 1.0})
    plan = decide(CONCEPT, CONTEXT, patient, NOW)
    assert (plan.action, rule(plan)) == (Action.WATCH, "patience")
    # 5/s x 0.001 x 0.15: 3.00 are lost after 4,000 s; the change began 60 s before the finding
    began = CONCEPT.findings[0].since_at
    assert plan.look_again_at is not None
    assert decide(CONCEPT, CONTEXT, patient, began + 3_999).action is Action.WATCH
    assert decide(CONCEPT, CONTEXT, patient, began + 4_001).action is Action.FINE_TUNE


def test_after_many_fads_a_young_change_is_waited_with() -> None:
    fads = tuple(Life(seconds=600.0, ended=True) for _ in range(200))
    plan = decide(CONCEPT, replace(CONTEXT, lives=fads), SETTINGS, NOW)
    assert (plan.action, rule(plan)) == (Action.WATCH, "does not pay")
    began = CONCEPT.findings[0].since_at
    assert decide(CONCEPT, replace(CONTEXT, lives=fads), SETTINGS, began + 700).action.trains


def test_a_short_budget_takes_only_what_brings_as_much_as_usual() -> None:
    short = replace(CONTEXT, pressure=0.5, usual_return=100.0)
    plan = decide(CONCEPT, short, SETTINGS, NOW)
    assert (plan.action, rule(plan)) == (Action.WATCH, "budget is short")
    assert decide(CONCEPT, replace(short, usual_return=10.0), SETTINGS, NOW).action.trains


def test_review_failures_and_recovery_count() -> None:
    dear = SETTINGS.model_copy(
        update={"review_hourly_rate": 200.0, "review_minutes": 30.0, "failure_cost": 100.0}
    )
    plan = decide(CONCEPT, CONTEXT, dear, NOW)
    assert rule(plan) == "does not pay"
    useless = SETTINGS.model_copy(update={"recovery": Recovery(fine_tune=0.05)})
    assert rule(decide(CONCEPT, CONTEXT, useless, NOW)) == "does not pay"
    unlucky = replace(CONTEXT, failed=500)
    assert rule(decide(CONCEPT, unlucky, SETTINGS, NOW)) == "does not pay"


def test_hours_of_the_machine_are_a_budget_too() -> None:
    assert decide(CONCEPT, replace(CONTEXT, hours_left=0.4), SETTINGS, NOW).recipes == ("lora",)
    plan = decide(CONCEPT, replace(CONTEXT, hours_left=0.1), SETTINGS, NOW)
    assert (plan.action, rule(plan)) == (Action.TELL, "budget")


def test_what_is_reserved_fits_into_what_is_left() -> None:
    plan = decide(CONCEPT, CONTEXT, SETTINGS, NOW)
    assert plan.reserve == pytest.approx(6.0)  # twice the estimate
    assert plan.limits == {"lora": 1200.0, "lora_long": 3600.0, "evaluate": 2400.0}
    tight = decide(CONCEPT, replace(CONTEXT, spent=8.0), SETTINGS, NOW)
    assert tight.reserve == pytest.approx(1.5)
    assert sum(tight.limits.values()) / 3600 * 3.0 == pytest.approx(1.5)


def test_the_best_of_nothing_and_something_is_taken() -> None:
    plan = decide(CONCEPT, CONTEXT, SETTINGS, NOW)
    assert plan.reckoning is not None
    nets = {o.action: o.net.low for o in plan.reckoning.options if o.allowed and o.net}
    assert max(nets, key=lambda a: nets[a]) is plan.action
    assert set(Action) - {Action.TELL} == {o.action for o in plan.reckoning.options}
    closed = [o for o in plan.reckoning.options if not o.allowed]
    assert all(o.why for o in closed)


# ------------------------------------------------------------------------------------ from outside


NEW_DATA = diagnosis(Cause.NEW_DATA)
VERSION = TriggerFacts(text="dataset cats changed.", dataset_version="v2", new_items=40)


def test_new_data_is_learnt_where_the_owner_said_so() -> None:
    plan = decide(NEW_DATA, replace(CONTEXT, trigger=VERSION), SETTINGS, NOW)
    assert plan.action is Action.FINE_TUNE
    assert plan.dataset_version == "v2"
    assert plan.trigger == "dataset cats changed."


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"trigger": replace(VERSION, new_items=0)}, "too little new data"),
        ({"trigger": VERSION, "active_update": "u1"}, "one update at a time"),
        ({"trigger": VERSION, "last_update_ended_at": NOW - 10}, "cooldown"),
        ({"trigger": VERSION, "spent": 9.9}, "budget"),
        ({"trigger": VERSION, "trainable": False}, "not ours to train"),
    ],
)
def test_a_trigger_does_not_pass_the_guards(changes: dict[str, Any], said: str) -> None:
    plan = decide(NEW_DATA, replace(CONTEXT, **changes), SETTINGS, NOW)
    assert rule(plan) == said
    assert not plan.action.makes_update


def test_a_new_recipe_is_tried_by_name() -> None:
    trigger = TriggerFacts(
        text="recipe full changed.", action=Action.FULL_RETRAIN, recipes=("full",)
    )
    plan = decide(diagnosis(Cause.NEW_TECHNIQUE), replace(CONTEXT, trigger=trigger), SETTINGS, NOW)
    assert (plan.action, plan.recipes) == (Action.FULL_RETRAIN, ("full",))


def test_the_same_plan_after_an_update_is_another_update() -> None:
    first = decide(CONCEPT, CONTEXT, SETTINGS, NOW)
    second = decide(CONCEPT, replace(CONTEXT, updates_before=1), SETTINGS, NOW)
    assert first.plan_id != second.plan_id


# ------------------------------------------------------------------------------------ for people


def test_the_sum_is_shown_line_by_line() -> None:
    said = "\n".join(explain(decide(CONCEPT, CONTEXT, SETTINGS, NOW)))
    for part in (
        "rule      pays",
        "rate      5 requests/s",
        "0.225 [0.150, 0.330]",
        "97.20 [64.80, 142.56] EUR a day",
        "> fine tune",
        "cost 3.00 compute",
        "roll back     not open",
        "8.50 of 10.00 EUR left",
        "jobs are stopped after: lora 1200 s",
    ):
        assert part in said


def test_the_prompts_that_need_data_are_shown() -> None:
    plan = decide(CONCEPT, replace(CONTEXT, labelled_items=3), SETTINGS, NOW)
    said = "\n".join(explain(plan))
    assert "data is wanted for prompts like these" in said
    assert "a handwritten 6" in said
    assert "a handwritten" not in plan.reason  # reasons go to logs
    assert "judged again at 2023-11-14 23:15 UTC" in said


def test_mode_watch_says_what_it_would_have_done() -> None:
    watching = SETTINGS.model_copy(update={"mode": "watch"})
    plan = decide(CONCEPT, CONTEXT, watching, NOW)
    assert plan.would is Action.FINE_TUNE
    assert plan.recipes == ()
    assert plan.reserve == 0.0
    assert "it would have been fine tune" in explain(plan)[0]
