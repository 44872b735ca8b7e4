"""Updates and rollouts, as people are shown them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from intonaco.errors import NotFound
from intonaco.jobs import JobFolder, job_folder
from intonaco.ledger import EffectStatus, Ledger
from intonaco.readmodel.curation import curation_awaited
from intonaco.readmodel.plain import Facts, plain
from intonaco.rollout.split import lacking
from intonaco.rollout.words import step_name
from intonaco.types import Event, Phase, Rollout, RolloutStatus, StepKind, Update
from intonaco.workspace import Workspace

PHASES = (
    Phase.DATASET,
    Phase.TRAIN,
    Phase.EVALUATE,
    Phase.GATE,
    Phase.REGISTER,
    Phase.STAGE,
    Phase.APPROVE,
    Phase.ROLLOUT,
    Phase.BAKE,
)
JOB_KINDS = ("train", "evaluate")


def updates(ledger: Ledger) -> list[Facts]:
    """All updates, newest first, without their jobs."""
    moves = _moves(ledger)
    facts: list[Facts] = plain(
        [brief(u, moves.get(u.update_id, ())) for u in reversed(ledger.all(Update))]
    )
    return facts


def update_facts(ledger: Ledger, workspace: Workspace, update: Update, now: float) -> Facts:
    """One update: its phases, its candidates, its jobs and how far they are."""
    effects = ledger.effects(update.update_id).values()
    return brief(update, _moves(ledger).get(update.update_id, ())) | {
        "in_phase_seconds": max(0.0, now - update.phase_since),
        "jobs": [_job(workspace, e) for e in effects if e.effect.kind in JOB_KINDS],
        "waiting_for": _waiting_for(update, effects) or curation_awaited(ledger, workspace, update),
    }


def evaluation_page(ledger: Ledger, workspace: Workspace, update_id: str) -> Path:
    """The report of the last evaluation of an update. Raises NotFound."""
    ledger.get(Update, update_id)
    done = [
        status
        for status in ledger.effects(update_id).values()
        if status.effect.kind == "evaluate" and status.status == "done"
    ]
    if done:
        file = workspace.resolve(str(done[-1].result["folder"])) / "report.html"
        if file.is_file():
            return file
    raise NotFound(f"no report of an evaluation of update {update_id!r}")


def brief(update: Update, moves: Sequence[Event] = ()) -> Facts:
    """An update with its plan, phases and candidates. ``moves``: its ``update.phase`` events."""
    plan = update.plan
    return {
        "id": update.update_id,
        "phase": update.phase,
        "phase_since": update.phase_since,
        "created_at": update.created_at,
        "attempt": update.attempt,
        "reason": update.reason,
        "champion": update.champion,
        "chosen": update.chosen,
        "rollout": update.rollout_id,
        "plan": {
            "id": plan.plan_id,
            "action": plan.action,
            "cause": plan.cause,
            "reason": plan.reason,
            "recipes": plan.recipes,
            "estimated_cost": plan.estimated_cost,
            "expected_benefit": plan.expected_benefit,
            "budget_left": plan.budget_left,
            "currency": plan.currency,
            "requested_by": plan.requested_by,
        },
        "phases": phase_strip(update, moves),
        "candidates": update.candidates,
    }


def phase_strip(update: Update, moves: Sequence[Event] = ()) -> list[Facts]:
    """The phases of an update in order: {"phase", "state", "seconds"}, state one of "skipped",
    "done", "current", "stopped", "to_come"; seconds that it took, None if not known.

    An update that ended early stopped where its last event says, or without events at the last
    phase that its own facts prove it reached."""
    seconds = {m.data.get("from"): m.data.get("seconds") for m in moves}
    first = _first_phase(update)
    phases = list(PHASES)
    if update.phase is Phase.REVIEW or Phase.REVIEW in seconds:
        phases.insert(phases.index(Phase.GATE), Phase.REVIEW)
    ended = update.phase.final
    here = len(phases)
    if update.phase is not Phase.PROMOTED:
        here = phases.index(_stopped_at(update, moves, phases) if ended else update.phase)
    strip = []
    for index, phase in enumerate(phases):
        if index < phases.index(first):
            state = "skipped"
        elif index < here:
            state = "done"
        elif index == here:
            state = "stopped" if ended else "current"
        else:
            state = "to_come"
        strip.append({"phase": phase, "state": state, "seconds": seconds.get(phase)})
    return strip


def _moves(ledger: Ledger) -> dict[str, list[Event]]:
    moves: dict[str, list[Event]] = {}
    for event in ledger.events(kind="update.phase", limit=2000, newest=True):
        moves.setdefault(event.subject, []).append(event)
    return moves


def _stopped_at(update: Update, moves: Sequence[Event], phases: Sequence[Phase]) -> Phase:
    ends = [m.data.get("from") for m in moves if m.data.get("to") == update.phase]
    return Phase(str(ends[-1])) if ends and ends[-1] in phases else _reached(update)


def _first_phase(update: Update) -> Phase:
    if update.attempt > 1 or not update.plan.action.makes_update:
        return Phase.STAGE  # a retried rollout, or a way back: proven before
    return Phase.DATASET if update.plan.action.trains else Phase.EVALUATE


def _reached(update: Update) -> Phase:
    if update.rollout_id is not None:
        return Phase.ROLLOUT
    if update.chosen is not None:
        return Phase.APPROVE if update.phase is Phase.REJECTED else Phase.STAGE
    first = _first_phase(update)
    if any(c.metrics or c.registry_version for c in update.candidates):
        reached = Phase.GATE
    elif any(c.release_id for c in update.candidates):
        reached = Phase.EVALUATE
    elif any(c.dataset_version for c in update.candidates):
        reached = Phase.TRAIN
    else:
        reached = first
    return max(reached, first, key=PHASES.index)


def _waiting_for(update: Update, effects: Iterable[EffectStatus]) -> str | None:
    if update.phase is Phase.APPROVE:
        return "a person's approval"
    if update.phase is Phase.REVIEW:
        return "people's review"
    failing = [e for e in effects if e.status == "wanted" and e.attempts]
    if failing:
        last = max(failing, key=lambda e: e.updated_at)
        return f"{last.effect.kind}, tried {last.attempts} times: {last.error}"
    return None


def _job(workspace: Workspace, status: EffectStatus) -> Facts:
    progress = JobFolder(job_folder(workspace, status.effect.key)).read("progress")
    name = str(status.effect.payload.get("name", ""))
    return {
        "key": status.effect.key,
        "kind": status.effect.kind,
        "name": name,
        "label": status.effect.kind if name in ("", "all") else f"{status.effect.kind} {name}",
        "status": {"wanted": "running" if progress else "waiting"}.get(
            status.status, status.status
        ),
        "phase": progress.get("phase", ""),
        "step": progress.get("step", 0),
        "total": progress.get("total", 0),
        "text": progress.get("text", ""),
        "error": status.error,
    }


def rollout_facts(rollout: Rollout, now: float) -> Facts:
    """A rollout: every step with its state, the present one's progress, the assessments."""
    steps = []
    for index, step in enumerate(rollout.steps):
        entered = rollout.history[index] if index < len(rollout.history) else None
        whole = rollout.status in (RolloutStatus.PROMOTED, RolloutStatus.OBSERVED)
        if whole or index < rollout.step:
            state = "done"
        elif index == rollout.step:
            state = "stopped" if rollout.status.final else "current"
        else:
            state = "to_come"
        end = (entered.left_at if entered else None) or rollout.ended_at or now
        steps.append(
            {
                "kind": step.kind,
                "text": step_name(step),
                "weight": step.weight,
                "state": state,
                "min_seconds": step.min_seconds,
                "min_units": step.min_units,
                "seconds": max(0.0, end - entered.entered_at) if entered else None,
                "units": entered.units if entered else None,
                "decision": entered.decision if entered else "",
            }
        )
    return {
        "id": rollout.rollout_id,
        "update": rollout.update_id,
        "champion": rollout.champion,
        "challenger": rollout.challenger,
        "status": rollout.status,
        "reason": rollout.reason,
        "notice": rollout.notice,
        "step": rollout.step,
        "steps": steps,
        "history": rollout.history,
        "assessments": rollout.assessments,
        "alpha": rollout.alpha,
        "attempt": rollout.attempt,
        "started_at": rollout.started_at,
        "ended_at": rollout.ended_at,
        "promoted_at": rollout.promoted_at,
        "waiting_for": waiting_for(rollout, now),
        "split": split_facts(rollout),
        "baseline": rollout.baseline,
    }


