"""From one step of a rollout to the next, and to its end. Pure; ``machine`` says when."""

from __future__ import annotations

from dataclasses import replace

from intonaco.rollout import split
from intonaco.rollout.facts import RolloutDecision, RolloutFacts, decided
from intonaco.rollout.proof import missing_to_enter, proof
from intonaco.rollout.replacing import (
    in_place,
    missing_workers,
    next_wave,
    wave_begun,
)
from intonaco.rollout.words import asks_for, step_name
from intonaco.types import (
    Rollout,
    RolloutStatus,
    SplitArm,
    StepKind,
    StepResult,
    Verdict,
)

UNJUDGED = "the scores of what users were given in this time"


def advance(rollout: Rollout, facts: RolloutFacts, now: float) -> RolloutDecision | None:
    """Begin, take the next step or end, if everything asked for is there. None: not yet."""
    if not rollout.history:
        missing = missing_to_enter(rollout, 0, facts) or missing_workers(
            rollout, 0, facts.challenger_replicas
        )
        return None if missing else enter(rollout, facts, 0, now)
    step = rollout.steps[rollout.step]
    if step.kind is StepKind.APPROVE or step.min_seconds is None:
        return None  # a person's turn
    units = facts.shadow_pairs if step.kind is StepKind.SHADOW else facts.units_at_step
    early = now - rollout.step_since < step.min_seconds or units < step.min_units
    if early and not wave_begun(rollout):
        return None
    if not facts.observed_epoch_applied:
        return None
    if step.kind is StepKind.SPLIT:
        return _won(rollout, facts, now)
    if unjudged(rollout, facts):
        return _waits(rollout, UNJUDGED)
    return move_on(rollout, facts, now)


def unjudged(rollout: Rollout, facts: RolloutFacts) -> bool:
    """Whether the evidence of a bake does not reach to its end yet: one that is shorter than a
    silence takes to be noticed would pass unseen else."""
    step, oldest = rollout.steps[rollout.step], facts.unjudged_at
    if step.kind is not StepKind.BAKE or rollout.champion is None or oldest is None:
        return False
    return oldest <= rollout.step_since + (step.min_seconds or 0.0)


def _won(rollout: Rollout, facts: RolloutFacts, now: float) -> RolloutDecision:
    """The end of a split, if an arm has won; else say what is waited for."""
    arms = split.undecided(rollout)
    if arms is None:  # decided in an earlier look that could not go on
        return move_on(rollout, facts, now)
    winner, text = split.won(arms, facts.guardrails)
    if winner is None:
        return _waits(rollout, text)
    return decide_for(rollout, winner, facts, now, text)


def decide_for(
    rollout: Rollout, arm: SplitArm, facts: RolloutFacts, now: float, text: str
) -> RolloutDecision:
    ready = next((f.ready for f in facts.arms if f.name == arm.name), False)
    if not ready:
        return _waits(rollout, f"{arm.name} to be ready")
    rollout = split.decide(rollout, arm, text)
    alone = replace(facts, assessments=arm.assessments, challenger_ready=True)
    return move_on(rollout, alone, now, text)


def move_on(rollout: Rollout, facts: RolloutFacts, now: float, note: str = "") -> RolloutDecision:
    """To the next step or to the end; else say what is waited for."""
    to = rollout.step + 1
    missing = missing_to_enter(rollout, to, facts)
    if not missing and next_wave(rollout, to) and not wave_begun(rollout):
        return begin_next_wave(rollout, to, note)
    missing = missing or missing_workers(rollout, to, facts.challenger_replicas)
    if missing:
        return _waits(rollout, ", ".join(missing))
    if to < len(rollout.steps):
        return enter(rollout, facts, to, now, note)
    if rollout.promoted_at is None and not any(s.kind is StepKind.CANARY for s in rollout.steps):
        reason = f"watched, nobody is promoted: {proof(rollout, facts)}"
        return end(rollout, facts, RolloutStatus.OBSERVED, Verdict.PASS, reason, now)
    reason = rollout.reason or proof(rollout, facts)
    promoted_at = rollout.promoted_at if rollout.promoted_at is not None else now
    rollout = replace(rollout, promoted_at=promoted_at)
    compared = not in_place(rollout) and not rollout.accepted
    verdict = Verdict.PASS if compared else Verdict.INCONCLUSIVE
    said = reason
    if any(s.kind is StepKind.PROMOTE for s in rollout.steps):  # which told the proof
        said = f"it stays champion: no reason to go back in {max(0.0, now - promoted_at):.0f} s"
        said += f" ({note})" if note else ""
    return end(rollout, facts, RolloutStatus.PROMOTED, verdict, reason, now, said)


