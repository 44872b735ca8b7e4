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
  inconclusive, or is told and waited for where ``on_inconclusive`` is "hold"; where it is "ask" a
  person may accept what is undecided, by name and with a reason, but never what is harmful or was
  not measured;
- in a rolling rollout users follow workers: a wave is entered once the challenger has the workers
  for it, and on the way back the champion gets workers first, then users;
- in place nothing can be proven, as the champion is gone before the challenger is there: whoever
  configured that has forced it, and its verdict stays inconclusive;
- of a split each arm is judged by itself and taken out by itself (``split``); once one has won, or
  a person has named one that is proven no worse, the rollout is that arm's;
- a final status never changes, and but for promotion it means weight 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from intonaco.rollout import capacity as workers
from intonaco.rollout import split
from intonaco.rollout.outcomes import BOUNDED
from intonaco.rollout.replacing import (
    asked_for,
    in_place,
    missing_workers,
    next_wave,
    wave_begun,
)
from intonaco.rollout.words import asks_for, brief, describe, step_name
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
    ``challenger_replicas``, ``champion_replicas``: workers that answer, read in a rolling rollout.
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
    guardrails: tuple[str, ...] = BOUNDED
    command: str | None = None
    actor: str = "somebody"
    why: str = ""  # that the actor gave
    asked_at: float | None = None  # when the command was given, None: now
    frozen: bool = False
    blind: str = ""  # why nobody sees just now what the challenger does: nothing advances
    dead: bool = False
    challenger_replicas: int = 0
    champion_replicas: int = 0
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
    (kind, sentence), kinds being begun, step, asked, scaling, waiting, overdue, asking, accepted,
    paused, resumed, refused, removed, crowned, returning, promoted, observed, rolled_back,
    inconclusive. ``by_command``: it is what the command asked for; a command always has an event,
    "refused" if it was not done."""

    rollout: Rollout
    weights: Mapping[str, float]
    events: tuple[tuple[str, str], ...] = field(default=())
    by_command: bool = False


def weights_of(rollout: Rollout) -> Mapping[str, float]:
    """Shares that the rollout's state asks for. Steps that move no traffic keep that of the last
    one that did."""
    nothing = {"challenger": 0.0, "shadow": 0.0}
    if rollout.status is RolloutStatus.PROMOTED:
        return nothing | {"challenger": 1.0}
    if rollout.status.final or not rollout.history:
        return nothing
    taken = rollout.steps[: rollout.step + 1]
    cap = rollout.capacity
    most = cap.challenger / cap.total if cap is not None and rollout.returning else 1.0
    if rollout.promoted_at is not None:
        held = taken[-1].weight if taken[-1].kind is StepKind.BAKE else 0.0
        return nothing | {"challenger": min(1.0 - held, most)}
    for step in reversed(taken):
        if step.kind in (StepKind.CANARY, StepKind.REPLACE):
            return nothing | {"challenger": min(step.weight, most)}
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
    rollout = _counted(_timed(rollout, facts, now), facts)
    ended = _must_end(rollout, facts, now)
    if ended is not None:
        return _answered(ended, facts)
    late = _unapproved(rollout, facts, now)
    if late is not None and (late.rollout.status.final or facts.command is None):
        return _answered(late, facts)
    told = late.events if late is not None else ()
    rollout = late.rollout if late is not None else rollout
    if facts.command is not None:
        hurried = facts.command not in ("pause", "resume")
        done = (_hurry if hurried else _pause_or_resume)(rollout, facts, now)
        return replace(done, events=(*told, *done.events), by_command=True)
    if rollout.status is RolloutStatus.PAUSED:
        return _decided(rollout)
    moved = None if facts.frozen else _advance(rollout, facts, now)
    if moved is not None and (
        moved.rollout.status.final or len(moved.rollout.history) > len(rollout.history)
    ):
        return moved
    return _unproven_in_time(rollout, facts, now) or moved or _decided(rollout)


def held_over(rollout: Rollout, seconds: float) -> Rollout:
    """The rollout as if these seconds had not been: the clock was set (back, if negative), or
    nobody looked. What it waits for takes that much longer; when it began stays as it was told."""
    stuck, paused, promoted = rollout.stuck_since, rollout.paused_at, rollout.promoted_at
    history = rollout.history
    if history and history[-1].left_at is None:
        current = replace(history[-1], entered_at=history[-1].entered_at + seconds)
        history = (*history[:-1], current)
    limited = rollout.max_seconds > 0
    return replace(
        rollout,
        step_since=rollout.step_since + seconds,
        stuck_since=None if stuck is None else stuck + seconds,
        paused_at=None if paused is None else paused + seconds,
        promoted_at=None if promoted is None else promoted + seconds,
        max_seconds=max(rollout.max_seconds + seconds, 1.0) if limited else 0.0,
        history=history,
    )


def _answered(decision: RolloutDecision, facts: RolloutFacts) -> RolloutDecision:
    """What ends by itself, with the answer to a command that came too late for it."""
    after = decision.rollout
    reason = after.reason if after.status.final else after.returning
    if facts.command == "abort" and decision.events and reason.startswith("aborted by"):
        return replace(decision, by_command=True)
    if facts.command is None:
        return decision
    text = f"{facts.command} refused: {'it is over' if after.status.final else 'it goes back'}"
    return replace(decision, events=(*decision.events, ("refused", f"{text}: {reason}")))


# ---------------------------------------------------------------------------------------- endings


def _timed(rollout: Rollout, facts: RolloutFacts, now: float) -> Rollout:
    """With the time since which it has been stuck. Once promoted, a gateway that is silent is no
    reason to go back."""
    follows = facts.observed_epoch_applied or not rollout.history or rollout.promoted_at is not None
    if (facts.challenger_ready and follows) or not asked_for(rollout):
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
    if rollout.returning:
        reason, verdict = rollout.returning, rollout.returning_verdict or Verdict.FAIL
    elif facts.trips:
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
    else:
        return None
    return _go_back(rollout, facts, verdict, reason, now)


def _go_back(
    rollout: Rollout, facts: RolloutFacts, verdict: Verdict, reason: str, now: float
) -> RolloutDecision:
    """To the champion, or as soon as it can take everybody. In a rolling rollout users go back as
    its workers come back, unless the challenger answers nobody: then all at once."""
    champion, cap = rollout.champion, rollout.capacity
    gone = facts.dead and not in_place(rollout)
    gone |= cap is not None and bool(facts.trips)
    if champion is not None and not facts.champion_ready and not gone:
        begun = bool(rollout.returning)
        if cap is not None:
            left = workers.handed_back(cap, facts.champion_replicas)
            rollout = replace(rollout, capacity=replace(cap, challenger=left))
        if begun:
            return _decided(rollout)
        rollout = replace(rollout, returning=reason, returning_verdict=verdict)
        text = f"goes back as soon as {champion[:10]} is ready: {reason}"
        return _decided(rollout, ("returning", text))
    undecided = verdict is Verdict.INCONCLUSIVE
    status = RolloutStatus.INCONCLUSIVE if undecided else RolloutStatus.ROLLED_BACK
    return _end(rollout, facts, status, verdict, reason, now)


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
        return _go_back(rollout, facts, Verdict.INCONCLUSIVE, reason, now)
    if then == "ask":
        return _ask(rollout, facts, reason)
    if rollout.overdue:
        return None
    text = f"{reason}; it goes on until somebody promotes or aborts it"
    return _decided(replace(rollout, overdue=True), ("overdue", text))


def _ask(rollout: Rollout, facts: RolloutFacts, reason: str) -> RolloutDecision | None:
    """Ask once whether what is undecided will do."""
    if rollout.asked:
        return None
    text = f"{reason}; `intonaco rollout approve --reason …` accepts what is undecided, or abort it"
    return _decided(replace(rollout, asked=True), ("asking", text))


def _accept(rollout: Rollout, facts: RolloutFacts) -> RolloutDecision:
    """A person's word on what stayed undecided, kept by name."""
    found = {a.metric: a.assessment for a in facts.assessments}
    unproven = [m for m in facts.guardrails if found.get(m) not in _PROVEN]
    unmeasured = [m for m in unproven if found.get(m) is not Assessment.UNDECIDED]
    why = None
    if unmeasured:
        why = f"{', '.join(unmeasured)} was not measured, and no data cannot be accepted"
    elif not unproven:
        why = "nothing is undecided"
    elif not facts.why:
        why = "say why with --reason: it is kept with the rollout"
    if why is not None:
        return _decided(rollout, ("refused", f"approve refused: {why}"))
    rollout = replace(rollout, accepted=tuple(unproven), accepted_by=facts.by)
    return _decided(rollout, ("accepted", _accepted_text(rollout)))


