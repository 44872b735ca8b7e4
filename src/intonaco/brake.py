"""The emergency brake: works when the controller is dead or the ledger is locked.

It speaks to the gateway itself, with a higher epoch, and writes down what it did as soon as it can:
a controller that was killed still has its lease for a while, and one that comes back before the
brake has written would give users what they had before. A live controller is asked instead
(``commands``).
"""

from __future__ import annotations

import logging
import os
import socket
import time
from dataclasses import replace

import psutil
from sqlalchemy.exc import OperationalError

from intonaco import commands
from intonaco.errors import BackendError
from intonaco.executor import Parts
from intonaco.types import Arm, ArmRole, RolloutStatus, RoutingTable

log = logging.getLogger(__name__)


def controller_alive(parts: Parts) -> bool:
    return parts.workspace.process("controller") is not None


def rollback(parts: Parts, to: str | None, actor: str) -> str:
    """Go back without the controller: abort the running rollout, or return to an earlier champion.
    Returns what was done in words. The update ends when a controller is back, which retires its
    release. Raises Conflict, NotFound, BackendError."""
    ledger = parts.ledger
    now = parts.clock.now()
    rollout = ledger.active_rollout()
    champion = ledger.champion()
    if rollout is not None and rollout.champion is not None and to in (None, rollout.champion):
        target, text = rollout.champion, f"rollout {rollout.rollout_id} aborted"
    else:
        target = commands.rollback_target(ledger, to)
        text = f"went back from {str(champion)[:10]} to {target[:10]}"
    table = _push(parts, target, text)
    holder = f"brake:{os.getpid()}"
    try:
        with ledger.begin() as tx:
            fence = tx.lease(holder, now, 30.0, dead=_dead(ledger.lease_holder()))
        if fence is None:
            commands.submit(ledger, now, "rollback", actor, {"to": to})
            return f"{text} (at the gateway; a controller has come back and was asked to do it too)"
        with ledger.begin(fence=fence) as tx:
            if rollout is not None:
                tx.rollout(
                    replace(
                        rollout,
                        status=RolloutStatus.ROLLED_BACK,
                        reason=f"emergency rollback by {actor}",
                        ended_at=now,
                    )
                )
            if target != champion:
                tx.crown(target, now, f"emergency rollback by {actor}")
            if table is not None:
                tx.routing(table, now)
            tx.event(now, "brake.rollback", target, text, actor=actor)
            tx.release_lease(holder)
    except OperationalError as error:
        log.error("the ledger cannot be written: %s", error, extra={"action": "brake"})
        return f"{text} (at the gateway; the ledger is locked and does not know yet)"
    served = "" if table is not None else " (nothing is being served now)"
    return text + served


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


def _push(
    parts: Parts, target: str, reason: str, ready_seconds: float = 120.0
) -> RoutingTable | None:
    """Give all traffic to a release, at the gateway; None if no gateway runs."""
    try:
        observed = parts.router.observed()
    except BackendError:
        return None
    parts.serving.deploy(parts.releases.get(target))
    deadline = time.monotonic() + ready_seconds
    while not (status := parts.serving.status(target)).ready:
        if status.error or time.monotonic() > deadline:
            raise BackendError(
                f"{target[:10]} does not come up: {status.error or 'not ready in time'}",
                backend="serving",
                retriable=False,
            )
        time.sleep(0.1)  # waiting for the worker to load
    latest = parts.ledger.latest_routing()
    arm = Arm(name="champion", role=ArmRole.CHAMPION, release=target, urls=status.urls, weight=1.0)
    table = RoutingTable(
        service_id=parts.config.service,
        epoch=max(observed.epoch, latest.epoch if latest else 0) + 1,
        salt=observed.salt,
        arms=(arm,),
        untrip=(target,),
        reason=reason,
    )
    parts.router.apply(table)
    return table
