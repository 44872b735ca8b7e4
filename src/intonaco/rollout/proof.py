"""What has to be proven before a step, in words where it lacks. Pure."""

from __future__ import annotations

from intonaco.rollout import split
from intonaco.rollout.facts import EQUAL, RolloutFacts
from intonaco.rollout.outcomes import END_TO_END
from intonaco.rollout.replacing import (
    in_place,
)
from intonaco.rollout.words import brief
from intonaco.types import (
    Assessment,
    Rollout,
    StepKind,
)

PROVEN = (Assessment.NON_INFERIOR, Assessment.SUPERIOR)


def proof(rollout: Rollout, facts: RolloutFacts) -> str:
    if rollout.champion is None:
        return "straight to everybody: nothing to compare with"
    if in_place(rollout):
        return "in place: forced, compared with nothing"
    won = f"{rollout.split.text}; " if rollout.split is not None else ""
    judged = [a for a in facts.assessments if a.metric in facts.guardrails]
    proven = ", ".join(brief(a) for a in judged if a.metric not in rollout.accepted)
    if rollout.accepted:
        return f"{won}{accepted_text(rollout)}; proven: {proven or 'nothing'}"
    return f"{won}every guardrail is proven: {proven}"


def accepted_text(rollout: Rollout) -> str:
    what = ", ".join(f"{metric} undecided" for metric in rollout.accepted)
    return f"accepted unproven by {rollout.accepted_by}: {what}"


def missing_to_enter(rollout: Rollout, to: int, facts: RolloutFacts) -> list[str]:
    """What lacks before step ``to``, or the end if it is beyond the last."""
    step = rollout.steps[to] if to < len(rollout.steps) else None
    left = rollout.steps[rollout.step] if rollout.history else None
    if in_place(rollout) and (left is None or left.kind in (StepKind.PAUSE, StepKind.APPROVE)):
        return []  # nothing is loaded before its step
    missing = [] if facts.challenger_ready else ["the challenger to be ready"]
    if rollout.champion is None:
        return missing
    missing += [facts.blind] if facts.blind else []
    if rollout.promoted_at is not None or in_place(rollout):
        return missing
    equal = step is not None and step.kind is StepKind.CANARY and step.weight <= EQUAL
    missing += [facts.baseline] if equal and facts.baseline else []
    everybody = step is None or step.kind is StepKind.PROMOTE
    everybody |= step is not None and step.kind is StepKind.CANARY and step.weight >= 1.0
    if everybody or (left is not None and left.kind is StepKind.ANALYSIS):
        missing += _unproven(rollout, facts)
    elif rollout.baseline and step is not None and step.kind is StepKind.CANARY and not equal:
        missing += _unproven(rollout, facts, (END_TO_END,))  # nothing is learned of it beyond
    return missing


def _unproven(
    rollout: Rollout, facts: RolloutFacts, only: tuple[str, ...] | None = None
) -> list[str]:
    found = {a.metric: a.assessment for a in facts.assessments}
    missing = [
        f"{name} ({assessment.replace('_', ' ')})"
        for name in facts.guardrails
        if (only is None or name in only)
        and (assessment := found.get(name, Assessment.NO_DATA)) not in PROVEN
        and not (name in rollout.accepted and assessment is Assessment.UNDECIDED)
    ]
    return missing if facts.guardrails else ["a guardrail to be judged by"]


def where(rollout: Rollout, facts: RolloutFacts) -> str:
    if not rollout.history:
        missing = missing_to_enter(rollout, 0, facts)
        return "never begun, lacking " + (", ".join(missing) or "time")
    missing = missing_to_enter(rollout, len(rollout.steps), facts)
    step = rollout.steps[rollout.step]
    if (arms := split.undecided(rollout)) is not None:
        return split.evidence(arms, facts.guardrails)
    units = facts.shadow_pairs if step.kind is StepKind.SHADOW else facts.units_at_step
    return (
        f"step {rollout.step + 1} of {len(rollout.steps)} with {units} of {step.min_units} units"
        + (", lacking " + ", ".join(missing) if missing else "")
    )
