"""How often one trigger is tried."""

from __future__ import annotations

from dataclasses import replace

import pytest

from intonaco.evaluation.attempts import attempts, earlier, trigger
from intonaco.types import Action, Candidate, Cause, Diagnosis, Phase, Plan, Update


def plan(**changes: object) -> Plan:
    given = Plan(
        plan_id="p",
        service_id="s",
        at=0.0,
        action=Action.FINE_TUNE,
        cause=Cause.CONCEPT_DRIFT,
        reason="",
    )
    return replace(given, **changes)  # type: ignore[arg-type]


def update(name: str, of: Plan, at: float, *, champion: str = "r0", judged: int = 1) -> Update:
    return Update(
        update_id=name,
        service_id="s",
        plan=of,
        phase=Phase.REJECTED,
        created_at=at,
        phase_since=at,
        champion=champion,
        candidates=(
            *(Candidate(name=f"c{i}", attempt=i + 1) for i in range(judged)),
            Candidate(name="broke"),
        ),
    )


def diagnosis(name: str, incident: str = "") -> Diagnosis:
    return Diagnosis(
        diagnosis_id=name,
        service_id="s",
        at=0.0,
        cause=Cause.CONCEPT_DRIFT,
        reason="",
        findings=(),
        incident=incident,
    )


def test_alpha_halves() -> None:
    found = attempts(["a", "b", "c"], 0, 0.05)
    assert [(x.number, x.alpha) for x in found.values()] == [(1, 0.05), (2, 0.025), (3, 0.0125)]
    assert sum(x.alpha for x in attempts([str(i) for i in range(60)], 0, 0.05).values()) <= 0.1


def test_diagnoses_of_one_incident_are_one_trigger() -> None:
    known = {"d1": diagnosis("d1", "d1"), "d2": diagnosis("d2", "d1"), "d3": diagnosis("d3", "d3")}
    first, second, other = (plan(diagnosis_id=d) for d in ("d1", "d2", "d3"))
    assert trigger(first, known) == trigger(second, known) != trigger(other, known)


def test_what_a_person_asks_for_is_a_trigger_of_its_own() -> None:
    assert trigger(plan(plan_id="1"), {}) != trigger(plan(plan_id="2"), {})
    announced = [plan(plan_id=str(i), trigger="new version v2") for i in range(2)]
    assert trigger(announced[0], {}) == trigger(announced[1], {})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, 3),
        ({"champion": "r1"}, 0),  # another champion is another question
        ({"at": 9.0}, 0),  # later
        ({"of": plan(trigger="another")}, 0),
    ],
)
def test_only_candidates_that_were_judged_count(change: dict[str, object], expected: int) -> None:
    same = plan(trigger="new version v2")
    given: dict[str, object] = {"of": same, "at": 1.0, "judged": 3, **change}
    before = update("before", **given)  # type: ignore[arg-type]
    now = update("now", same, 5.0)
    assert earlier(now, [before, now], {}) == expected
