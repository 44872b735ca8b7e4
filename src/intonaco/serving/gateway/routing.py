"""Who goes where: pure functions of the table, the unit and what has tripped.

A unit's position is a hash of (salt, unit) in [0, 1). The arms lie on that line so that raising the
challenger's weight only ever moves users *to* the challenger::

    0                                                                          1
    | challenger →        | champion                    | ← baseline | ← holdback |

With several challengers they are stacked in the order of their names, and the promise holds for the
one whose weight rises last. The arms of a split say themselves where they begin, so that none moves
when another is taken out; whose arm was, the champion answers, under the name ``returned:…``, which
keeps them apart from those who were the champion's from the start. A fresh salt per rollout deals
the users anew.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from intonaco.errors import ConfigError
from intonaco.types import Arm, ArmRole, RoutingTable

MAX_UNIT = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """``probability``: of this arm for any unit, under the weights in force."""

    arm: Arm
    probability: float


def check_table(table: RoutingTable) -> None:
    """Raises ConfigError unless the table can be followed: one champion, weights that sum to 1,
    names given once, and a URL for every arm."""
    live = [a for a in table.arms if a.role is not ArmRole.SHADOW]
    if sum(a.role is ArmRole.CHAMPION for a in live) != 1:
        raise ConfigError("a routing table needs exactly one champion")
    if len({a.name for a in table.arms}) != len(table.arms):
        raise ConfigError("a routing table names each arm once")
    for arm in table.arms:
        if not 0 <= arm.weight <= 1:
            raise ConfigError(f"arm {arm.name}: weight {arm.weight} is not between 0 and 1")
        if not arm.urls:
            raise ConfigError(f"arm {arm.name} has no URL")
    placed = sorted((a.start, a.weight, a.name) for a in live if a.start is not None)
    end = 0.0
    for start, weight, name in placed:
        if not end - 1e-9 <= start <= 1 - weight + 1e-9:
            raise ConfigError(f"arm {name}: its users begin at {start:g}, where others are")
        end = start + weight
    if placed and any(a.role is not ArmRole.CHAMPION and a.start is None for a in live):
        raise ConfigError("either all arms beside the champion say where they begin, or none")
    total = math.fsum(a.weight for a in live)
    if abs(total - 1) > 1e-6:
        raise ConfigError(f"the weights of the arms sum to {total:g}, not 1")


def unit_of(
    *, user_header: str | None, user: str | None, api_key: str | None, request_id: str
) -> str:
    """Who is randomised: the user where known, else the API key (hashed), else the request."""
    named = user_header or user
    if named:
        if len(named) <= MAX_UNIT:
            return named
        return "user:" + hashlib.sha256(named.encode()).hexdigest()
    if api_key:
        return "key:" + hashlib.sha256(api_key.encode()).hexdigest()[:16]
    return request_id


def position(salt: str, *parts: str) -> float:
    """Where it lies in [0, 1): uniform over units, fixed per salt."""
    text = "\0".join((salt, *parts)).encode("utf-8", "surrogatepass")
    # 53 bits, so that the quotient is below 1 in floating point too.
    return (int.from_bytes(hashlib.sha256(text).digest()[:8]) >> 11) / 2**53


def effective_weights(table: RoutingTable, tripped: Collection[str]) -> Mapping[str, float]:
    """Weight in force per arm name: a tripped release has none, and the stable arm takes it."""
    weights: dict[str, float] = {}
    given_up = 0.0
    stable = table.stable()
    for arm in table.arms:
        off = arm.release in tripped and arm.release != stable.release
        weights[arm.name] = 0.0 if off else arm.weight
        if off and arm.role is not ArmRole.SHADOW:
            given_up += arm.weight
    if given_up:
        weights[stable.name] += given_up
    return weights


def assign(table: RoutingTable, unit: str, tripped: Collection[str] = ()) -> Assignment:
    """The unit's arm. Users of a tripped release go to the stable arm; nobody else moves. Those of
    an arm of a split go there under a name of their own, as the next table will say too."""
    weights = effective_weights(table, tripped)
    arm = _arm_at(table, position(table.salt, unit)) or table.champion()
    if arm.start is not None and weights[arm.name] <= 0:
        name = ArmRole.RETURNED + ":" + arm.name.partition(":")[2]
        stable = replace(table.stable(), name=name, role=ArmRole.RETURNED, weight=arm.weight)
        return Assignment(arm=stable, probability=arm.weight)
    if arm.role is ArmRole.CHAMPION and any(a.start is not None for a in table.arms):
        return Assignment(arm=arm, probability=arm.weight)
    if weights[arm.name] <= 0:
        arm = table.stable()
    return Assignment(arm=arm, probability=weights[arm.name])


def _arm_at(table: RoutingTable, at: float) -> Arm | None:
    low, high = 0.0, 1.0
    placed = [a for a in table.arms if a.start is not None]
    if placed:
        return next(
            (a for a in placed if a.start is not None and a.start <= at < a.start + a.weight), None
        )
    challengers = [a for a in table.arms if a.role is ArmRole.CHALLENGER]
    for arm in sorted(challengers, key=lambda a: a.name):
        if low <= at < low + arm.weight:
            return arm
        low += arm.weight
    for role in (ArmRole.HOLDBACK, ArmRole.BASELINE):
        for arm in sorted((a for a in table.arms if a.role is role), key=lambda a: a.name):
            if high - arm.weight <= at < high:
                return arm
            high -= arm.weight
    return None


def shadow_arms(
    table: RoutingTable, request_id: str, tripped: Collection[str] = ()
) -> tuple[Arm, ...]:
    """The shadow arms that get a copy of this request, decided per request."""
    return tuple(
        a
        for a in table.arms
        if a.role is ArmRole.SHADOW
        and a.release not in tripped
        and position(table.salt, a.name, request_id) < a.weight
    )
