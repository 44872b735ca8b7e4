"""What people ask for, taken by the controller's tick.

A command is a row; its outcome is written beside it. ``submit`` is for the command line and the
console, ``take`` for the controller.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from intonaco import accounts, loop, probing
from intonaco.codec import as_json, decode, digest
from intonaco.datasets import proposals
from intonaco.decision.budget import EVALUATE, Reservation, reserve
from intonaco.decision.context import EVALUATION_SECONDS
from intonaco.decision.triggers import Call, State, call
from intonaco.errors import Conflict, IntonacoError, NotFound
from intonaco.executor import Parts
from intonaco.ledger import Command, Ledger, Transaction
from intonaco.rollout.machine import COMMANDS
from intonaco.rollout.quarantine import quarantined
from intonaco.types import (
    Action,
    Candidate,
    Cause,
    Json,
    Phase,
    Plan,
    Release,
    Rollout,
    RolloutStatus,
    Update,
    Verdict,
)

TRIGGERS = "triggers"  # setting: what triggers saw


def submit(
    ledger: Ledger,
    now: float,
    kind: str,
    actor: str,
    arguments: Mapping[str, Json] | None = None,
    *,
    wait_s: float | None = None,
) -> int:
    """Ask for something; returns the command's number for ``ledger.command_outcome``. Raises
    SQLAlchemy's OperationalError if the ledger is locked for ``wait_s``."""
    with ledger.begin(wait_s=wait_s) as tx:
        return tx.command(now, kind, actor, arguments or {})


def take(parts: Parts, fence: int, now: float) -> None:
    """Carry out the commands that wait. One that cannot be done is answered, not lost."""
    for command in parts.ledger.new_commands():
        try:
            with parts.ledger.begin(fence=fence) as tx:
                text = _TAKERS[command.kind.split(".")[0]](parts, tx, command, now)
                tx.take_command(command.command_id, now, {"ok": True, "text": text})
                reason = str(command.arguments.get("reason") or "")
                tx.event(
                    now,
                    f"command.{command.kind}",
                    command.kind,
                    text if not reason or reason in text else f"{text}: {reason}",
                    actor=command.actor,
                    data={"command": command.command_id, "reason": reason},
                )
        except (IntonacoError, KeyError) as error:
            text = str(error) if isinstance(error, IntonacoError) else f"unknown: {command.kind}"
            with parts.ledger.begin(fence=fence) as tx:
                tx.take_command(command.command_id, now, {"ok": False, "text": text})
                tx.event(
                    now, "command.refused", command.kind, f"refused: {text}", actor=command.actor
                )


def approval_of(ledger: Ledger, update_id: str) -> loop.Approval | None:
    """The word that was given on an update."""
    stored = ledger.setting(f"approval:{update_id}")
    return loop.Approval(**stored) if stored else None


def begin_update(
    parts: Parts, tx: Transaction, update: Update, now: float, *, actor: str = "controller"
) -> None:
    """Write a new update with its plan, its reservation and its event. Raises Conflict if the
    budget has no room for it."""
    plan = update.plan
    accounts.set_aside(parts.config, tx, update, now)
    tx.put(plan, id=plan.plan_id, at=now)
    tx.update(update)
    tx.event(
        now,
        "update.started",
        update.update_id,
        f"update {update.update_id} begins: {plan.action} because of {plan.cause}",
        actor=actor,
        data={"plan": plan, "phase": update.phase},
    )


def plan_event(tx: Transaction, plan: Plan, now: float) -> None:
    """Tell of a plan."""
    tx.event(
        now,
        "plan",
        plan.plan_id,
        f"{plan.action}: {plan.reason}",
        data={
            "action": plan.action,
            "estimated_cost": plan.estimated_cost,
            "expected_benefit": plan.expected_benefit,
            "budget_left": plan.budget_left,
            "recipes": list(plan.recipes),
        },
    )


def given(parts: Parts) -> str | None:
    """The model that the configuration says exists already, in words; None if it names none."""
    if parts.config.serving.type == "http":
        name, upstream = next(iter(parts.config.serving.upstreams.items()))
        return f"{name} ({upstream.url})"
    return parts.config.model.path


def take_over(parts: Parts, actor: str, now: float) -> Update:
    """The first update of a service whose model exists already: in the folder ``model.path``, or
    at the first of ``serving.upstreams``."""
    first = next(iter(parts.config.serving.upstreams), None)
    plan = Plan(
        plan_id=digest(["take over", parts.config.service, given(parts)])[:12],
        service_id=parts.config.service,
        at=now,
        action=Action.ASSEMBLE,
        cause=Cause.FIRST_RELEASE,
        reason=f"take the model of {given(parts)} into care",
        assemble={"name": first, "upstream": first} if first else {"name": "given"},
        requested_by=actor,
    )
    return loop.start(plan, None, now)


