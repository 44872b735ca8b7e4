"""What the phases ``evaluate`` and ``gate`` of ``loop`` ask to be measured, and what the gate makes
of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from intonaco.config import Evaluation
from intonaco.evaluation import gate
from intonaco.evaluation.attempts import attempt, attempts
from intonaco.ledger import Effect, EffectStatus
from intonaco.loop_facts import Facts, effect
from intonaco.types import Candidate, Update, Verdict


def to_measure(update: Update, facts: Facts) -> Effect:
    """What is to be measured, at which alpha each candidate: fixed before it is looked at."""
    names = [c.name for c in update.candidates if c.release_id]
    tries = attempts(names, facts.earlier, facts.config.evaluation.alpha)
    asked = effect(update, "evaluate", "all")
    numbers = {name: attempt.number for name, attempt in tries.items()}
    alphas = {name: attempt.alpha for name, attempt in tries.items()}
    return replace(asked, payload={**asked.payload, "attempts": numbers, "alphas": alphas})


def tried_enough(facts: Facts) -> str:
    """Why no further candidate is tried for a trigger, or ""."""
    most = facts.config.evaluation.max_attempts
    if facts.earlier < most:
        return ""
    return (
        f"the gate has judged {facts.earlier} candidates for this trigger, and "
        f"evaluation.max_attempts is {most}: one more could pass by luck"
    )


def not_itself(candidate: Candidate, champion: str | None) -> Candidate:
    """A candidate that came out as the champion's own bits has nothing to roll out."""
    if candidate.release_id is None or candidate.release_id != champion:
        return candidate
    reasons = ("it is the champion: nothing would change", *candidate.reasons)
    return replace(candidate, verdict=Verdict.FAIL, reasons=reasons)


def judged(update: Update, facts: Facts) -> Mapping[str, gate.GateDecision]:
    """What the gate says of what was measured, people aside."""
    asked = facts.effects[effect(update, "evaluate", "all").key]
    expected = fixed_before(update, facts)
    return gate.decide(asked.result["report"], _settings(asked, facts), expected)


def fixed_before(update: Update, facts: Facts) -> gate.Expected:
    """What was fixed when the evaluation was asked for."""
    asked = facts.effects[effect(update, "evaluate", "all").key]
    alpha, fixed = _settings(asked, facts).alpha, asked.result.get("expected", {})
    numbers: Mapping[str, int] = asked.effect.payload.get("attempts", {})
    return gate.Expected(
        attempts={c.name: attempt(numbers.get(c.name, 1), alpha) for c in update.candidates},
        extractor=fixed.get("extractor"),
        shots=fixed.get("shots"),
        superiority=gate.wants_superiority(update.plan.action),
    )


def _settings(asked: EffectStatus, facts: Facts) -> Evaluation:
    """Margins and the rest as they were when the evaluation was asked for: whoever changes them
    afterwards may have seen what came out."""
    fixed = asked.result.get("expected", {}).get("settings")
    return facts.config.evaluation if fixed is None else Evaluation.model_validate(fixed)
