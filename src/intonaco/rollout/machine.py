"""The one machine behind canary, blue/green, rolling and A/B: they differ in their list of steps.

``tick(rollout, facts, now)`` moves at most one step. What it keeps to, whatever the facts:

- a trip, proven harm, a dead worker or an abort end the rollout at once, paused or frozen or not;
- a step is left only when nothing is harmful, the gateway follows the table, the challenger is
  ready, and both the time and the units that the step asks for are there;
- at weight 1.0 nobody is randomised and nothing more can be learned about the difference: every
  guardrail is proven (non-inferior or superior) *before* that step is entered, and still when it is
  left for promotion. Evidence that does not come within ``max_seconds`` ends inconclusive;
- a final status never changes, and but for promotion it means weight 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from intonaco.config import RolloutConfig
from intonaco.rollout.outcomes import CLIP_SCORE, METRICS
from intonaco.types import (
    Assessment,
    BreakerTrip,
    MetricAssessment,
    Rollout,
    RolloutStatus,
    RolloutStep,
    StepKind,
    StepResult,
    Verdict,
)

COMMANDS = ("pause", "resume", "abort", "promote", "skip")
_PROVEN = (Assessment.NON_INFERIOR, Assessment.SUPERIOR)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutFacts:
    """What the machine decides on. ``units_at_step``: distinct challenger users judged since the
    step began. ``trips``: the challenger's, of this rollout. ``guardrails``: metrics that must be
    proven; one that is not assessed has no data."""

    assessments: tuple[MetricAssessment, ...] = ()
    units_at_step: int = 0
    shadow_pairs: int = 0
    trips: tuple[BreakerTrip, ...] = ()
    challenger_ready: bool = False
    observed_epoch_applied: bool = False
    sample_ratio_ok: bool = True
    sample_ratio_text: str = ""
    guardrails: tuple[str, ...] = METRICS
    command: str | None = None
    actor: str = "somebody"
    frozen: bool = False
    dead: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutDecision:
    """The rollout as it is now, the shares that traffic should have, and what happened.

    ``weights``: {"challenger": share of users, "shadow": share of requests copied}. ``events``:
    (kind, sentence), kinds being begun, step, waiting, paused, resumed, refused, promoted,
    rolled_back, inconclusive."""

    rollout: Rollout
    weights: Mapping[str, float]
    events: tuple[tuple[str, str], ...] = field(default=())


def steps_for(config: RolloutConfig) -> tuple[RolloutStep, ...]:
    """The configured steps, shadow ones first.

    ``blue_green`` goes from shadow straight to everybody; without a configured shadow step all
    requests are copied, for as long and for as many pairs as the first step asks. Rolling and A/B
    are canary lists (0.25, 0.5, 0.75, 1.0; 0.5, 1.0).
    """
    steps = tuple(
        RolloutStep(kind=s.kind, weight=s.weight, min_seconds=s.min_seconds, min_units=s.min_units)
        for s in config.steps
    )
    shadow = tuple(s for s in steps if s.kind is StepKind.SHADOW)
    canary = tuple(s for s in steps if s.kind is StepKind.CANARY)
    if config.strategy == "blue_green":
        copied = shadow or (replace(steps[0], kind=StepKind.SHADOW, weight=1.0),)
        return (*copied, canary[-1])
    return (*shadow, *canary)


def weights_of(rollout: Rollout) -> Mapping[str, float]:
    """Shares that the rollout's state asks for."""
    if rollout.status is RolloutStatus.PROMOTED:
        return {"challenger": 1.0, "shadow": 0.0}
    if rollout.status.final or not rollout.history:
        return {"challenger": 0.0, "shadow": 0.0}
    taken = rollout.steps[: rollout.step + 1]
    canary = [s.weight for s in taken if s.kind is StepKind.CANARY]
    return {
        "challenger": max(canary, default=0.0),
        "shadow": taken[-1].weight if taken[-1].kind is StepKind.SHADOW else 0.0,
    }


def tick(rollout: Rollout, facts: RolloutFacts, now: float) -> RolloutDecision:
    """Decide once. Pure: the same arguments give the same decision."""
    if rollout.status.final:
        return _decided(rollout)
    rollout = replace(rollout, assessments=facts.assessments or rollout.assessments)
    ended = _must_end(rollout, facts, now)
    if ended is not None:
        return ended
    if facts.command in ("pause", "resume"):
        return _pause_or_resume(rollout, facts, now)
    if facts.command is not None:
        return _hurry(rollout, facts, now)
    if rollout.status is RolloutStatus.PAUSED:
        return _decided(rollout)
    moved = None if facts.frozen else _advance(rollout, facts, now)
    if moved is not None and (
        moved.rollout.status.final or len(moved.rollout.history) > len(rollout.history)
    ):
        return moved
    if rollout.max_seconds > 0 and now - rollout.started_at >= rollout.max_seconds:
        reason = f"not proven within {rollout.max_seconds:.0f} s: {_where(rollout, facts)}"
        return _end(rollout, facts, RolloutStatus.INCONCLUSIVE, Verdict.INCONCLUSIVE, reason, now)
    return moved or _decided(rollout)


