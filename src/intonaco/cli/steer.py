"""update, rollout, rollback, freeze: what changes state.

A live controller is asked by a command row and its answer awaited. ``rollback``, ``rollout abort``,
``freeze`` and ``unfreeze`` work without one, and while the ledger is locked.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from sqlalchemy.exc import OperationalError

from intonaco import brake, commands
from intonaco.app import App
from intonaco.cli import decide, inspect, plan
from intonaco.cli.common import HERE, AsJson, Folder, actor, opened, out, print_json
from intonaco.environments import EnvironmentStore
from intonaco.errors import BackendError, ConfigError, Conflict, StorageError
from intonaco.executor import Parts
from intonaco.types import Action, Cause

ANSWER_SECONDS = 15.0

UpdateId = Annotated[str, typer.Argument(help="Update id.")]
Reason = Annotated[str, typer.Option("--reason", help="Why, for the record.")]


def add_to(app: typer.Typer) -> None:
    updates = typer.Typer(help="Updates of the model.", no_args_is_help=True)
    updates.command("start")(update_start)
    updates.command("plan")(decide.update_plan)
    updates.command("backtest")(decide.update_backtest)
    updates.command("list")(inspect.update_list)
    updates.command("show")(inspect.update_show)
    updates.command("approve")(update_approve)
    updates.command("reject")(update_reject)
    updates.command("cancel")(update_cancel)
    app.add_typer(updates, name="update")
    rollouts = typer.Typer(help="The rollout that is running.", no_args_is_help=True)
    rollouts.command("show")(inspect.rollout_show)
    rollouts.command("plan")(plan.rollout_plan)
    for name, text in (
        ("pause", "Hold the traffic where it is; harm is still acted on."),
        ("resume", "Go on after a pause."),
        ("abort", "Roll back now."),
        ("promote", "Give it to everybody now, if every guardrail is proven; --arm of a split."),
        ("skip", "Go to the next step now, if nothing is harmful."),
        ("approve", "Give the word that the present step waits for."),
        ("retry", "Try the last rolled-back challenger again, at half the error budget."),
    ):
        rollouts.command(name, help=text)(_rollout_command(name))
    app.add_typer(rollouts, name="rollout")
    app.command()(rollback)
    app.command()(freeze)
    app.command()(unfreeze)


def ask(
    app: App, kind: str, arguments: dict[str, Any], as_json: bool, wait_s: float | None = None
) -> None:
    """Hand a command to the controller and print its answer. Raises Conflict if it refuses,
    BackendError if there is no controller, OperationalError if the ledger is locked for ``wait_s``.
    """
    if app.workspace.process("controller") is None:
        raise BackendError(
            "no controller runs for this workspace, so nobody can carry this out",
            backend="controller",
            retriable=False,
            hint="start it with `intonaco up`",
        )
    now = app.clock.now()
    try:
        number = commands.submit(app.ledger, now, kind, actor(), arguments, wait_s=wait_s)
    except OperationalError as error:
        if wait_s is not None:
            raise
        hint = "try again; `rollback`, `rollout abort` and `freeze` work all the same"
        raise StorageError(f"the ledger cannot be written: {error.orig}", hint=hint) from error
    deadline = time.monotonic() + ANSWER_SECONDS
    while (outcome := app.ledger.command_outcome(number)) is None:
        if time.monotonic() > deadline:
            raise BackendError(
                "the controller has not answered yet; the command is noted",
                backend="controller",
                retriable=True,
                hint="`intonaco events` shows when it is done",
            )
        time.sleep(0.05)  # waiting for the controller's next tick
    if not outcome["ok"]:
        raise Conflict(outcome["text"])
    print_json(outcome) if as_json else out.print(outcome["text"], markup=False)


def update_start(
    workspace: Folder = HERE,
    reason: Reason = "asked for",
    recipe: Annotated[list[str] | None, typer.Option(help="Recipe to train; repeatable.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Full retraining.")] = False,
    steps: Annotated[
        int | None, typer.Option(help="No training: the champion with this many sampler steps.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="No training: the champion with this diffusers scheduler.")
    ] = None,
    environment: Annotated[
        str | None,
        typer.Option(help="No training: the champion in this environment (`environment add`)."),
    ] = None,
    upstream: Annotated[
        str | None, typer.Option(help="No training: this server of `serving.upstreams`.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the candidate.")] = None,
    as_json: AsJson = False,
) -> None:
    """Begin an update by hand: training, a new technique or environment on the same weights, or
    another server."""
    app = opened(workspace)
    arguments: dict[str, Any] = {"reason": reason, "recipes": recipe or []}
    assembled = any(v is not None for v in (steps, scheduler, environment, upstream))
    if assembled and (recipe or full):
        raise ConfigError(
            "--recipe and --full train, and --steps, --scheduler, --environment and --upstream do "
            "not: give one kind",
            hint="start the other when the first is done",
        )
    if name is not None and not assembled:
        raise ConfigError("--name: a candidate that is trained has its recipe's name")
    if assembled:
        generation = {"steps": steps} if steps is not None else {}
        store = EnvironmentStore(app.workspace)
        found = store.find(environment) if environment is not None else None
        only = found is not None and steps is None and scheduler is None and upstream is None
        arguments |= {
            "action": Action.ASSEMBLE,
            "cause": Cause.CODE_CHANGE if only else Cause.NEW_TECHNIQUE,
            "assemble": {
                "name": name or _technique(upstream, scheduler, steps, found),
                "generation": generation,
                "scheduler": {"class": scheduler} if scheduler else None,
                "environment": found,
                "upstream": upstream,
            },
        }
    elif full:
        arguments["action"] = Action.FULL_RETRAIN
    ask(app, "update.start", arguments, as_json)


def _technique(
    upstream: str | None, scheduler: str | None, steps: int | None, environment: str | None
) -> str:
    parts = (
        upstream,
        scheduler,
        f"{steps}-steps" if steps else None,
        f"environment-{environment[:10]}" if environment else None,
    )
    return "-".join(p for p in parts if p)


def update_approve(
    update: UpdateId, workspace: Folder = HERE, reason: Reason = "", as_json: AsJson = False
) -> None:
    """Let a staged release go out."""
    ask(opened(workspace), "update.approve", {"update": update, "reason": reason}, as_json)


def update_reject(
    update: UpdateId, workspace: Folder = HERE, reason: Reason = "", as_json: AsJson = False
) -> None:
    """Do not let a staged release go out."""
    ask(opened(workspace), "update.reject", {"update": update, "reason": reason}, as_json)


def update_cancel(update: UpdateId, workspace: Folder = HERE, as_json: AsJson = False) -> None:
    """End an update; a running rollout is rolled back."""
    ask(opened(workspace), "update.cancel", {"update": update}, as_json)


def _rollout_command(name: str) -> Any:
    if name in ("promote", "approve"):

        def of_arm(
            workspace: Folder = HERE,
            reason: Reason = "",
            arm: Annotated[
                str | None, typer.Option(help="Of a split: this challenger, not the winner.")
            ] = None,
            as_json: AsJson = False,
        ) -> None:
            arguments = {"reason": reason} | ({"arm": arm} if arm else {})
            ask(opened(workspace), f"rollout.{name}", arguments, as_json)

        return of_arm

    def command(workspace: Folder = HERE, reason: Reason = "", as_json: AsJson = False) -> None:
        app = opened(workspace)
        if name == "abort":
            _brake(app, "rollout.abort", {"reason": reason}, as_json, brake.abort)
        else:
            ask(app, f"rollout.{name}", {"reason": reason}, as_json)

    return command


def _brake(
    app: App,
    kind: str,
    arguments: dict[str, Any],
    as_json: bool,
    do: Callable[[Parts, str, str], str],
) -> None:
    """Ask the controller, or act without it if it is dead or the ledger is locked."""
    if app.workspace.process("controller") is not None:
        try:
            ask(app, kind, arguments, as_json, wait_s=brake.WAIT_S)
            return
        except OperationalError:
            pass
    text = do(app.parts(), actor(), str(arguments.get("reason") or ""))
    print_json({"ok": True, "text": text}) if as_json else out.print(text, markup=False)


def rollback(
    workspace: Folder = HERE,
    to: Annotated[str | None, typer.Option(help="Release to go back to.")] = None,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Back to the champion of before, now. Works also when the controller is dead or the ledger is
    locked."""
    arguments = {"to": to, "reason": reason}
    _brake(
        opened(workspace),
        "rollback",
        arguments,
        as_json,
        lambda parts, who, why: brake.rollback(parts, to, who, why),
    )


def freeze(workspace: Folder = HERE, reason: Reason = "", as_json: AsJson = False) -> None:
    """No update starts and no rollout advances until `unfreeze`; a way back that somebody asks for
    does."""
    _switch(workspace, "freeze", reason, as_json)


def unfreeze(workspace: Folder = HERE, reason: Reason = "", as_json: AsJson = False) -> None:
    """Let updates and rollouts go on."""
    _switch(workspace, "unfreeze", reason, as_json)


def _switch(workspace: Path, kind: str, reason: str, as_json: bool) -> None:
    _brake(
        opened(workspace),
        kind,
        {"reason": reason},
        as_json,
        lambda parts, who, why: brake.switch(parts, kind, who, why),
    )
