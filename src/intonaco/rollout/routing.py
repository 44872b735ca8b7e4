"""The routing table that the ledger's state asks for. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from intonaco.rollout.facts import equal_share
from intonaco.rollout.split import arm_name
from intonaco.types import Arm, ArmRole, Rollout, RoutingTable, ServingStatus, Split


def desired_arms(
    champion: ServingStatus | None,
    rollout: Rollout | None,
    challenger: ServingStatus | None,
    weights: Mapping[str, float],
    previous: ServingStatus | None = None,
    baseline: tuple[str, ...] = (),
) -> tuple[Arm, ...] | None:
    """Arms for a champion and, while a rollout runs, its challenger. None: one of them does not
    answer just now and is not known to be dead, so keep the last table.

    A first release has no champion beside it: once it is ready it *is* the champion arm. Once the
    challenger is champion, ``previous`` is the one before it: it keeps the share that the new one
    does not have, none perhaps, and steps in for it. ``baseline``: URLs of the workers of the
    champion's release that serve the equal slice, while there is one."""
    if champion is None or not champion.urls:
        return None
    if rollout is not None and rollout.challenger == champion.release:
        held = round(1.0 - weights.get("challenger", 1.0), 12)
        if rollout.promoted_at is not None and previous is not None and previous.urls:
            return _arm("champion", champion, 1.0 - held), _arm("holdback", previous, held)
        rollout = None
    share = 0.0 if rollout is None else weights.get("challenger", 0.0)
    wanted = rollout is not None and (share > 0 or weights.get("shadow", 0.0) > 0)
    if wanted and (challenger is None or not (challenger.urls or challenger.error)):
        return None
    arms = [_arm("champion", champion, 1.0 - share)]
    if rollout is not None and challenger is not None and challenger.urls:
        name = arm_name(rollout)
        shadow = weights.get("shadow", 0.0)
        if share > 0:
            arms.append(_arm(f"challenger:{name}", challenger, share))
            if baseline and (equal := equal_share(rollout, weights)):
                arms[0] = replace(arms[0], weight=round(1.0 - share - equal, 12))
                arms.append(_arm("baseline", replace(champion, urls=baseline), equal))
        elif shadow > 0:
            arms.append(_arm(f"shadow:{name}", challenger, shadow))
    if len(arms) == 1:
        arms[0] = replace(arms[0], weight=1.0)
    return tuple(arms)


def split_arms(
    champion: ServingStatus | None,
    rollout: Rollout,
    split: Split,
    challengers: Mapping[str, ServingStatus],
    latest: RoutingTable | None,
) -> tuple[Arm, ...] | None:
    """Arms of a split that has begun. None: the champion does not answer just now.

    Each challenger keeps its part of the line; the part of one that was taken out, or is dead, is
    answered by the champion under a name of its own, so that users who once were somebody else's
    are never counted as the champion's. One that does not answer just now stays as it is."""
    if champion is None or not champion.urls:
        return None
    before = {a.name: a for a in latest.arms} if latest is not None else {}
    arms = [_arm("champion", champion, split.champion_share)]
    for arm in split.arms:
        name = f"challenger:{arm_name(rollout, arm.name)}"
        status = challengers.get(arm.release)
        if arm.removed_at is None and status is not None and status.urls:
            made = _arm(name, status, arm.share)
        elif arm.removed_at is None and status is not None and not status.error and name in before:
            made = before[name]
        else:
            made = _arm(name.replace("challenger", "returned", 1), champion, arm.share)
        arms.append(replace(made, start=arm.start))
    return tuple(arms)


def _arm(name: str, status: ServingStatus, weight: float) -> Arm:
    role = ArmRole(name.partition(":")[0])
    return Arm(name=name, role=role, release=status.release, urls=status.urls, weight=weight)


def next_table(
    latest: RoutingTable | None,
    arms: tuple[Arm, ...],
    *,
    service_id: str,
    salt: str,
    reason: str,
) -> RoutingTable | None:
    """The table to write, None if the latest says the same already.

    A breaker is closed again only when a new rollout brings its release back into the table."""
    if latest is not None and latest.arms == arms and latest.salt == salt:
        return None
    before = {a.release for a in latest.arms} if latest else set()
    return RoutingTable(
        service_id=service_id,
        epoch=(latest.epoch if latest else 0) + 1,
        salt=salt,
        arms=arms,
        untrip=tuple(sorted({a.release for a in arms} - before)),
        reason=reason,
    )
