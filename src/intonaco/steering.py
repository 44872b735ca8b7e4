"""What a person may ask for now, what would come of it, and why it would be refused.

Read from the ledger alone, for whoever asks from another process than the controller's; what is
asked for is decided once more when it is carried out (``commands``, ``rollout.machine``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from intonaco import commands, rollout_commands
from intonaco.errors import Conflict, IntonacoError
from intonaco.ledger import Command, Ledger
from intonaco.rollout import machine
from intonaco.rollout.facts import equal_share
from intonaco.rollout.words import step_name
from intonaco.types import Json, Phase, Rollout, RolloutStatus, StepKind, Update

ROLLOUT_COMMANDS = (*machine.COMMANDS, "retry")
UPDATE_COMMANDS = ("approve", "reject")
SERVICE_COMMANDS = ("rollback", "freeze", "unfreeze")
KEYS = 500  # of a person's commands, among which a key is known again
REASONED = ("abort", "promote", "retry", "rollback")  # nobody does these without saying why


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """``consequence``: what happens then, in words. ``refused``: why it would not be done now,
    empty if it would."""

    command: str
    consequence: str
    refused: str = ""
    hint: str = ""

    @property
    def wants_reason(self) -> bool:
        return self.command in REASONED


def of_rollout(ledger: Ledger, rollout: Rollout, now: float) -> list[Act]:
    """What can be asked of a rollout, in the order of a person's thoughts; nothing that would make
    no sense at all."""
    if rollout.status.final:
        act = rollout_act(ledger, rollout, "retry", now)
        return [] if act.refused else [act]
    paused = rollout.status is RolloutStatus.PAUSED
    step = rollout.steps[rollout.step] if rollout.history else None
    waits = step is not None and step.kind is StepKind.APPROVE and not paused
    held = step is not None and step.kind is StepKind.PAUSE
    shown = [
        *(("approve",) if waits else ()),
        *(("resume",) if paused or held else ()),
        *(() if paused else ("pause",)),
        *(() if waits else ("skip",)),
        *(() if rollout.promoted_at is not None else ("promote",)),
        "abort",
    ]
    return [rollout_act(ledger, rollout, command, now) for command in shown]


def rollout_act(ledger: Ledger, rollout: Rollout, command: str, now: float) -> Act:
    """One command of ``ROLLOUT_COMMANDS``."""
    if command == "retry":
        return _act(command, _retried(rollout), lambda: _can_retry(ledger, rollout))
    return _act(
        command, _consequence(rollout, command), lambda: _can(ledger, rollout, command, now)
    )


def of_service(ledger: Ledger, now: float) -> list[Act]:
    """What can be asked of the service."""
    frozen = bool(ledger.setting("frozen"))
    return [rollback_act(ledger, None, now), freeze_act(ledger, "unfreeze" if frozen else "freeze")]


def rollback_act(ledger: Ledger, to: str | None, now: float) -> Act:
    """Raises NotFound for a release that is not there."""
    rollout = rollout_commands.rollback_by_abort(ledger, to)
    if rollout is not None:
        words = _consequence(rollout, "abort")
        return _act("rollback", words, lambda: _can(ledger, rollout, "abort", now))
    try:
        target = rollout_commands.rollback_by_update(ledger, to)
    except Conflict as error:
        return Act(command="rollback", consequence="", refused=str(error), hint=error.hint or "")
    champion = ledger.champion()
    words = (
        f"All users go from {_short(champion)} back to {_short(target)}, which becomes champion"
        " again, in an update of its own."
    )
    return Act(command="rollback", consequence=words)


def freeze_act(ledger: Ledger, command: str) -> Act:
    frozen = bool(ledger.setting("frozen"))
    refused = f"the service is {'' if frozen else 'not '}frozen"
    if command == "freeze":
        words = (
            "No update starts and no rollout advances until it is unfrozen. Harm still sends all"
            " users back."
        )
        return Act(command=command, consequence=words, refused=refused if frozen else "")
    words = "Updates start and rollouts advance again."
    return Act(command=command, consequence=words, refused="" if frozen else refused)


def of_update(ledger: Ledger, update: Update) -> list[Act]:
    """What can be asked of an update that waits for a person's word."""
    if update.phase is not Phase.APPROVE:
        return []
    return [update_act(ledger, update, command) for command in UPDATE_COMMANDS]


def update_act(ledger: Ledger, update: Update, command: str) -> Act:
    """One command of ``UPDATE_COMMANDS``."""
    refused = ""
    if update.phase.final:
        refused = f"update {update.update_id} has ended: {update.phase}"
    elif update.phase is not Phase.APPROVE:
        refused = f"update {update.update_id} is not waiting for approval but in {update.phase}"
    elif (word := commands.approval_of(ledger, update.update_id)) is not None:
        refused = f"{word.actor} has given a word on it already"
    chosen = _short(update.chosen)
    words = (
        f"The rollout of {chosen} begins: users meet it step by step."
        if command == "approve"
        else f"{chosen} is not rolled out: it retires, and the update ends rejected."
    )
    return Act(command=command, consequence=words, refused=refused)


# ------------------------------------------------------------------------------------ asked once


