"""The one machine behind every strategy: they differ in their list of steps (``strategies``).

``tick(rollout, facts, now)`` moves at most one step. What it keeps to, whatever the facts:

- a trip, proven harm, a dead worker, a step that is stuck or an abort send everybody back, paused
  or frozen or not, in every step, the bake after promotion too; but never to a champion that is not
  ready while the challenger still answers: then it *returns* as soon as the champion is ready;
- a step is left only when nothing is harmful, the gateway follows the table, the challenger is
  ready, and what the step waits for is there; an approval is never skipped;
- at weight 1.0 nobody is randomised and nothing more can be learned about the difference: every
  guardrail is proven (non-inferior or superior) *before* that step is entered, and still when the
  challenger becomes champion. Evidence that does not come within ``max_seconds`` ends
  inconclusive, or is told and waited for where ``on_inconclusive`` is "hold";
- of a split each arm is judged by itself and taken out by itself (``split``); once one has won, or
  a person has named one that is proven no worse, the rollout is that arm's;
- a final status never changes, and but for promotion it means weight 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from intonaco.rollout import split
from intonaco.rollout.outcomes import METRICS
from intonaco.rollout.words import brief, describe, step_name
from intonaco.types import (
    Assessment,
    BreakerTrip,
    MetricAssessment,
    PairComparison,
    Rollout,
    RolloutStatus,
    SplitArm,
    StepKind,
    StepResult,
    Verdict,
)

COMMANDS = ("pause", "resume", "abort", "promote", "skip", "approve")
_PROVEN = (Assessment.NON_INFERIOR, Assessment.SUPERIOR)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutFacts:
    """What the machine decides on. ``units_at_step``: distinct challenger users judged since the
    step began. ``trips``: the challenger's, of this rollout. ``guardrails``: metrics that must be
    proven; one that is not assessed has no data. ``champion_ready``: it could take everybody now
    (the previous one, once the challenger is champion). ``dead``: the challenger cannot answer.
    While a split is undecided, ``arms`` and ``pairs`` tell of its challengers instead; ``arm``: the
    one that a command names."""

    assessments: tuple[MetricAssessment, ...] = ()
    units_at_step: int = 0
    shadow_pairs: int = 0
    trips: tuple[BreakerTrip, ...] = ()
    challenger_ready: bool = False
    champion_ready: bool = True
    observed_epoch_applied: bool = False
    sample_ratio_ok: bool = True
    sample_ratio_text: str = ""
    guardrails: tuple[str, ...] = METRICS
    command: str | None = None
    actor: str = "somebody"
    why: str = ""  # that the actor gave
    asked_at: float | None = None  # when the command was given, None: now
    frozen: bool = False
    dead: bool = False
    arms: tuple[split.ArmFacts, ...] = ()
    pairs: tuple[PairComparison, ...] = ()
    arm: str | None = None

    @property
    def by(self) -> str:
        """Who asked, and why."""
        return self.actor + (f": {self.why}" if self.why else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutDecision:
    """The rollout as it is now, the shares that traffic should have, and what happened.

    ``weights``: {"challenger": share of users, "shadow": share of requests copied}. ``events``:
    (kind, sentence), kinds being begun, step, waiting, overdue, paused, resumed, refused, removed,
    crowned, returning, promoted, observed, rolled_back, inconclusive."""

    rollout: Rollout
    weights: Mapping[str, float]
    events: tuple[tuple[str, str], ...] = field(default=())


def weights_of(rollout: Rollout) -> Mapping[str, float]:
    """Shares that the rollout's state asks for. Steps that move no traffic keep that of the last
    one that did."""
    nothing = {"challenger": 0.0, "shadow": 0.0}
    if rollout.status is RolloutStatus.PROMOTED:
        return nothing | {"challenger": 1.0}
    if rollout.status.final or not rollout.history:
        return nothing
    taken = rollout.steps[: rollout.step + 1]
    if rollout.promoted_at is not None:
        held = taken[-1].weight if taken[-1].kind is StepKind.BAKE else 0.0
        return nothing | {"challenger": 1.0 - held}
    for step in reversed(taken):
        if step.kind is StepKind.CANARY:
            return nothing | {"challenger": step.weight}
        if step.kind is StepKind.SPLIT and rollout.split is not None:
            return nothing | {"challenger": sum(a.share for a in rollout.split.live)}
        if step.kind is StepKind.SHADOW:
            return nothing | {"shadow": step.weight}
    return nothing


def tick(rollout: Rollout, facts: RolloutFacts, now: float) -> RolloutDecision:
    """Decide once. Pure: the same arguments give the same decision."""
    if rollout.status.final:
        return _decided(rollout)
    rollout, removed = split.look(
        rollout, facts.arms, facts.pairs, now, champion_ready=facts.champion_ready
    )
    if (arms := split.undecided(rollout)) is not None:
        ready, units = split.together(arms, facts.arms)
        facts = replace(facts, challenger_ready=ready, units_at_step=units)
    decision = _tick(rollout, facts, now)
    return replace(decision, events=(*removed, *decision.events))


def _tick(rollout: Rollout, facts: RolloutFacts, now: float) -> RolloutDecision:
    rollout = replace(rollout, assessments=facts.assessments or rollout.assessments)
    rollout = _timed(rollout, facts, now)
    ended = _must_end(rollout, facts, now) or _unapproved(rollout, facts, now)
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
    return _unproven_in_time(rollout, facts, now) or moved or _decided(rollout)


# ---------------------------------------------------------------------------------------- endings


def _timed(rollout: Rollout, facts: RolloutFacts, now: float) -> Rollout:
    """With the time since which it has been stuck. Once promoted, a gateway that is silent is no
    reason to go back."""
    follows = facts.observed_epoch_applied or not rollout.history or rollout.promoted_at is not None
    if facts.challenger_ready and follows:
        return replace(rollout, stuck_since=None)
    return rollout if rollout.stuck_since is not None else replace(rollout, stuck_since=now)


def _must_end(rollout: Rollout, facts: RolloutFacts, now: float) -> RolloutDecision | None:
    """Whatever sends all users back to the champion at once. Nothing does where there was none
    before."""
    if rollout.promoted_at is not None and rollout.champion is None:
        return None
    verdict = Verdict.FAIL
    harmful = [a for a in facts.assessments if a.assessment is Assessment.HARMFUL]
    stuck = now - rollout.stuck_since if rollout.stuck_since is not None else 0.0
    if facts.trips:
        trip = facts.trips[0]
        reason = f"the breaker tripped after {trip.failures} failures: {trip.reason}"
    elif harmful:
        reason = "; ".join(f"harmful: {describe(a)}" for a in harmful)
    elif facts.dead:
        reason = "the challenger's worker is gone"
    elif nobody := split.all_out(rollout):
        reason = nobody
    elif not facts.sample_ratio_ok:
        verdict = Verdict.ERROR
        reason = "the traffic split is not the one that was logged"
        reason += f": {facts.sample_ratio_text}" if facts.sample_ratio_text else ""
    elif facts.command == "abort":
        reason = f"aborted by {facts.by}"
    elif 0 < rollout.stuck_seconds <= stuck:
        what = "the gateway does not follow" if facts.challenger_ready else "it is not ready"
        reason = f"no progress for {stuck:.0f} s: {what}"
    elif rollout.returning:
        reason, verdict = rollout.returning, rollout.returning_verdict or Verdict.FAIL
    else:
        return None
    return _go_back(rollout, facts, verdict, reason, now)


def _go_back(
    rollout: Rollout, facts: RolloutFacts, verdict: Verdict, reason: str, now: float
) -> RolloutDecision:
    """To the champion, or as soon as it can take everybody."""
    champion = rollout.champion
    if champion is not None and not facts.champion_ready and not facts.dead:
        if rollout.returning:
            return _decided(rollout)
        rollout = replace(rollout, returning=reason, returning_verdict=verdict)
        text = f"goes back as soon as {champion[:10]} is ready: {reason}"
        return _decided(rollout, ("returning", text))
    return _end(rollout, facts, RolloutStatus.ROLLED_BACK, verdict, reason, now)


def _unapproved(rollout: Rollout, facts: RolloutFacts, now: float) -> RolloutDecision | None:
    """What happens when a person's word is overdue; one that was given in time counts, whenever it
    is read."""
    step = rollout.steps[rollout.step] if rollout.history else None
    if step is None or step.kind is not StepKind.APPROVE or step.deadline_s is None:
        return None
    if rollout.status is RolloutStatus.PAUSED:
        return None
    asked = facts.asked_at if facts.command == "approve" and facts.asked_at is not None else now
    if asked - rollout.step_since < step.deadline_s:
        return None
    reason = f"nobody approved within {step.deadline_s:.0f} s"
    return _overdue(rollout, facts, reason, step.on_timeout, now)


def _unproven_in_time(rollout: Rollout, facts: RolloutFacts, now: float) -> RolloutDecision | None:
    if rollout.promoted_at is not None or rollout.max_seconds <= 0:
        return None
    if now - rollout.started_at < rollout.max_seconds:
        return None
    reason = f"not proven within {rollout.max_seconds:.0f} s: {_where(rollout, facts)}"
    return _overdue(rollout, facts, reason, rollout.on_inconclusive, now)


def _overdue(
    rollout: Rollout, facts: RolloutFacts, reason: str, then: str, now: float
) -> RolloutDecision | None:
    if then == "abort":
        return _end(rollout, facts, RolloutStatus.INCONCLUSIVE, Verdict.INCONCLUSIVE, reason, now)
    if rollout.overdue:
        return None
    text = f"{reason}; it goes on until somebody promotes or aborts it"
    return _decided(replace(rollout, overdue=True), ("overdue", text))


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
        stuck_since=None,
    )
    return _decided(rollout, (status.value, reason))


# ---------------------------------------------------------------------------------------- steps


def _advance(rollout: Rollout, facts: RolloutFacts, now: float) -> RolloutDecision | None:
    """Begin, take the next step or end, if everything asked for is there. None: not yet."""
    if not rollout.history:
        missing = _missing_to_enter(rollout, 0, facts)
        return None if missing else _enter(rollout, facts, 0, now)
    step = rollout.steps[rollout.step]
    if step.kind is StepKind.APPROVE or step.min_seconds is None:
        return None  # a person's turn
    units = facts.shadow_pairs if step.kind is StepKind.SHADOW else facts.units_at_step
    if now - rollout.step_since < step.min_seconds or units < step.min_units:
        return None
    if not facts.observed_epoch_applied:
        return None
    if step.kind is StepKind.SPLIT:
        return _won(rollout, facts, now)
    return _move_on(rollout, facts, now)


def _won(rollout: Rollout, facts: RolloutFacts, now: float) -> RolloutDecision:
    """The end of a split, if an arm has won; else say what is waited for."""
    arms = split.undecided(rollout)
    if arms is None:  # decided in an earlier look that could not go on
        return _move_on(rollout, facts, now)
    winner, text = split.won(arms, facts.guardrails)
    if winner is None:
        return _waits(rollout, text)
    return _decide_for(rollout, winner, facts, now, text)


def _decide_for(
    rollout: Rollout, arm: SplitArm, facts: RolloutFacts, now: float, text: str
) -> RolloutDecision:
    ready = next((f.ready for f in facts.arms if f.name == arm.name), False)
    if not ready:
        return _waits(rollout, f"{arm.name} to be ready")
    rollout = split.decide(rollout, arm, text)
    alone = replace(facts, assessments=arm.assessments, challenger_ready=True)
    return _move_on(rollout, alone, now, text)


def _move_on(rollout: Rollout, facts: RolloutFacts, now: float, note: str = "") -> RolloutDecision:
    """To the next step or to the end; else say what is waited for."""
    to = rollout.step + 1
    missing = _missing_to_enter(rollout, to, facts)
    if missing:
        return _waits(rollout, ", ".join(missing))
    if to < len(rollout.steps):
        return _enter(rollout, facts, to, now, note)
    if rollout.promoted_at is None and not any(s.kind is StepKind.CANARY for s in rollout.steps):
        reason = f"watched, nobody is promoted: {_proof(rollout, facts)}"
        return _end(rollout, facts, RolloutStatus.OBSERVED, Verdict.PASS, reason, now)
    reason = rollout.reason or _proof(rollout, facts)
    promoted_at = rollout.promoted_at if rollout.promoted_at is not None else now
    rollout = replace(rollout, promoted_at=promoted_at)
    return _end(rollout, facts, RolloutStatus.PROMOTED, Verdict.PASS, reason, now)


def _waits(rollout: Rollout, what: str) -> RolloutDecision:
    """Told once, and again when it changes."""
    text = f"waiting for {what}"
    current = rollout.history[-1]
    if current.decision == text:
        return _decided(rollout)
    current = replace(current, decision=text)
    rollout = replace(rollout, history=(*rollout.history[:-1], current))
    return _decided(rollout, ("waiting", text))


def _proof(rollout: Rollout, facts: RolloutFacts) -> str:
    if rollout.champion is None:
        return "straight to everybody: nothing to compare with"
    won = f"{rollout.split.text}; " if rollout.split is not None else ""
    proven = ", ".join(brief(a) for a in facts.assessments if a.metric in facts.guardrails)
    return f"{won}every guardrail is proven: {proven}"


def _missing_to_enter(rollout: Rollout, to: int, facts: RolloutFacts) -> list[str]:
    """What lacks before step ``to``, or the end if it is beyond the last."""
    missing = [] if facts.challenger_ready else ["the challenger to be ready"]
    if rollout.champion is None or rollout.promoted_at is not None:
        return missing
    left = rollout.steps[rollout.step] if rollout.history else None
    step = rollout.steps[to] if to < len(rollout.steps) else None
    everybody = step is None or step.kind is StepKind.PROMOTE
    everybody |= step is not None and step.kind is StepKind.CANARY and step.weight >= 1.0
    if everybody or (left is not None and left.kind is StepKind.ANALYSIS):
        missing += _unproven(facts)
    return missing


def _unproven(facts: RolloutFacts) -> list[str]:
    found = {a.metric: a.assessment for a in facts.assessments}
    missing = [
        f"{name} ({assessment.replace('_', ' ')})"
        for name in facts.guardrails
        if (assessment := found.get(name, Assessment.NO_DATA)) not in _PROVEN
    ]
    return missing if facts.guardrails else ["a guardrail to be judged by"]


def _enter(
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
    if step.kind is StepKind.PROMOTE:
        reason = _proof(rollout, facts)
        rollout = replace(rollout, promoted_at=now, reason=reason)
        events.append(("crowned", reason))
    return _decided(rollout, *events)


def _leave(rollout: Rollout, facts: RolloutFacts, now: float, decision: str) -> Rollout:
    if not rollout.history:
        return rollout
    current = rollout.history[-1]
    units = facts.shadow_pairs if current.kind is StepKind.SHADOW else facts.units_at_step
    left = replace(current, left_at=now, units=units, decision=decision)
    return replace(rollout, history=(*rollout.history[:-1], left))


# ---------------------------------------------------------------------------------------- commands


def _pause_or_resume(rollout: Rollout, facts: RolloutFacts, now: float) -> RolloutDecision:
    step = rollout.steps[rollout.step] if rollout.history else None
    if facts.command == "pause":
        if rollout.status is RolloutStatus.PAUSED:
            return _decided(rollout, ("refused", "paused already"))
        rollout = replace(rollout, status=RolloutStatus.PAUSED, paused_at=now)
        return _decided(rollout, ("paused", f"paused by {facts.by}, weights held"))
    if rollout.status is not RolloutStatus.PAUSED:
        if step is not None and step.kind is StepKind.PAUSE:
            return _hurry(rollout, facts, now)
        return _decided(rollout, ("refused", "not paused"))
    # Deadlines are for looking at evidence; a pause does not use them up.
    held = now - rollout.paused_at if rollout.paused_at is not None else 0.0
    rollout = replace(
        rollout,
        status=RolloutStatus.RUNNING,
        paused_at=None,
        max_seconds=rollout.max_seconds + held if rollout.max_seconds > 0 else 0.0,
        step_since=rollout.step_since + held
        if step is not None and step.kind is StepKind.APPROVE
        else rollout.step_since,
    )
    return _decided(rollout, ("resumed", f"resumed by {facts.by} after {held:.0f} s"))


def _hurry(rollout: Rollout, facts: RolloutFacts, now: float) -> RolloutDecision:
    """``skip`` drops what is left of a step's time and units, ``promote`` all steps between here
    and everybody, ``approve`` and ``resume`` end the wait for a person. None drops the proof, and
    only ``approve`` passes an approval."""
    command = str(facts.command)
    if command not in COMMANDS:
        return _decided(rollout, ("refused", f"no such command: {command}"))
    step = rollout.steps[rollout.step] if rollout.history else None
    if step is not None and step.kind is StepKind.SPLIT and split.undecided(rollout) is not None:
        return _choose(rollout, facts, now)
    to = _target(rollout, command)
    between = rollout.steps[rollout.step : to] if rollout.history else rollout.steps[:to]
    missing = _missing_to_enter(rollout, to, facts)
    waits = step is not None and step.kind is StepKind.APPROVE
    why = None
    if command == "abort":
        why = "there is nothing to go back to"
    elif facts.frozen:
        why = "the service is frozen"
    elif rollout.status is RolloutStatus.PAUSED:
        why = "paused: resume first"
    elif step is None or not facts.observed_epoch_applied:
        why = "the gateway does not follow the present step yet"
    elif command == "approve" and not waits:
        why = "it does not wait for an approval"
    elif command != "approve" and any(s.kind is StepKind.APPROVE for s in between):
        why = "an approval stands before it: approve first"
    elif rollout.promoted_at is not None and command == "promote":
        why = "it is champion already"
    elif missing:
        why = "lacking " + ", ".join(missing)
    if why is not None:
        return _decided(rollout, ("refused", f"{command} refused: {why}"))
    done = {"approve": "approved", "promote": "promoted", "skip": "skipped", "resume": "resumed"}
    note = f"{done[command]} by {facts.by}"
    if to >= len(rollout.steps):
        return _move_on(rollout, facts, now, note)
    return _enter(rollout, facts, to, now, note)


def _choose(rollout: Rollout, facts: RolloutFacts, now: float) -> RolloutDecision:
    """End a split by a person's word."""
    command = str(facts.command)
    arms, why = rollout.split, ""
    if command == "abort":
        why = "there is nothing to go back to"
    elif facts.frozen:
        why = "the service is frozen"
    elif rollout.status is RolloutStatus.PAUSED:
        why = "paused: resume first"
    elif not facts.observed_epoch_applied:
        why = "the gateway does not follow the present step yet"
    assert arms is not None
    arm, cannot = split.chosen(arms, command, facts.arm, facts.guardrails)
    if why or arm is None:
        return _decided(rollout, ("refused", f"{command} refused: {why or cannot}"))
    done = {"approve": "approved", "promote": "promoted", "skip": "skipped"}[command]
    text = f"{split.why(arms, arm, facts.guardrails)}; {done} by {facts.by}"
    return _decide_for(rollout, arm, facts, now, text)


