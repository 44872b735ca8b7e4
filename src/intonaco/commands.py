"""What people ask for, taken by the controller's tick.

A command is a row; its outcome is written beside it. ``submit`` is for the command line and the
console, ``take`` for the controller. What moves users is in ``rollout_commands``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

from intonaco import accounts, loop, probing
from intonaco.beginning import begin_update, given, take_over
from intonaco.codec import as_json, decode, digest
from intonaco.datasets import proposals
from intonaco.decision.budget import EVALUATE, Reservation, reserve
from intonaco.decision.context import EVALUATION_SECONDS
from intonaco.decision.triggers import Call, State, call
from intonaco.errors import Conflict, IntonacoError, NotFound
from intonaco.executor import Parts
from intonaco.ledger import Command, Ledger, Transaction
from intonaco.rollout_commands import take_rollback, take_rollout, tell
from intonaco.types import (
    Action,
    Cause,
    Json,
    Phase,
    Plan,
    Release,
    Update,
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
            tell(parts, tx, rollout, "abort", command)
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
    "rollout": take_rollout,
    "rollback": take_rollback,
    "freeze": _freeze,
    "unfreeze": _freeze,
}