def split_facts(rollout: Rollout) -> Facts | None:
    """The champion's and every challenger's share of a split, and how they stand; None where the
    rollout is none."""
    split = rollout.split
    if split is None:
        return None
    begun = [s for s in rollout.history if s.kind is StepKind.SPLIT]
    over = bool(begun) and begun[-1].left_at is not None
    arms: list[Facts] = [
        {
            "name": "champion",
            "release": rollout.champion,
            "share": split.champion_share,
            "state": "champion",
            "units": None,
            "reason": "",
            "lacks": [],
            "assessments": (),
        }
    ]
    for arm in split.arms:
        if arm.removed_at is not None:
            state = "taken_out"
        elif split.winner is not None:
            state = "won" if split.winner == arm.name else "lost"
        else:
            state = "ended" if over else ("compared" if begun else "to_come")
        judged = tuple(a.metric for a in arm.assessments)
        arms.append(
            {
                "name": arm.name,
                "release": arm.release,
                "share": arm.share,
                "state": state,
                "units": arm.units,
                "reason": arm.reason,
                "lacks": lacking(arm, split.metric, judged) if state == "compared" else [],
                "assessments": arm.assessments,
            }
        )
    return {
        "metric": split.metric,
        "then": split.then,
        "winner": split.winner,
        "text": split.text,
        "arms": arms,
        "pairs": split.pairs,
    }


