"""What people ask of the running rollout, and for the way back: the part of ``commands`` that moves
users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from intonaco import accounts, loop
from intonaco.beginning import back_to, begin_update
from intonaco.codec import digest
from intonaco.errors import Conflict, NotFound
from intonaco.executor import Parts
from intonaco.ledger import Command, Ledger, Transaction
from intonaco.rollout.machine import COMMANDS
from intonaco.rollout.quarantine import quarantined
from intonaco.types import (
    Candidate,
    Json,
    Phase,
    Release,
    Rollout,
    RolloutStatus,
    Update,
)


def take_rollout(parts: Parts, tx: Transaction, command: Command, now: float) -> str:
    """Carry out a word on the running rollout, or try an ended one again. Raises Conflict,
    NotFound."""
    what, meant = command.kind.split(".")[1], command.arguments.get("rollout")
    if what == "retry":
        return _retry(parts, tx, command, now)
    rollout = parts.ledger.active_rollout()
    if rollout is None:
        raise Conflict("no rollout is running")
    if meant not in (None, rollout.rollout_id):
        raise Conflict(f"rollout {meant} has ended; {rollout.rollout_id} is running")
    if what not in COMMANDS:
        raise NotFound(f"unknown: rollout {what}")
    arm = command.arguments.get("arm")
    if arm and (rollout.split is None or what not in ("promote", "approve", "skip")):
        raise Conflict(f"{what} of rollout {rollout.rollout_id} takes no arm")
    tell(parts, tx, rollout, what, command)
    return f"{what} of rollout {rollout.rollout_id}" + (f", arm {arm}" if arm else "")


def tell(parts: Parts, tx: Transaction, rollout: Rollout, what: str, command: Command) -> None:
    """The machine takes one at each look, in their order. An abort comes before all that wait, and
    they are answered; nothing undoes it."""
    waiting = asked(parts.ledger, rollout.rollout_id)
    for before in waiting:
        if before["command"] == "abort":
            raise Conflict(f"rollout {rollout.rollout_id} is being aborted by {before['actor']}")
        if before["command"] == what:
            raise Conflict(f"{before['actor']} has just asked for {what}")
    if what == "abort":
        answer(tx, rollout, waiting, f"{command.actor} aborts the rollout", command.at)
        waiting = []
    reason = str(command.arguments.get("reason") or "")
    said = {"command": what, "actor": command.actor, "reason": reason, "at": command.at}
    if command.arguments.get("arm"):
        said["arm"] = str(command.arguments["arm"])
    tx.set(f"rollout:{rollout.rollout_id}", [*waiting, said])


def asked(ledger: Ledger, rollout_id: str) -> list[dict[str, Json]]:
    """What waits for a rollout's machine, in order: {"command", "actor", "reason", "at"}."""
    stored = ledger.setting(f"rollout:{rollout_id}")
    if not stored:
        return []
    return [stored] if isinstance(stored, dict) else list(stored)  # older versions kept one


def answer(
    tx: Transaction, rollout: Rollout, waiting: Sequence[Mapping[str, Json]], why: str, now: float
) -> None:
    """Tell of commands that nobody carries out any more."""
    for said in waiting:
        text = f"{said['command']} refused: {why}"
        tx.event(now, "rollout.refused", rollout.rollout_id, text, actor=str(said["actor"]))


def to_retry(ledger: Ledger, meant: str | None = None) -> tuple[Rollout, Update, Candidate]:
    """What would be tried again. Raises Conflict."""
    ended = [r for r in ledger.all(Rollout) if r.status is not RolloutStatus.PROMOTED]
    if not ended or ledger.active_updates():
        raise Conflict("there is no ended rollout to try again, or an update is running")
    last = ended[-1]
    if meant not in (None, last.rollout_id):
        raise Conflict(f"{meant} is not the last one that ended; that is {last.rollout_id}")
    if last.challenger == ledger.champion():
        raise Conflict(f"{last.challenger[:10]} is the champion already")
    before = ledger.get(Update, last.update_id)
    candidate = before.chosen_candidate
    if candidate is None:
        raise Conflict(f"update {before.update_id} chose no candidate")
    return last, before, candidate


def _retry(parts: Parts, tx: Transaction, command: Command, now: float) -> str:
    """A rolled-back challenger once more, at half the error budget."""
    last, before, candidate = to_retry(parts.ledger, command.arguments.get("rollout"))
    plan = replace(
        before.plan,
        plan_id=digest(["retry", last.rollout_id])[:12],
        at=now,
        reason=f"tried again: {command.arguments.get('reason') or before.plan.reason}",
        estimated_cost=0.0,
        requested_by=command.actor,
    )
    attempt = last.attempt + 1
    update = loop.restage(plan, replace(candidate, cost=0.0), parts.ledger.champion(), attempt, now)
    begin_update(parts, tx, update, now, actor=command.actor)
    return f"rollout of {last.challenger[:10]} once more, attempt {attempt}"