def back_to(parts: Parts, release_id: str, reason: str, actor: str, now: float) -> Update:
    """An update that puts an earlier release back into service at once."""
    champion = parts.ledger.champion()
    plan = Plan(
        plan_id=digest(["back", release_id, champion, now])[:12],
        service_id=parts.config.service,
        at=now,
        action=Action.ROLL_BACK,
        cause=Cause.REQUESTED,
        reason=reason,
        requested_by=actor,
    )
    candidate = Candidate(
        name="rollback",
        release_id=release_id,
        verdict=Verdict.PASS,
        reasons=("was champion before",),
    )
    return loop.restage(plan, candidate, champion, 1, now)


# ------------------------------------------------------------------------------------ takers


def _update(parts: Parts, tx: Transaction, command: Command, now: float) -> str:
    what, a = command.kind.split(".")[1], command.arguments
    if what == "start":
        return _update_start(parts, tx, command, now)
    update = parts.ledger.get(Update, str(a["update"]))
    if update.phase.final:
        raise Conflict(f"update {update.update_id} has ended: {update.phase}")
    if what in ("approve", "reject"):
        if update.phase is not Phase.APPROVE:
            raise Conflict(
                f"update {update.update_id} is not waiting for approval but in {update.phase}"
            )
        limit = parts.config.approval.timeout_s
        if what == "approve" and command.at - update.phase_since > limit:
            raise Conflict(
                f"too late: update {update.update_id} had to be approved within {limit:.0f} s"
            )
        approval = loop.Approval(
            approved=what == "approve", actor=command.actor, reason=str(a.get("reason", ""))
        )
        tx.set(
            f"approval:{update.update_id}",
            {"approved": approval.approved, "actor": approval.actor, "reason": approval.reason},
        )
        return f"{what}d by {command.actor}".replace("rejectd", "rejected")
    if what == "cancel":
        tx.update(replace(update, cancel_requested=True))
        rollout = parts.ledger.active_rollout()
        if rollout is not None and rollout.update_id == update.update_id:
            _tell(parts, tx, rollout, "abort", command)
        return f"update {update.update_id} will be cancelled"
    raise NotFound(f"unknown: update {what}")


def _curation(parts: Parts, tx: Transaction, command: Command, now: float) -> str:
    """A person's word on what is proposed as training data. Given once."""
    what, a = command.kind.split(".")[1], command.arguments
    if what not in ("approve", "reject"):
        raise NotFound(f"unknown: curation {what}")
    update = parts.ledger.get(Update, str(a["update"]))
    proposal = proposals.find(parts.workspace, update.update_id)
    if proposal is None:
        raise NotFound(f"nothing was proposed for update {update.update_id}")
    before = proposals.word_on(parts.ledger, update.update_id)
    if before is not None:
        raise Conflict(f"{before.actor} has given a word on it already")
    if update.phase is not Phase.DATASET:
        raise Conflict(f"update {update.update_id} does not wait for it but is in {update.phase}")
    dropped = [str(item) for item in a.get("drop") or ()]
    strangers = set(dropped) - {item.item_id for item in proposal.items}
    if strangers:
        raise NotFound(f"not in the proposal: {', '.join(sorted(strangers)[:3])}")
    word = proposals.Word(
        approved=what == "approve",
        actor=command.actor,
        at=now,
        dropped=tuple(sorted(set(dropped))),
        reason=str(a.get("reason", "")),
    )
    tx.set(proposals.setting(update.update_id), as_json(word))
    if word.dropped:
        earlier = proposals.dropped_for_good(parts.ledger)
        tx.set(proposals.DROPPED, sorted(earlier.union(word.dropped)))
    used = len(proposal.items) - len(word.dropped) if word.approved else 0
    return f"{used} of {len(proposal.items)} proposed images may be used for {update.update_id}"


def _update_start(parts: Parts, tx: Transaction, command: Command, now: float) -> str:
    a = command.arguments
    active = parts.ledger.active_updates()
    if active:
        raise Conflict(
            f"update {active[0].update_id} is running",
            hint="wait for it, or `intonaco update cancel` it",
        )
    champion = parts.ledger.champion()
    model = given(parts) if champion is None and not a.get("recipes") else None
    if model is not None and not a.get("action"):
        begin_update(parts, tx, take_over(parts, command.actor, now), now, actor=command.actor)
        return f"taking over the model of {model}"
    known = parts.config.training.recipes
    afresh = [n in known and known[n].init != "champion" for n in a.get("recipes") or ()]
    default = Action.FINE_TUNE
    if champion is None or (afresh and all(afresh)):
        default = Action.FULL_RETRAIN
    action = Action(str(a.get("action") or default))
    _upstream_is_known(parts, action, (a.get("assemble") or {}).get("upstream"))
    decision = parts.config.decision
    usual = {Action.FULL_RETRAIN: "full_retrain", Action.FINE_TUNE: "fine_tune"}.get(action)
    recipes = tuple(dict.fromkeys(a.get("recipes") or ()))  # one candidate each
    if not recipes and usual is not None:
        recipes = getattr(decision, usual)
    if usual is not None and not recipes:
        raise Conflict(
            f"there is no recipe to train: decision.{usual} is empty",
            hint="name recipes there, or ask with --recipe",
        )
    if recipes and usual is None:
        raise Conflict(f"{action} trains nothing, and recipes were asked for")
    for name in recipes:
        if name not in known:
            raise NotFound(f"no recipe {name!r}; training.recipes has: {', '.join(known)}")
    left = accounts.money(parts.ledger, parts.config, now).left
    seconds = {r: known[r].estimated_seconds for r in recipes}
    aside = _by_hand(parts, seconds, left, now)
    cause = Cause(
        str(a.get("cause") or (Cause.FIRST_RELEASE if champion is None else Cause.REQUESTED))
    )
    plan = Plan(
        plan_id=digest(["requested", command.command_id, parts.config.service])[:12],
        service_id=parts.config.service,
        at=now,
        action=action,
        cause=cause,
        reason=str(a.get("reason") or "asked for"),
        recipes=recipes,
        estimated_cost=sum(seconds.values()) / 3600 * decision.budget.hourly_price,
        budget_left=left,
        reserve=aside.money,
        reserve_hours=aside.hours,
        limits=dict(aside.limits or {}),
        currency=decision.budget.currency,
        assemble=a.get("assemble") or {},
        requested_by=command.actor,
    )
    update = loop.start(plan, champion, now)
    begin_update(parts, tx, update, now, actor=command.actor)
    return f"update {update.update_id} begins: {plan.reason}"