# ---------------------------------------------------------------------------------------- endings


def _must_end(rollout: Rollout, facts: RolloutFacts, now: float) -> RolloutDecision | None:
    """Whatever sends all users back to the champion at once."""
    verdict = Verdict.FAIL
    harmful = [a for a in facts.assessments if a.assessment is Assessment.HARMFUL]
    if facts.trips:
        trip = facts.trips[0]
        reason = f"the breaker tripped after {trip.failures} failures: {trip.reason}"
    elif harmful:
        reason = "; ".join(f"harmful: {describe(a)}" for a in harmful)
    elif facts.dead:
        reason = "the challenger's worker is gone"
    elif not facts.sample_ratio_ok:
        verdict = Verdict.ERROR
        reason = "the traffic split is not the one that was logged"
        reason += f": {facts.sample_ratio_text}" if facts.sample_ratio_text else ""
    elif facts.command == "abort":
        reason = f"aborted by {facts.actor}"
    else:
        return None
    return _end(rollout, facts, RolloutStatus.ROLLED_BACK, verdict, reason, now)


def _end(
    rollout: Rollout,
    facts: RolloutFacts,
    status: RolloutStatus,
    verdict: Verdict,
    reason: str,
    now: float,
) -> RolloutDecision:
    rollout = replace(
        _leave(rollout, facts, now, f"{status}: {reason}"),
        status=status,
        verdict=verdict,
        reason=reason,
        ended_at=now,
        paused_at=None,
    )
    return _decided(rollout, (status.value, reason))


# ---------------------------------------------------------------------------------------- steps


def _advance(rollout: Rollout, facts: RolloutFacts, now: float) -> RolloutDecision | None:
    """Begin, take the next step or promote, if everything asked for is there. None: not yet."""
    if not rollout.history:
        missing = _missing_to_enter(rollout, 0, facts)
        return None if missing else _enter(rollout, facts, 0, now)
    step = rollout.steps[rollout.step]
    units = facts.shadow_pairs if step.kind is StepKind.SHADOW else facts.units_at_step
    if now - rollout.step_since < step.min_seconds or units < step.min_units:
        return None
    if not facts.observed_epoch_applied:
        return None
    return _move_on(rollout, facts, now)


def _move_on(rollout: Rollout, facts: RolloutFacts, now: float) -> RolloutDecision:
    """To the next step or to promotion; else say what is waited for."""
    to = rollout.step + 1
    missing = _missing_to_enter(rollout, to, facts)
    if missing:
        text = "waiting for " + ", ".join(missing)
        current = rollout.history[-1]
        if current.decision == text:
            return _decided(rollout)
        current = replace(current, decision=text)
        rollout = replace(rollout, history=(*rollout.history[:-1], current))
        return _decided(rollout, ("waiting", text))
    if to < len(rollout.steps):
        return _enter(rollout, facts, to, now)
    proven = ", ".join(brief(a) for a in facts.assessments if a.metric in facts.guardrails)
    reason = (
        f"every guardrail is proven: {proven}"
        if rollout.champion
        else "straight to everybody: nothing to compare with"
    )
    return _end(rollout, facts, RolloutStatus.PROMOTED, Verdict.PASS, reason, now)


def _missing_to_enter(rollout: Rollout, to: int, facts: RolloutFacts) -> list[str]:
    """What lacks before step ``to``, or promotion if it is beyond the last."""
    missing = [] if facts.challenger_ready else ["the challenger to be ready"]
    everybody = to >= len(rollout.steps) or (
        rollout.steps[to].kind is StepKind.CANARY and rollout.steps[to].weight >= 1.0
    )
    if everybody and rollout.champion is not None:
        found = {a.metric: a.assessment for a in facts.assessments}
        for name in facts.guardrails:
            assessment = found.get(name, Assessment.NO_DATA)
            if assessment not in _PROVEN:
                missing.append(f"{name} ({assessment.replace('_', ' ')})")
        if not facts.guardrails:
            missing.append("a guardrail to be judged by")
    return missing


def _enter(rollout: Rollout, facts: RolloutFacts, to: int, now: float) -> RolloutDecision:
    begun = not rollout.history
    step = rollout.steps[to]
    rollout = _leave(rollout, facts, now, "advanced")
    entered = StepResult(kind=step.kind, weight=step.weight, entered_at=now)
    rollout = replace(rollout, step=to, step_since=now, history=(*rollout.history, entered))
    name = "of requests copied" if step.kind is StepKind.SHADOW else "of users"
    text = f"step {to + 1} of {len(rollout.steps)}: {step.kind}, {step.weight:.0%} {name}"
    return _decided(rollout, ("begun" if begun else "step", text))


