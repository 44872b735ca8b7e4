"""The one machine behind every strategy: they differ in their list of steps (``strategies``).

``tick(rollout, facts, now)`` moves at most one step. What it keeps to, whatever the facts:

- a trip, proven harm, a dead worker, a step that is stuck or an abort send everybody back, paused
  or frozen or not, in every step, the bake after promotion too; but never to a champion that is not
  ready while the challenger still answers: then it *returns* as soon as the champion is ready;
- a step is left only when nothing is harmful, the gateway follows the table, the challenger is
  ready, and what the step waits for is there; an approval is never skipped;
- a bake ends only once the evidence reaches to its end; what was served in it and is not scored yet
  is waited for, and that is told once more after ``max_seconds``;
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

from dataclasses import replace

from intonaco.rollout import capacity as workers
from intonaco.rollout import split
from intonaco.rollout.facts import COMMANDS, RolloutDecision, RolloutFacts, decided, weights_of
from intonaco.rollout.hurrying import hurry, pause_or_resume
from intonaco.rollout.proof import where
from intonaco.rollout.replacing import (
    asked_for,
    in_place,
)
from intonaco.rollout.stepping import UNJUDGED, advance, counted, end, unjudged
from intonaco.rollout.words import describe
from intonaco.types import (
    Assessment,
    Rollout,
    RolloutStatus,
    StepKind,
    Verdict,
)

__all__ = ["COMMANDS", "RolloutDecision", "RolloutFacts", "held_over", "tick", "weights_of"]


def tick(rollout: Rollout, facts: RolloutFacts, now: float) -> RolloutDecision:
    """Decide once. Pure: the same arguments give the same decision."""
    if rollout.status.final:
        return decided(rollout)
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
    rollout = counted(_timed(rollout, facts, now), facts)
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
        done = (hurry if hurried else pause_or_resume)(rollout, facts, now)
        return replace(done, events=(*told, *done.events), by_command=True)
    if rollout.status is RolloutStatus.PAUSED:
        return decided(rollout)
    moved = None if facts.frozen else advance(rollout, facts, now)
    if moved is not None and (
        moved.rollout.status.final or len(moved.rollout.history) > len(rollout.history)
    ):
        return moved
    return _unproven_in_time(rollout, facts, now) or moved or decided(rollout)


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
            return decided(rollout)
        rollout = replace(rollout, returning=reason, returning_verdict=verdict)
        text = f"goes back as soon as {champion[:10]} is ready: {reason}"
        return decided(rollout, ("returning", text))
    undecided = verdict is Verdict.INCONCLUSIVE
    status = RolloutStatus.INCONCLUSIVE if undecided else RolloutStatus.ROLLED_BACK
    return end(rollout, facts, status, verdict, reason, now)


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
    if rollout.max_seconds <= 0:
        return None
    if rollout.promoted_at is not None:
        return _unseen_bake(rollout, facts, now)
    if now - rollout.started_at < rollout.max_seconds:
        return None
    reason = f"not proven within {rollout.max_seconds:.0f} s: {where(rollout, facts)}"
    return _overdue(rollout, facts, reason, rollout.on_inconclusive, now)


def _unseen_bake(rollout: Rollout, facts: RolloutFacts, now: float) -> RolloutDecision | None:
    """Told once, when the scores that a bake ends with did not come for as long as all the proof
    may take. It goes on: what was proven is champion, and that nobody watches is no harm of it."""
    lacking = facts.blind or (UNJUDGED if unjudged(rollout, facts) else "")
    step = rollout.steps[rollout.step]
    late = now - rollout.step_since - (step.min_seconds or 0.0)
    if step.kind is not StepKind.BAKE or not lacking or late < rollout.max_seconds:
        return None
    if rollout.overdue:
        return None
    text = (
        f"the bake waits for {late:.0f} s beyond its time, lacking {lacking}; it goes on until "
        "they come, or somebody skips or aborts it"
    )
    return decided(replace(rollout, overdue=True), ("overdue", text))


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
    return decided(replace(rollout, overdue=True), ("overdue", text))


def _ask(rollout: Rollout, facts: RolloutFacts, reason: str) -> RolloutDecision | None:
    """Ask once whether what is undecided will do."""
    if rollout.asked:
        return None
    text = f"{reason}; `intonaco rollout approve --reason …` accepts what is undecided, or abort it"
    return decided(replace(rollout, asked=True), ("asking", text))
