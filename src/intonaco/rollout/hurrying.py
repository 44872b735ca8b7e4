"""What people may ask of a running rollout, and what it answers. Pure."""

from __future__ import annotations

from dataclasses import replace

from intonaco.rollout import split
from intonaco.rollout.facts import COMMANDS, RolloutDecision, RolloutFacts, decided
from intonaco.rollout.proof import PROVEN, accepted_text, missing_to_enter
from intonaco.rollout.replacing import (
    missing_workers,
    next_wave,
    wave_begun,
)
from intonaco.rollout.stepping import begin_next_wave, decide_for, enter, move_on
from intonaco.types import (
    Assessment,
    Rollout,
    RolloutStatus,
    StepKind,
)


def pause_or_resume(rollout: Rollout, facts: RolloutFacts, now: float) -> RolloutDecision:
    step = rollout.steps[rollout.step] if rollout.history else None
    if facts.command == "pause":
        if rollout.status is RolloutStatus.PAUSED:
            return decided(rollout, ("refused", "paused already"))
        rollout = replace(rollout, status=RolloutStatus.PAUSED, paused_at=now)
        return decided(rollout, ("paused", f"paused by {facts.by}, weights held"))
    if rollout.status is not RolloutStatus.PAUSED:
        if step is not None and step.kind is StepKind.PAUSE:
            return hurry(rollout, facts, now)
        return decided(rollout, ("refused", "not paused"))
    # Deadlines are for looking at evidence; a pause does not use them up.
    held = max(0.0, now - rollout.paused_at) if rollout.paused_at is not None else 0.0
    rollout = replace(
        rollout,
        status=RolloutStatus.RUNNING,
        paused_at=None,
        max_seconds=rollout.max_seconds + held if rollout.max_seconds > 0 else 0.0,
        step_since=rollout.step_since + held
        if step is not None and step.kind is StepKind.APPROVE
        else rollout.step_since,
    )
    return decided(rollout, ("resumed", f"resumed by {facts.by} after {held:.0f} s"))


def hurry(rollout: Rollout, facts: RolloutFacts, now: float) -> RolloutDecision:
    """``skip`` drops what is left of a step's time and units, ``promote`` all steps between here
    and everybody, ``approve`` and ``resume`` end the wait for a person. None drops the proof, and
    only ``approve`` passes an approval."""
    command = str(facts.command)
    if command not in COMMANDS:
        return decided(rollout, ("refused", f"no such command: {command}"))
    step = rollout.steps[rollout.step] if rollout.history else None
    if step is not None and step.kind is StepKind.SPLIT and split.undecided(rollout) is not None:
        return _choose(rollout, facts, now)
    to = _target(rollout, command)
    between = rollout.steps[rollout.step : to] if rollout.history else rollout.steps[:to]
    missing = missing_to_enter(rollout, to, facts)
    waits = step is not None and step.kind is StepKind.APPROVE
    if command == "approve" and rollout.asked and not waits and not rollout.accepted:
        return _accept(rollout, facts)
    wave = next_wave(rollout, to) if not wave_begun(rollout) else 0
    if not wave:
        missing = missing or missing_workers(rollout, to, facts.challenger_replicas)
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
        return decided(rollout, ("refused", f"{command} refused: {why}"))
    done = {"approve": "approved", "promote": "promoted", "skip": "skipped", "resume": "resumed"}
    note = f"{done[command]} by {facts.by}"
    if wave:
        return begin_next_wave(rollout, to, note)
    if to >= len(rollout.steps):
        return move_on(rollout, facts, now, note)
    return enter(rollout, facts, to, now, note)


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
        return decided(rollout, ("refused", f"{command} refused: {why or cannot}"))
    done = {"approve": "approved", "promote": "promoted", "skip": "skipped"}[command]
    text = f"{split.why(arms, arm, facts.guardrails)}; {done} by {facts.by}"
    return decide_for(rollout, arm, facts, now, text)


def _target(rollout: Rollout, command: str) -> int:
    """The step that a command leads to: for ``promote`` the one that gives everybody the
    challenger, or the promotion if they have it. A rolling rollout leaves no wave out."""
    if not rollout.history or command != "promote" or rollout.capacity is not None:
        return rollout.step + 1
    later = range(rollout.step + 1, len(rollout.steps))
    switches = [
        k
        for k in later
        if rollout.steps[k].kind is StepKind.PROMOTE
        or (rollout.steps[k].kind is StepKind.CANARY and rollout.steps[k].weight >= 1.0)
        or rollout.steps[k].kind is StepKind.REPLACE
    ]
    return switches[0] if switches else len(rollout.steps)


def _accept(rollout: Rollout, facts: RolloutFacts) -> RolloutDecision:
    """A person's word on what stayed undecided, kept by name."""
    found = {a.metric: a.assessment for a in facts.assessments}
    unproven = [m for m in facts.guardrails if found.get(m) not in PROVEN]
    unmeasured = [m for m in unproven if found.get(m) is not Assessment.UNDECIDED]
    why = None
    if unmeasured:
        why = f"{', '.join(unmeasured)} was not measured, and no data cannot be accepted"
    elif not unproven:
        why = "nothing is undecided"
    elif not facts.why:
        why = "say why with --reason: it is kept with the rollout"
    if why is not None:
        return decided(rollout, ("refused", f"approve refused: {why}"))
    rollout = replace(rollout, accepted=tuple(unproven), accepted_by=facts.by)
    return decided(rollout, ("accepted", accepted_text(rollout)))