def _leave(rollout: Rollout, facts: RolloutFacts, now: float, decision: str) -> Rollout:
    if not rollout.history:
        return rollout
    current = rollout.history[-1]
    units = facts.shadow_pairs if current.kind is StepKind.SHADOW else facts.units_at_step
    left = replace(current, left_at=now, units=units, decision=decision)
    return replace(rollout, history=(*rollout.history[:-1], left))


# ---------------------------------------------------------------------------------------- commands


def _pause_or_resume(rollout: Rollout, facts: RolloutFacts, now: float) -> RolloutDecision:
    if facts.command == "pause":
        if rollout.status is RolloutStatus.PAUSED:
            return _decided(rollout, ("refused", "paused already"))
        rollout = replace(rollout, status=RolloutStatus.PAUSED, paused_at=now)
        return _decided(rollout, ("paused", f"paused by {facts.actor}, weights held"))
    if rollout.status is not RolloutStatus.PAUSED:
        return _decided(rollout, ("refused", "not paused"))
    # The deadline is for looking at evidence; a pause does not use it up.
    held = now - rollout.paused_at if rollout.paused_at is not None else 0.0
    rollout = replace(
        rollout,
        status=RolloutStatus.RUNNING,
        paused_at=None,
        max_seconds=rollout.max_seconds + held if rollout.max_seconds > 0 else 0.0,
    )
    return _decided(rollout, ("resumed", f"resumed by {facts.actor} after {held:.0f} s"))


def _hurry(rollout: Rollout, facts: RolloutFacts, now: float) -> RolloutDecision:
    """``skip`` drops what is left of a step's time and units, ``promote`` all steps between here
    and everybody. Neither drops the proof."""
    if facts.command not in ("promote", "skip"):
        return _decided(rollout, ("refused", f"no such command: {facts.command}"))
    why = None
    if facts.frozen:
        why = "the service is frozen"
    elif rollout.status is RolloutStatus.PAUSED:
        why = "paused: resume first"
    elif not rollout.history or not facts.observed_epoch_applied:
        why = "the gateway does not follow the present step yet"
    last = len(rollout.steps) - 1
    at_last = rollout.step == last
    to = last if facts.command == "promote" and not at_last else rollout.step + 1
    missing = _missing_to_enter(rollout, to, facts)
    if why is None and missing:
        why = "lacking " + ", ".join(missing)
    if why is not None:
        return _decided(rollout, ("refused", f"{facts.command} refused: {why}"))
    if at_last:
        return _move_on(rollout, facts, now)
    return _enter(rollout, facts, to, now)


# ---------------------------------------------------------------------------------------- words


def _number(metric: str, value: float) -> str:
    return f"{value:+.3f}" if metric == CLIP_SCORE else f"{value:+.1%}"


def brief(a: MetricAssessment) -> str:
    """One metric in a few words: its interval and its margin."""
    if a.interval is None:
        return f"{a.metric} {a.assessment.replace('_', ' ')}"
    low, high = (_number(a.metric, value) for value in a.interval)
    return f"{a.metric} {low} to {high} (margin {_number(a.metric, a.margin).lstrip('+')})"


def describe(assessment: MetricAssessment) -> str:
    """One metric in words and figures."""
    a = assessment

    def number(value: float) -> str:
        return _number(a.metric, value)

    if a.difference is None or a.interval is None:
        return f"{a.metric} {a.assessment.replace('_', ' ')}"
    low, high = a.interval
    return (
        f"{a.metric} {number(a.difference)} [{number(low)}, {number(high)}] from "
        f"{a.units_challenger} challenger and {a.units_champion} champion users"
        + (f" and {a.shadow_pairs} shadow pairs, " if a.shadow_pairs else ", ")
        + f"log evidence of harm {a.evidence_harm:.1f} of {a.threshold:.1f}, "
        f"margin {number(a.margin).lstrip('+')}"
    )


def _where(rollout: Rollout, facts: RolloutFacts) -> str:
    if not rollout.history:
        missing = _missing_to_enter(rollout, 0, facts)
        return "never begun, lacking " + (", ".join(missing) or "time")
    missing = _missing_to_enter(rollout, len(rollout.steps), facts)
    step = rollout.steps[rollout.step]
    units = facts.shadow_pairs if step.kind is StepKind.SHADOW else facts.units_at_step
    return (
        f"step {rollout.step + 1} of {len(rollout.steps)} with {units} of {step.min_units} units"
        + (", lacking " + ", ".join(missing) if missing else "")
    )


def _decided(rollout: Rollout, *events: tuple[str, str]) -> RolloutDecision:
    return RolloutDecision(rollout=rollout, weights=weights_of(rollout), events=events)
