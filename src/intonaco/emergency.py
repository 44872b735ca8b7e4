"""What people did with the emergency brake while the ledger could not be written.

Each act is a file in ``state/emergency``, written before anything is done, so that a controller
which sees the gateways run ahead of its ledger knows who did it. The next controller that can write
takes them down in their order before it decides anything, and deletes them. Times are seconds since
the Unix epoch.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path

from intonaco import rollout_commands
from intonaco.codec import decode, encode
from intonaco.errors import StorageError
from intonaco.executor import Parts
from intonaco.ledger import Ledger, Transaction
from intonaco.types import Rollout, RolloutStatus, RoutingTable, Verdict
from intonaco.workspace import Workspace, write_atomic

log = logging.getLogger(__name__)

_ROOM, _ROOM_BYTES = "room", 65_536
_TAKEN = "emergency:taken"  # setting: the last act that was written down


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """``target``: the release that got everybody, None for freeze and unfreeze. ``rollout_id``: the
    rollout that it ended. ``table``: what was given to the gateways, None if none ran."""

    act_id: str
    at: float
    kind: str
    actor: str
    why: str = ""
    target: str | None = None
    rollout_id: str | None = None
    table: RoutingTable | None = None

    @property
    def by(self) -> str:
        return self.actor + (f": {self.why}" if self.why else "")


def note(workspace: Workspace, act: Act) -> Path:
    """Keep an act until a controller has written it down; the same act again replaces it. On a full
    disk it takes the room that is held for it. Raises OSError."""
    file = _folder(workspace) / f"{act.act_id}.json"
    try:
        write_atomic(file, encode(act))
    except OSError:
        (_folder(workspace) / _ROOM).unlink(missing_ok=True)
        write_atomic(file, encode(act))
    return file


def new_id(at: float) -> str:
    """Of an act; ids sort by time."""
    return f"{at:017.6f}-{os.getpid()}"


def waiting(workspace: Workspace) -> list[Path]:
    """Acts that are not written down yet, oldest first."""
    return sorted(_folder(workspace).glob("*.json"))


def take(parts: Parts, fence: int, now: float) -> None:
    """Write down what waits. A file that is no act is put aside and told of. Holds the room for the
    next one."""
    _hold_room(parts.workspace)
    for file in waiting(parts.workspace):
        try:
            act = decode(Act, file.read_bytes())
        except FileNotFoundError:  # whoever made it has just written it down
            continue
        except StorageError as error:
            log.error("%s is put aside: %s", file.name, error, extra={"action": "emergency"})
            file.replace(file.with_suffix(".unreadable"))
            continue
        with parts.ledger.begin(fence=fence) as tx:
            if parts.ledger.setting(_TAKEN) != act.act_id:  # else killed before it was deleted
                write_down(tx, parts.ledger, act, now)
        file.unlink(missing_ok=True)


def write_down(tx: Transaction, ledger: Ledger, act: Act, now: float) -> None:
    """The ledger as the act left the service."""
    if act.target is None:
        tx.set("frozen", act.kind == "freeze")
        text = f"{act.kind} by {act.by}"
    else:
        text = _gone_back(tx, ledger, act, act.target, now)
    tx.event(now, f"brake.{act.kind}", act.target or tx.service_id, text, actor=act.actor)
    tx.set(_TAKEN, act.act_id)


def _gone_back(tx: Transaction, ledger: Ledger, act: Act, target: str, now: float) -> str:
    champion = ledger.champion()
    reason = f"emergency {act.kind} by {act.by}"
    text = f"everybody was given {target[:10]}"
    rollout = ledger.find(Rollout, act.rollout_id) if act.rollout_id else None
    if rollout is not None and not rollout.status.final:
        text += f", rollout {rollout.rollout_id} aborted"
        ended = replace(
            rollout,
            status=RolloutStatus.ROLLED_BACK,
            verdict=Verdict.FAIL,
            reason=reason,
            ended_at=max(now, rollout.started_at),
            paused_at=None,
            stuck_since=None,
            returning="",
        )
        tx.rollout(ended)
        rollout_commands.answer(
            tx, rollout, rollout_commands.asked(ledger, rollout.rollout_id), reason, now
        )
        tx.set(f"rollout:{rollout.rollout_id}", None)
        tx.event(now, "rollout.rolled_back", rollout.rollout_id, reason, actor=act.actor)
    for update in ledger.active_updates():
        if update.rollout_id is None and update.champion != target:
            # What it was to be compared with serves no longer.
            tx.update(replace(update, cancel_requested=True))
    if champion != target:
        text += f" instead of {str(champion)[:10]}"
        tx.crown(target, now, reason)
        data = {"previous": champion, "update_id": rollout.update_id if rollout else None}
        tx.event(now, "champion", target, f"{target[:10]} is champion again", data=data)
    latest = ledger.latest_routing()
    if act.table is not None:
        # A controller may have written a table of that epoch in the same moment.
        epoch = max(act.table.epoch, latest.epoch + 1 if latest else 0)
        tx.routing(replace(act.table, epoch=epoch), now)
    return text


def _hold_room(workspace: Workspace) -> None:
    room = _folder(workspace) / _ROOM
    if not room.exists():
        try:
            write_atomic(room, bytes(_ROOM_BYTES))
        except OSError as error:
            log.warning("no room is held: %s", error, extra={"action": "emergency"})


def _folder(workspace: Workspace) -> Path:
    return workspace.ledger.parent / "emergency"