def take_rollback(parts: Parts, tx: Transaction, command: Command, now: float) -> str:
    """Begin the way back: end the running rollout, or begin an update. Raises Conflict,
    NotFound."""
    to = command.arguments.get("to")
    rollout = rollback_by_abort(parts.ledger, to)
    if rollout is not None:
        tell(parts, tx, rollout, "abort", command)
        return f"rollout {rollout.rollout_id} is being rolled back"
    target = rollback_by_update(parts.ledger, to)
    why = f": {command.arguments['reason']}" if command.arguments.get("reason") else ""
    reason = f"rollback asked for by {command.actor}{why}"
    for running in parts.ledger.active_updates():
        _keep(parts, tx, running, target, now)
    update = back_to(parts, target, reason, command.actor, now)
    begin_update(parts, tx, update, now, actor=command.actor)
    return f"going back to {target[:10]}{_until_it_answers(parts, target)}"


def rollback_by_abort(ledger: Ledger, to: str | None) -> Rollout | None:
    """The running rollout whose end is the way back, if it is."""
    rollout = ledger.active_rollout()
    alone = rollout is not None and rollout.promoted_at is not None and rollout.champion is None
    return rollout if rollout is not None and not alone and to in (None, rollout.champion) else None


def rollback_by_update(ledger: Ledger, to: str | None) -> str:
    """The release that an update of its own would go back to. Raises NotFound, Conflict."""
    rollout = ledger.active_rollout()
    target = rollback_target(ledger, to)
    if rollout is not None and rollout.promoted_at is not None:
        hint = "`intonaco rollout skip` ends its bake, then roll back"
        raise Conflict(f"{rollout.challenger[:10]} is baking", hint=hint)
    for running in ledger.active_updates():
        ended = running.rollout_id and ledger.get(Rollout, running.rollout_id).status
        if ended is not RolloutStatus.PROMOTED or running.champion != target:
            raise Conflict(
                "an update is running", hint="`intonaco update cancel` it first, then roll back"
            )
    return target


def _keep(parts: Parts, tx: Transaction, update: Update, target: str, now: float) -> None:
    """End an update that has only the old champion to retire, which is wanted again."""
    reason = "baked; the old release is kept, it is gone back to"
    ended = replace(update, phase=Phase.PROMOTED, phase_since=now, reason=reason)
    tx.update(ended)
    effects = parts.ledger.effects(update.update_id)
    for key, status in effects.items():
        if status.effect.kind == "retire" and status.status == "wanted":
            tx.finish_effect(key, now, error=f"{target[:10]} is gone back to")
    tx.event(
        now,
        "update.phase",
        update.update_id,
        f"{update.phase} → {ended.phase}: {reason}",
        data={"from": update.phase, "to": ended.phase, "seconds": now - update.phase_since},
    )
    accounts.settle_up(parts.config, tx, ended, effects, now)


def _until_it_answers(parts: Parts, target: str) -> str:
    """What users meet until a release that is gone back to is up, in words."""
    if parts.serving.status(target).ready:
        return ": it is warm"
    took = [
        float(e.data["seconds"])
        for u in parts.ledger.all(Update)
        if u.chosen == target
        for e in parts.ledger.events(kind="update.phase")
        if e.subject == u.update_id and e.data.get("from") == Phase.STAGE
    ]
    champion = str(parts.ledger.champion())[:10]
    text = f": it is not loaded; it is started, and users stay on {champion} until it answers"
    return text + (f", which took {took[-1]:.0f} s the last time" if took else "")


def rollback_target(ledger: Ledger, to: str | None) -> str:
    """The release to go back to. Raises NotFound, Conflict."""
    champion = ledger.champion()
    if to is None:
        bad = quarantined(ledger.all(Rollout))
        served = [t.release_id for t in ledger.tenures() if t.release_id not in (champion, *bad)]
        if not served:
            hint = f"{', '.join(r[:10] for r in bad)}: rolled back before, go there with --to"
            text = "there is no earlier champion to go back to"
            raise Conflict(text, hint=hint if set(bad) - {champion} else "")
        target = served[-1]
    else:
        target = ledger.get(Release, to).release_id
        if target not in {tenure.release_id for tenure in ledger.tenures()}:
            raise Conflict(
                f"{target[:10]} was never champion",
                hint="only a release that has served can be gone back to",
            )
    if target == champion:
        raise Conflict(f"{target[:10]} is the champion already")
    return target