def _by_hand(parts: Parts, seconds: Mapping[str, float], left: float, now: float) -> Reservation:
    """What is set aside for an update that a person asks for. Raises Conflict if what it is
    estimated to take is not left."""
    budget = parts.config.decision.budget
    jobs = dict(seconds) | {EVALUATE: EVALUATION_SECONDS * max(len(seconds), 1)}
    cost = sum(jobs.values()) / 3600 * budget.hourly_price
    hours = accounts.hours(parts.ledger, parts.config, now)
    if cost > left or (hours is not None and sum(jobs.values()) / 3600 > hours.left):
        raise Conflict(
            f"it is estimated at {cost:.2f} {budget.currency} and {left:.2f} are left",
            hint="`intonaco budget` shows when more is free; decision.budget sets it",
        )
    return reserve(jobs, {}, budget, left, hours.left if hours else None)


def _upstream_is_known(parts: Parts, action: Action, upstream: Json) -> None:
    """Raises Conflict, NotFound."""
    upstreams = parts.config.serving.upstreams
    if upstreams and action.trains:
        raise Conflict(
            "the model is served elsewhere and cannot be trained here: give --upstream NAME",
        )
    if upstream is not None and upstream not in upstreams:
        raise NotFound(
            f"no upstream {upstream!r}; serving.upstreams has: {', '.join(upstreams) or 'none'}"
        )


def _rollout(parts: Parts, tx: Transaction, command: Command, now: float) -> str:
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
    _tell(parts, tx, rollout, what, command)
    return f"{what} of rollout {rollout.rollout_id}" + (f", arm {arm}" if arm else "")


def _tell(parts: Parts, tx: Transaction, rollout: Rollout, what: str, command: Command) -> None:
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


def _rollback(parts: Parts, tx: Transaction, command: Command, now: float) -> str:
    to = command.arguments.get("to")
    rollout = rollback_by_abort(parts.ledger, to)
    if rollout is not None:
        _tell(parts, tx, rollout, "abort", command)
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


def _freeze(parts: Parts, tx: Transaction, command: Command, now: float) -> str:
    frozen = command.kind == "freeze"
    tx.set("frozen", frozen)
    why = command.arguments.get("reason")
    text = "frozen: no update starts and no rollout advances" if frozen else "unfrozen"
    return text + (f" ({why})" if why else "")


def _probe(parts: Parts, tx: Transaction, command: Command, now: float) -> str:
    """Draw the probes now, by a release that the gateway has an arm for."""
    if not parts.config.monitoring.probes:
        raise Conflict("monitoring.probes: there are none", hint="name some prompts there")
    asked = command.arguments.get("release") or parts.ledger.champion()
    if asked is None:
        raise Conflict("there is no champion to draw probes")
    release = parts.ledger.get(Release, str(asked)).release_id
    subject = f"probe:asked:{command.command_id}"
    tx.want(probing.effect(parts.config.service, release, subject, "asked"), now)
    return f"probes of {release[:10]} are being drawn"


def _trigger(parts: Parts, tx: Transaction, command: Command, now: float) -> str:
    """A call of the webhook. It counts when none has come for a while: ``triggering``."""
    if not parts.config.decision.triggers.webhook:
        raise Conflict("decision.triggers.webhook is off")
    stored = parts.ledger.setting(TRIGGERS)
    state = decode(State, json.dumps(stored)) if stored else State()
    made = Call(
        at=now, actor=command.actor, reason=str(command.arguments.get("reason") or "no reason")
    )
    tx.set(TRIGGERS, as_json(call(state, made)))
    return f"{command.actor} called: it counts once no call has come for a while"


_TAKERS = {
    "trigger": _trigger,
    "probe": _probe,
    "update": _update,
    "curation": _curation,
    "rollout": _rollout,
    "rollback": _rollback,
    "freeze": _freeze,
    "unfreeze": _freeze,
}