def _accepted_text(rollout: Rollout) -> str:
    what = ", ".join(f"{metric} undecided" for metric in rollout.accepted)
    return f"accepted unproven by {rollout.accepted_by}: {what}"


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
        ended_at=max(now, rollout.started_at),
        paused_at=None,
        stuck_since=None,
    )
    return _decided(rollout, (status.value, reason))


# ---------------------------------------------------------------------------------------- steps


def _advance(rollout: Rollout, facts: RolloutFacts, now: float) -> RolloutDecision | None:
    """Begin, take the next step or end, if everything asked for is there. None: not yet."""
    if not rollout.history:
        missing = _missing_to_enter(rollout, 0, facts) or missing_workers(
            rollout, 0, facts.challenger_replicas
        )
        return None if missing else _enter(rollout, facts, 0, now)
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
    if not missing and next_wave(rollout, to) and not wave_begun(rollout):
        return _begin_next_wave(rollout, to, note)
    missing = missing or missing_workers(rollout, to, facts.challenger_replicas)
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
    compared = not in_place(rollout) and not rollout.accepted
    verdict = Verdict.PASS if compared else Verdict.INCONCLUSIVE
    return _end(rollout, facts, RolloutStatus.PROMOTED, verdict, reason, now)


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
    if in_place(rollout):
        return "in place: forced, compared with nothing"
    won = f"{rollout.split.text}; " if rollout.split is not None else ""
    judged = [a for a in facts.assessments if a.metric in facts.guardrails]
    proven = ", ".join(brief(a) for a in judged if a.metric not in rollout.accepted)
    if rollout.accepted:
        return f"{won}{_accepted_text(rollout)}; proven: {proven or 'nothing'}"
    return f"{won}every guardrail is proven: {proven}"