def waiting_for(rollout: Rollout, now: float) -> str | None:
    """What the present step needs before it is left, in words; None once it has ended."""
    if rollout.status.final:
        return None
    if rollout.returning:
        return f"the champion to be ready, to go back: {rollout.returning}"
    if rollout.status is RolloutStatus.PAUSED:
        return "somebody to resume it"
    if not rollout.history:
        return "the challenger to be ready"
    current, step = rollout.history[-1], rollout.steps[rollout.step]
    if current.decision.startswith("waiting for "):
        return current.decision.removeprefix("waiting for ")
    if step.kind is StepKind.APPROVE:
        left = step.deadline_s - (now - rollout.step_since) if step.deadline_s else None
        within = "" if left is None else f" within {max(left, 0.0):.0f} s"
        return f"a person's approval{within}"
    if step.min_seconds is None:
        return "somebody to resume it"
    waits = []
    left = step.min_seconds - (now - rollout.step_since)
    if left > 0:
        waits.append(f"{left:.0f} s more")
    if step.min_units > current.units:
        kind = {StepKind.SHADOW: "pairs", StepKind.SPLIT: "users of every challenger"}.get(
            step.kind, "users of the challenger"
        )
        waits.append(f"{step.min_units} {kind} to be judged ({current.units} so far)")
    return " and ".join(waits) or "the next look"


def last_rollout_facts(ledger: Ledger, now: float) -> Facts | None:
    ended = ledger.all(Rollout, status="final")
    return rollout_facts(ended[-1], now) if ended else None


def active_update(ledger: Ledger) -> Update | None:
    active = ledger.active_updates()
    return active[-1] if active else None
