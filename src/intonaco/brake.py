"""The emergency brake: works when the controller is dead or the ledger is locked.

It speaks to the gateway itself, with a higher epoch, and writes down what it did as soon as it can:
at once, without waiting for the lease of a controller that was killed, or, if the ledger cannot be
written, in a file that the next controller takes down (``emergency``). A live controller is asked
instead (``commands``).
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Sequence

import psutil
from sqlalchemy.exc import OperationalError

from intonaco import emergency, rollout_commands
from intonaco.emergency import Act
from intonaco.errors import BackendError, Conflict
from intonaco.executor import Parts
from intonaco.rollout import baseline
from intonaco.rollout.replacing import in_place
from intonaco.types import Arm, ArmRole, Rollout, RoutingTable

log = logging.getLogger(__name__)

WAIT_S = 2.0  # for the ledger, before it counts as locked
LEASE_S = 30.0


def rollback(parts: Parts, to: str | None, actor: str, why: str = "") -> str:
    """Go back without the controller: abort the running rollout, or return to an earlier champion.
    Returns what was done in words. The update ends when a controller is back, which retires its
    release. Raises Conflict, NotFound, BackendError."""
    rollout = parts.ledger.active_rollout()
    champion = parts.ledger.champion()
    if rollout is not None and rollout.champion is not None and to in (None, rollout.champion):
        target, text = rollout.champion, f"rollout {rollout.rollout_id} aborted"
    else:
        target = rollout_commands.rollback_target(parts.ledger, to)
        text = f"went back from {str(champion)[:10]} to {target[:10]}"
    return _go_back(parts, "rollback", target, text, actor, why)


def abort(parts: Parts, actor: str, why: str = "") -> str:
    """End the running rollout without the controller. Raises Conflict, BackendError."""
    rollout = parts.ledger.active_rollout()
    if rollout is None:
        raise Conflict("no rollout is running")
    if rollout.champion is None:
        raise Conflict("there is nothing to go back to")
    text = f"rollout {rollout.rollout_id} aborted"
    return _go_back(parts, "abort", rollout.champion, text, actor, why)


def switch(parts: Parts, kind: str, actor: str, why: str = "") -> str:
    """``freeze`` or ``unfreeze`` without the controller. Nothing moves while the ledger is locked;
    once it is not, this counts before anything else."""
    now = parts.clock.now()
    act = Act(act_id=emergency.new_id(now), at=now, kind=kind, actor=actor, why=why)
    if _written(parts, act, lambda: None):
        return f"{kind}: written down; no controller runs"
    return f"{kind}: the ledger is locked; the controller takes it before it does anything else"


def _go_back(parts: Parts, kind: str, target: str, text: str, actor: str, why: str) -> str:
    now = parts.clock.now()
    rollout = parts.ledger.active_rollout()
    began = time.monotonic()
    leaving = _in_its_place(parts, rollout, target)
    table = _table(parts, target, text, leaving)
    if leaving:
        gone, lasted = ", ".join(r[:10] for r in leaving), time.monotonic() - began
        text += f"; {gone} ended first, and nobody answered for {lasted:.0f} s"
    act = Act(
        act_id=emergency.new_id(now),
        at=now,
        kind=kind,
        actor=actor,
        why=why,
        target=target,
        rollout_id=rollout.rollout_id if rollout else None,
        table=table,
    )

    def push() -> None:
        if act.table is not None:
            parts.router.apply(act.table)

    if not _written(parts, act, push):
        return f"{text} (at the gateways; the ledger learns of it as soon as it can be written)"
    return text + ("" if act.table is not None else " (nothing is being served now)")


def _written(parts: Parts, act: Act, do: Callable[[], None]) -> bool:
    """Note the act, do it, write it down; False if that has to wait for a controller."""
    try:
        noted = emergency.note(parts.workspace, act)
    except OSError as error:  # a full disk holds up no emergency
        log.error("not noted: %s", error, extra={"action": "brake"})
        noted = None
    try:
        do()
    except Exception:
        if noted is not None:
            noted.unlink(missing_ok=True)
        raise
    ledger, now, holder = parts.ledger, parts.clock.now(), f"brake:{os.getpid()}"
    try:
        with ledger.begin(wait_s=WAIT_S) as tx:
            fence = tx.lease(holder, now, LEASE_S, dead=_dead(ledger.lease_holder()))
        if fence is None:
            # A controller has come back. It takes the note; without one it must be asked.
            if noted is None:
                raise Conflict(
                    "done, but it could not be noted, and a controller may undo it",
                    hint="make room on the disk and give the same command again",
                )
            return False
        with ledger.begin(fence=fence, wait_s=WAIT_S) as tx:
            emergency.write_down(tx, ledger, act, now)
            tx.release_lease(holder)
    except OperationalError as error:
        log.error("the ledger cannot be written: %s", error.orig, extra={"action": "brake"})
        return False
    if noted is not None:
        noted.unlink(missing_ok=True)
    return True


def _dead(holder: str | None) -> str | None:
    """The holder of a lease, if it was a process of this machine that is no more."""
    host, _, pid = (holder or "").rpartition(":")
    if host != socket.gethostname() or not pid.isdigit():
        return None
    try:
        ended = psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        ended = True
    return holder if ended else None


def _in_its_place(parts: Parts, rollout: Rollout | None, target: str) -> list[str]:
    """Releases that have to end before the target is loaded: where one takes the other's place
    there is room for one of them. Empty if it is up already, or may be loaded beside them."""
    alone = parts.config.rollout.strategy == "in_place" if rollout is None else in_place(rollout)
    if not alone or parts.serving.status(target).ready:
        return []
    of = (rollout.challenger, rollout.champion) if rollout is not None else ()
    others = dict.fromkeys(r for r in (*of, parts.ledger.champion()) if r and r != target)
    found = {release: parts.serving.status(release) for release in others}
    return [release for release, there in found.items() if there.deployed or there.ending]


def _table(
    parts: Parts,
    target: str,
    reason: str,
    leaving: Sequence[str] = (),
    ready_seconds: float = 120.0,
) -> RoutingTable | None:
    """What gives all traffic to a release, once it answers; None if no gateway runs. ``leaving``
    end before it is loaded."""
    try:
        observed = parts.router.observed()
    except BackendError:
        return None
    deadline = time.monotonic() + ready_seconds
    for release in leaving:
        parts.serving.retire(release)
    while any((there := parts.serving.status(r)).deployed or there.ending for r in leaving):
        if time.monotonic() > deadline:
            raise _not_up(target, "what is in its place does not end", leaving)
        time.sleep(0.1)  # workers answer what they have in hand first
    parts.serving.deploy(parts.releases.get(target))
    deadline = time.monotonic() + ready_seconds
    while not baseline.answers(parts, status := parts.serving.status(target)):
        if status.error or time.monotonic() > deadline:
            raise _not_up(target, status.error or "not ready in time", leaving)
        time.sleep(0.1)  # waiting for the worker to load
    latest = parts.ledger.latest_routing()
    arm = Arm(name="champion", role=ArmRole.CHAMPION, release=target, urls=status.urls, weight=1.0)
    return RoutingTable(
        service_id=parts.config.service,
        epoch=max(observed.epoch, latest.epoch if latest else 0) + 1,
        salt=observed.salt,
        arms=(arm,),
        untrip=(target,),
        reason=reason,
    )


def _not_up(target: str, why: str, leaving: Sequence[str]) -> BackendError:
    hint = None
    if leaving:
        hint = (
            f"{', '.join(r[:10] for r in leaving)} was ended for it and nobody answers: give the "
            "same command again once it can load, or start the controller with `intonaco up`"
        )
    text = f"{target[:10]} does not come up: {why}"
    return BackendError(text, backend="serving", retriable=False, hint=hint)