def _begin_next_wave(rollout: Rollout, to: int, note: str = "") -> RolloutDecision:
    assert rollout.capacity is not None
    wave, total = rollout.steps[to].replicas, rollout.capacity.total
    rollout = replace(rollout, capacity=replace(rollout.capacity, challenger=wave))
    text = f"{wave} of {total} workers are to be the challenger's" + (f" ({note})" if note else "")
    return _decided(rollout, ("scaling", text))


def _missing_to_enter(rollout: Rollout, to: int, facts: RolloutFacts) -> list[str]:
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
    everybody = step is None or step.kind is StepKind.PROMOTE
    everybody |= step is not None and step.kind is StepKind.CANARY and step.weight >= 1.0
    if everybody or (left is not None and left.kind is StepKind.ANALYSIS):
        missing += _unproven(rollout, facts)
    return missing


def _unproven(rollout: Rollout, facts: RolloutFacts) -> list[str]:
    found = {a.metric: a.assessment for a in facts.assessments}
    missing = [
        f"{name} ({assessment.replace('_', ' ')})"
        for name in facts.guardrails
        if (assessment := found.get(name, Assessment.NO_DATA)) not in _PROVEN
        and not (name in rollout.accepted and assessment is Assessment.UNDECIDED)
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
    if step.kind is StepKind.APPROVE or (step.kind is StepKind.PAUSE and step.min_seconds is None):
        events.append(("asked", asks_for(step)))
    if step.kind is StepKind.PROMOTE:
        reason = _proof(rollout, facts)
        rollout = replace(rollout, promoted_at=now, reason=reason)
        events.append(("crowned", reason))
    return _decided(rollout, *events)


def _counted(rollout: Rollout, facts: RolloutFacts) -> Rollout:
    """With the units so far of a step that waits for them, for people to see."""
    if not rollout.history or not rollout.steps[rollout.step].min_units:
        return rollout
    current = replace(rollout.history[-1], units=_units(rollout, facts))
    return replace(rollout, history=(*rollout.history[:-1], current))


def _units(rollout: Rollout, facts: RolloutFacts) -> int:
    shadow = rollout.history[-1].kind is StepKind.SHADOW
    return facts.shadow_pairs if shadow else facts.units_at_step


def _leave(rollout: Rollout, facts: RolloutFacts, now: float, decision: str) -> Rollout:
    if not rollout.history:
        return rollout
    left = replace(
        rollout.history[-1], left_at=now, units=_units(rollout, facts), decision=decision
    )
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
        return _decided(rollout, ("refused", f"{command} refused: {why}"))
    done = {"approve": "approved", "promote": "promoted", "skip": "skipped", "resume": "resumed"}
    note = f"{done[command]} by {facts.by}"
    if wave:
        return _begin_next_wave(rollout, to, note)
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
