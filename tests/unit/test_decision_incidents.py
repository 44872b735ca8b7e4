"""Which findings belong together, and when something is told again."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.unit.test_decision_diagnosis import NEW, NOW, QUIET, finding, prompts

from intonaco.decision.diagnosis import diagnose
from intonaco.decision.incidents import (
    CONSEQUENCE_SECONDS,
    FORGET_SECONDS,
    REPEAT_SECONDS,
    belongs,
    is_news,
    may_be_the_release,
    repeats,
    says_the_same,
)
from intonaco.types import Action, Cause, Factor, Plan

DRIFT = diagnose([prompts(*NEW)], QUIET, NOW)


def plan(action: Action) -> Plan:
    return Plan(
        plan_id="p",
        service_id="digits",
        at=NOW,
        action=action,
        cause=Cause.CONCEPT_DRIFT,
        reason="",
    )


def test_what_began_before_the_diagnosis_belongs_to_it() -> None:
    late = finding("clip_score", 0.8, 0.6, at=NOW + 900)
    assert belongs(late, DRIFT)
    assert not belongs(replace(late, since_at=NOW + 1), DRIFT)
    assert not belongs(replace(late, release="b" * 64), DRIFT)
    assert not belongs(replace(late, at=NOW + FORGET_SECONDS + 1), DRIFT)


def test_what_follows_from_an_incident_belongs_to_it_though_it_began_later() -> None:
    slow = diagnose([finding("latency", of="latency")], QUIET, NOW)
    errors = finding("errors", of="errors", since_at=NOW + 60, at=NOW + 300)
    votes = finding("thumbs", 0.8, 0.6, of="thumbs", since_at=NOW + 60, at=NOW + 300)
    assert belongs(errors, slow)
    assert belongs(votes, DRIFT)
    assert not belongs(votes, slow)
    assert not belongs(errors, DRIFT)
    assert not belongs(replace(errors, at=NOW + CONSEQUENCE_SECONDS + 1), slow)


def test_the_same_signals_shortly_after_are_a_repetition() -> None:
    again = replace(DRIFT, at=NOW + REPEAT_SECONDS)
    assert repeats(again, DRIFT)
    assert not repeats(replace(again, at=again.at + 1), DRIFT)
    assert not repeats(replace(again, cause=Cause.DATA_DRIFT), DRIFT)
    more = diagnose([prompts(*NEW), finding("external")], QUIET, NOW + 60)
    assert not repeats(more, DRIFT)


def test_another_factor_is_not_the_same() -> None:
    assert says_the_same(replace(DRIFT, reason="in other words"), DRIFT)
    assert not says_the_same(replace(DRIFT, factor=Factor.RELEASE), DRIFT)
    assert not says_the_same(replace(DRIFT, also=(Cause.UNKNOWN,)), DRIFT)


@pytest.mark.parametrize("begun", [Action.FINE_TUNE, Action.ASSEMBLE, Action.ROLL_BACK])
def test_what_was_begun_is_not_begun_again(begun: Action) -> None:
    for action in Action:
        assert not is_news(plan(action), [plan(begun), plan(Action.WATCH)])


def test_more_findings_may_make_more_of_what_was_watched() -> None:
    assert is_news(plan(Action.TELL), [])
    assert not is_news(plan(Action.WATCH), [plan(Action.WATCH)])
    assert is_news(plan(Action.FINE_TUNE), [plan(Action.WATCH)])


def test_only_what_a_release_can_cause_is_blamed_on_it() -> None:
    for factor in (None, Factor.RELEASE, Factor.ENVIRONMENT):
        assert may_be_the_release(replace(DRIFT, factor=factor), True)
        assert not may_be_the_release(replace(DRIFT, factor=factor), False)
    for factor in (Factor.QUEUEING, Factor.REQUEST_MIX, Factor.INFRASTRUCTURE, Factor.UPSTREAM):
        assert not may_be_the_release(replace(DRIFT, factor=factor), True)