def submit_once(
    ledger: Ledger,
    now: float,
    kind: str,
    actor: str,
    arguments: Mapping[str, Json],
    *,
    key: str | None = None,
) -> int:
    """Ask for something unless it was asked for already: by the same person with the same ``key``,
    or, without one, in the same words and not taken yet. Raises Conflict if the key was for
    something else."""
    given = {**arguments, "key": key} if key is not None else dict(arguments)
    with ledger.begin() as tx:
        for known in tx.commands(actor, limit=KEYS):
            if key is not None and known.arguments.get("key") == key:
                if (known.kind, known.arguments) != (kind, given):
                    raise Conflict(f"that key was for {known.kind}, with other words")
                return known.command_id
            same = known.kind == kind and known.arguments == given
            if key is None and same and ledger.command_outcome(known.command_id) is None:
                return known.command_id
        return tx.command(now, kind, actor, given)


def asked_before(ledger: Ledger, actor: str, key: str) -> Command | None:
    """What a person asked for with a key."""
    with ledger.begin() as tx:
        known = [c for c in tx.commands(actor, limit=KEYS) if c.arguments.get("key") == key]
    return known[0] if known else None


# ------------------------------------------------------------------------------------ small parts


def _act(command: str, words: str, check: Callable[[], None]) -> Act:
    try:
        check()
    except IntonacoError as error:
        return Act(command=command, consequence=words, refused=str(error), hint=error.hint or "")
    return Act(command=command, consequence=words)


def _can(ledger: Ledger, rollout: Rollout, command: str, now: float) -> None:
    """Asks the machine, with what the controller saw last. Raises Conflict with its words."""
    if rollout.status.final:
        raise Conflict(f"rollout {rollout.rollout_id} has ended: {rollout.status}")
    for before in rollout_commands.asked(ledger, rollout.rollout_id):
        if before["command"] == "abort":
            raise Conflict(f"rollout {rollout.rollout_id} is being aborted by {before['actor']}")
    well = rollout.stuck_since is None
    facts = machine.RolloutFacts(
        assessments=rollout.assessments,
        guardrails=tuple(a.metric for a in rollout.assessments),
        challenger_ready=well,
        observed_epoch_applied=well,
        command=command,
        asked_at=now,
        frozen=bool(ledger.setting("frozen")),
    )
    for kind, text in machine.tick(rollout, facts, now).events:
        if kind == "refused":
            raise Conflict(text)


def _can_retry(ledger: Ledger, rollout: Rollout) -> None:
    if not rollout.status.final:
        raise Conflict(f"rollout {rollout.rollout_id} is still running")
    if rollout.status is RolloutStatus.PROMOTED:
        raise Conflict(f"rollout {rollout.rollout_id} was promoted")
    rollout_commands.to_retry(ledger, rollout.rollout_id)


def _retried(rollout: Rollout) -> str:
    return (
        f"{_short(rollout.challenger)} is rolled out once more, attempt {rollout.attempt + 1}, from"
        f" the first step, with half the error budget (alpha {rollout.alpha / 2:.3g})."
    )


def _consequence(rollout: Rollout, command: str) -> str:
    challenger, champion = _short(rollout.challenger), _short(rollout.champion)
    count = len(rollout.steps)
    after = min(rollout.step + 1, count)
    following = (
        f"step {after + 1} of {count}: {step_name(rollout.steps[after])}"
        if after < count
        else "its end"
    )
    match command:
        case "pause":
            return f"The traffic stays as it is: {shares(rollout)}. Harm still sends all back."
        case "resume":
            return f"It goes on; the next is {following}."
        case "skip":
            here = f"what is left of step {rollout.step + 1}" if rollout.history else "the wait"
            return f"It drops {here} and goes to {following}."
        case "approve":
            return f"The approval is given, and it goes to {following}."
        case "promote":
            return (
                f"It drops all steps up to the one at which all users get {challenger}, without"
                " looking at it in smaller shares."
            )
    if rollout.champion is None:
        return "There is no release before it to go back to."
    what = "becomes champion again" if rollout.promoted_at is not None else "stays champion"
    return (
        f"All users go back to {champion}, which {what}. {challenger} gets no traffic any more,"
        " the update ends, and the release is not tried again unless somebody asks for it."
    )


def shares(rollout: Rollout) -> str:
    """Who gets what, in words."""
    weights = machine.weights_of(rollout)
    challenger, champion = _short(rollout.challenger), _short(rollout.champion)
    share = weights["challenger"]
    if rollout.champion is None:
        return f"{challenger} serves {share:.0%} of users"
    if share >= 1.0:
        return f"all users get {challenger}"
    copied = f", {weights['shadow']:.0%} of requests are copied to {challenger}"
    if share <= 0.0:
        return f"all users get {champion}" + (copied if weights["shadow"] else "")
    text = f"{100 * share:.3g} % of users get {challenger}, the others {champion}"
    if equal := equal_share(rollout, weights):
        text += f", {100 * equal:.3g} % of all at workers of their own, to be compared with"
    return text


def _short(release: str | None) -> str:
    return release[:10] if release else "nothing"
