"""Gives two releases their workers while one replaces the other, a look at a time.

Everything follows from the rollout's row, what the serving backend says is there, and the routing
table that the gateways confirmed: killed anywhere, the next look goes on. A worker that users are
sent to is ended only after the gateways follow a table without it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from intonaco.executor import Parts
from intonaco.rollout import capacity as workers
from intonaco.rollout.cost import start_seconds, switch_cost
from intonaco.types import (
    ArmRole,
    Rollout,
    RoutingTable,
    ServingStatus,
    StepKind,
)


def swapping(rollout: Rollout | None) -> bool:
    """Whether it replaces in place, and has begun to."""
    if rollout is None or not rollout.history:
        return False
    return any(s.kind is StepKind.REPLACE for s in rollout.steps[: rollout.step + 1])


def swap(parts: Parts, rollout: Rollout) -> bool:
    """One look at a switch in place: first all of the one that goes ends, then the other may load.
    True once that one may."""
    champion = str(rollout.champion)
    if rollout.returning:
        leaving, coming = rollout.challenger, champion
    elif rollout.promoted_at is None:
        leaving, coming = champion, rollout.challenger
    else:
        return True
    there = parts.serving.status(leaving)
    if there.deployed:
        parts.serving.retire(leaving)
        return False
    if there.ending:
        return False
    if coming == rollout.challenger and not parts.serving.status(coming).deployed:
        parts.serving.deploy(parts.releases.get(coming))
    return True


def roll(
    parts: Parts, rollout: Rollout, confirmed: RoutingTable | None
) -> Mapping[str, ServingStatus]:
    """One look at a rolling rollout: workers are started and ended as far as its limits allow.
    ``confirmed``: the newest table if the gateways follow it. Champion and challenger, by release,
    with the URLs that users may be sent to from now on."""
    cap = rollout.capacity
    assert cap is not None
    old = parts.serving.status(str(rollout.champion))
    new = parts.serving.status(rollout.challenger)
    share = _share(confirmed, new.release)
    has, had = share > 0, share < 1 or confirmed is None
    if rollout.returning:
        growing, shrinking, target = old, new, cap.total
        moved = cap.total - math.ceil(share * cap.total - 1e-9)
        users, keep = has or confirmed is None, 0
    else:
        growing, shrinking, target = new, old, cap.challenger
        moved = math.floor(share * cap.total + 1e-9)
        # Whoever is champion stays the shield of the other, and warm as far as there is room.
        users, keep = had, cap.surge if rollout.promoted_at is not None else max(1, cap.surge)
    sizes = workers.next_sizes(
        cap,
        workers.side(growing, users=True),
        workers.side(shrinking, users=users),
        target=target,
        moved=moved if confirmed is not None else 0,
        keep=keep,
    )
    if sizes.growing > growing.replicas:
        parts.serving.scale(parts.releases.get(growing.release), sizes.growing)
    if sizes.shrinking < shrinking.replicas:
        shrinking = replace(
            shrinking, urls=shrinking.urls[: sizes.shrinking], deployed=sizes.shrinking > 0
        )
        if confirmed is not None and _sent_to(confirmed, shrinking.release) <= {*shrinking.urls}:
            _shrink(parts, shrinking.release, sizes.shrinking)
    return {growing.release: growing, shrinking.release: shrinking}


def restore(parts: Parts, champion: ServingStatus) -> None:
    """A champion that gave workers up gets them again once a rolling rollout is over, as others of
    it leave room."""
    total = parts.config.serving.replicas
    if not champion.ready or not 0 < champion.replicas < total:
        return
    rollouts = parts.ledger.all(Rollout)
    last = rollouts[-1] if rollouts else None
    if last is None or last.capacity is None:
        return
    other = last.champion if champion.release == last.challenger else last.challenger
    beside = parts.serving.status(str(other))
    room = total + last.capacity.surge - beside.replicas - beside.ending - champion.ending
    if min(total, room) > champion.replicas:
        parts.serving.scale(parts.releases.get(champion.release), min(total, room))


def notice(parts: Parts, rollout: Rollout, requests_per_second: float) -> str:
    """What the rollout will cost users, to be said before it begins; "" for nothing."""
    if rollout.champion is None:
        return ""
    if any(s.kind is StepKind.REPLACE for s in rollout.steps):
        seconds = start_seconds(parts.serving.status(rollout.champion).facts)
        cost = switch_cost(seconds, requests_per_second)
        return f"in place: {cost}; nothing is compared, and going back costs the same again"
    if rollout.baseline:
        return (
            f"{rollout.baseline} more workers of the champion's release run while at most half of "
            "the users have the challenger: what users wait is compared between equal slices only"
        )
    cap = rollout.capacity
    if cap is None:
        return ""
    return (
        f"{cap.total} workers are replaced in {len(workers.waves(cap))} waves: at least "
        f"{cap.total - cap.unavailable} answer and at most {cap.total + cap.surge} are there"
    )


def _share(table: RoutingTable | None, challenger: str) -> float:
    arms = () if table is None else table.arms
    return sum(a.weight for a in arms if a.release == challenger and a.role is not ArmRole.SHADOW)


def _sent_to(table: RoutingTable, release: str) -> set[str]:
    return {url for a in table.arms if a.release == release for url in a.urls}


def _shrink(parts: Parts, release: str, size: int) -> None:
    if size:
        parts.serving.scale(parts.releases.get(release), size)
    else:
        parts.serving.retire(release)