def _waits(rollout: Rollout, what: str) -> RolloutDecision:
    """Told once, and again when it changes."""
    text = f"waiting for {what}"
    current = rollout.history[-1]
    if current.decision == text:
        return decided(rollout)
    current = replace(current, decision=text)
    rollout = replace(rollout, history=(*rollout.history[:-1], current))
    return decided(rollout, ("waiting", text))


def begin_next_wave(rollout: Rollout, to: int, note: str = "") -> RolloutDecision:
    assert rollout.capacity is not None
    wave, total = rollout.steps[to].replicas, rollout.capacity.total
    rollout = replace(rollout, capacity=replace(rollout.capacity, challenger=wave))
    text = f"{wave} of {total} workers are to be the challenger's" + (f" ({note})" if note else "")
    return decided(rollout, ("scaling", text))


def enter(
    rollout: Rollout, facts: RolloutFacts, to: int, now: float, note: str = ""
) -> RolloutDecision:
    begun = not rollout.history
    step = rollout.steps[to]
    rollout = _leave(rollout, facts, now, note or "advanced")
    entered = StepResult(kind=step.kind, weight=step.weight, entered_at=now)
    rollout = replace(
        rollout,
        step=to,
        step_since=now,
        overdue=False,
        history=(*rollout.history, entered),
    )
    text = f"step {to + 1} of {len(rollout.steps)}: {step_name(step)}"
    events = [("begun" if begun else "step", text + (f" ({note})" if note else ""))]
    if step.kind is StepKind.APPROVE or (step.kind is StepKind.PAUSE and step.min_seconds is None):
        events.append(("asked", asks_for(step)))
    if step.kind is StepKind.PROMOTE:
        reason = proof(rollout, facts)
        rollout = replace(rollout, promoted_at=now, reason=reason)
        events.append(("crowned", reason))
    return decided(rollout, *events)


def counted(rollout: Rollout, facts: RolloutFacts) -> Rollout:
    """With the units so far of a step that waits for them, for people to see."""
    if not rollout.history or not rollout.steps[rollout.step].min_units:
        return rollout
    current = replace(rollout.history[-1], units=_units(rollout, facts))
    return replace(rollout, history=(*rollout.history[:-1], current))


def _units(rollout: Rollout, facts: RolloutFacts) -> int:
    """Judged at the step; of a split, on the challenger with the fewest."""
    kind = rollout.history[-1].kind
    if kind is StepKind.SPLIT and rollout.split is not None:
        return min(arm.units for arm in rollout.split.arms)
    return facts.shadow_pairs if kind is StepKind.SHADOW else facts.units_at_step


def _leave(rollout: Rollout, facts: RolloutFacts, now: float, decision: str) -> Rollout:
    if not rollout.history:
        return rollout
    current = rollout.history[-1]
    left = replace(
        current,
        left_at=max(now, current.entered_at),  # a clock that was set back while nobody looked
        units=_units(rollout, facts),
        decision=decision,
    )
    return replace(rollout, history=(*rollout.history[:-1], left))


def end(
    rollout: Rollout,
    facts: RolloutFacts,
    status: RolloutStatus,
    verdict: Verdict,
    reason: str,
    now: float,
    said: str = "",
) -> RolloutDecision:
    """With a final status. ``said``: what the event tells, if not the reason."""
    rollout = replace(
        _leave(rollout, facts, now, f"{status}: {said or reason}"),
        status=status,
        verdict=verdict,
        reason=reason,
        ended_at=max(now, rollout.started_at),
        paused_at=None,
        stuck_since=None,
    )
    return decided(rollout, (status.value, said or reason))