def _target(rollout: Rollout, command: str) -> int:
    """The step that a command leads to: for ``promote`` the one that gives everybody the
    challenger, or the promotion if they have it."""
    if not rollout.history or command != "promote":
        return rollout.step + 1
    later = range(rollout.step + 1, len(rollout.steps))
    switches = [
        k
        for k in later
        if rollout.steps[k].kind is StepKind.PROMOTE
        or (rollout.steps[k].kind is StepKind.CANARY and rollout.steps[k].weight >= 1.0)
    ]
    return switches[0] if switches else len(rollout.steps)


# ---------------------------------------------------------------------------------------- words


def _where(rollout: Rollout, facts: RolloutFacts) -> str:
    if not rollout.history:
        missing = _missing_to_enter(rollout, 0, facts)
        return "never begun, lacking " + (", ".join(missing) or "time")
    missing = _missing_to_enter(rollout, len(rollout.steps), facts)
    step = rollout.steps[rollout.step]
    if (arms := split.undecided(rollout)) is not None:
        return split.evidence(arms, facts.guardrails)
    units = facts.shadow_pairs if step.kind is StepKind.SHADOW else facts.units_at_step
    return (
        f"step {rollout.step + 1} of {len(rollout.steps)} with {units} of {step.min_units} units"
        + (", lacking " + ", ".join(missing) if missing else "")
    )


def _decided(rollout: Rollout, *events: tuple[str, str]) -> RolloutDecision:
    return RolloutDecision(rollout=rollout, weights=weights_of(rollout), events=events)
