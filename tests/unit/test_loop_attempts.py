"""The main flow numbers the candidates of a trigger before it measures them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from intonaco import loop
from intonaco.config import Config
from intonaco.ledger import Effect, EffectStatus
from intonaco.types import Action, Cause, Phase, Plan, Update, Verdict

CONFIG = Config.model_validate(
    {
        "service": "s",
        "model": {"name": "m"},
        "evaluation": {"alpha": 0.04, "max_attempts": 3},
    }
)


def fine_tune(phase: Phase) -> Update:
    plan = Plan(
        plan_id="p",
        service_id="s",
        at=0.0,
        action=Action.FINE_TUNE,
        cause=Cause.CONCEPT_DRIFT,
        reason="",
        recipes=("first", "second"),
    )
    update = loop.start(plan, "champion", 0.0)
    made = tuple(replace(c, release_id=f"r-{c.name}") for c in update.candidates)
    return replace(update, phase=phase, candidates=made)


def evaluation(update: Update, earlier: int) -> Effect:
    step = loop.advance(update, loop.Facts(config=CONFIG, earlier=earlier), 1.0)
    (effect,) = step.effects
    return effect


def test_each_candidate_is_told_its_alpha() -> None:
    effect = evaluation(fine_tune(Phase.EVALUATE), earlier=1)
    assert effect.payload["attempts"] == {"first": 2, "second": 3}
    assert effect.payload["alphas"] == {"first": 0.02, "second": 0.01}


@pytest.mark.parametrize("phase", [Phase.DATASET, Phase.EVALUATE])
def test_after_so_many_candidates_nothing_more_is_tried(phase: Phase) -> None:
    step = loop.advance(fine_tune(phase), loop.Facts(config=CONFIG, earlier=3), 1.0)
    assert step.update.phase is Phase.REJECTED
    assert "has judged 3 candidates for this trigger" in step.note
    assert not step.effects


def test_the_gate_judges_by_what_was_fixed() -> None:
    """Number and alpha are those of the effect, whatever has been judged in the meantime; the
    candidate beyond the last allowed is refused unseen."""
    update = fine_tune(Phase.EVALUATE)
    effect = evaluation(update, earlier=2)
    report = {
        "candidates": ["first", "second"],
        "champion": {"release_id": "champion"},
        "alpha": 0.04,
        "alphas": effect.payload["alphas"],
        "keep": ["zero"],
        "extractor": {"digest": "b"},
    }
    done = EffectStatus(
        effect=effect,
        status="done",
        result={"report": report, "expected": {"extractor": "a", "shots": "x"}},
        error="",
        attempts=1,
        updated_at=1.0,
    )
    facts = loop.Facts(config=CONFIG, effects={effect.key: done})
    step = loop.advance(replace(update, phase=Phase.GATE), facts, 2.0)
    first, second = step.update.candidates
    assert [c.attempt for c in (first, second)] == [3, 4]
    assert [c.alpha for c in (first, second)] == [0.01, 0.005]
    assert first.verdict is second.verdict is Verdict.ERROR
    assert "was measured with extractor b" in first.reasons[0]
    assert "is candidate 4 for this trigger" in second.reasons[0]
