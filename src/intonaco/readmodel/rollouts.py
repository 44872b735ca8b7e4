"""One rollout as people look at it: who got what when, how far the proof is, until when it waits,
and what may be asked of it."""

from __future__ import annotations

from collections.abc import Sequence

from intonaco.errors import NotFound
from intonaco.ledger import Ledger
from intonaco.readmodel.plain import Facts, plain
from intonaco.readmodel.updates import rollout_facts
from intonaco.rollout.words import stands
from intonaco.types import ArmRole, Event, Rollout, RolloutStatus, RoutingTable, StepKind

MOST_EVENTS = 60
_LOOKED = 2000  # events among which those of a rollout are looked for


def rollouts(ledger: Ledger, now: float, limit: int) -> list[Facts]:
    """Newest first."""
    facts: list[Facts] = plain([rollout_facts(r, now) for r in ledger.newest(Rollout, limit)])
    return facts


def find_rollout(ledger: Ledger, rollout_id: str) -> Rollout:
    """By its whole id. Raises NotFound."""
    found = ledger.find(Rollout, rollout_id)
    if found is None or found.rollout_id != rollout_id:
        raise NotFound(f"no rollout {rollout_id!r}")
    return found


def rollout_card(ledger: Ledger, rollout: Rollout, now: float) -> Facts:
    """A rollout with the course of its shares (``course``), its proof in words (``proof``) and its
    deadlines; ``events``: its own, newest last."""
    card: Facts = plain(
        {
            **rollout_facts(rollout, now),
            "step_since": rollout.step_since,
            "stuck_since": rollout.stuck_since,
            "course": course(rollout, ledger.routing_history(), now),
            "proof": [
                {"metric": a.metric, "text": stands(a, over=rollout.status.final)}
                for a in rollout.assessments
            ],
            "deadlines": deadlines(rollout),
            "events": _events(ledger, rollout),
        }
    )
    return card


def course(
    rollout: Rollout, tables: Sequence[tuple[float, RoutingTable]], now: float
) -> list[Facts]:
    """Shares of users from the beginning to the end or now, each held until the next: {"at",
    "shares": {role: share}, "shadow"}; roles are champion, challenger and baseline. What users of
    the challenger get counts as its own under whatever role."""
    end = rollout.ended_at if rollout.ended_at is not None else now
    before = [entry for entry in tables if entry[0] <= rollout.started_at]
    during = [entry for entry in tables if rollout.started_at < entry[0] <= end]
    points: list[Facts] = []
    for at, table in (*before[-1:], *during):
        shares: dict[str, float] = {}
        shadow = 0.0
        for arm in table.arms:
            if arm.role is ArmRole.SHADOW:
                shadow += arm.weight
                continue
            ours = arm.release == rollout.challenger
            role = "challenger" if ours else ("champion" if arm.role in _OLD else str(arm.role))
            shares[role] = shares.get(role, 0.0) + arm.weight
        point = {"at": max(at, rollout.started_at), "shares": shares, "shadow": shadow}
        if points and (points[-1]["shares"], points[-1]["shadow"]) == (shares, shadow):
            continue
        points.append(point)
    return points


_OLD = (ArmRole.CHAMPION, ArmRole.HOLDBACK)


def deadlines(rollout: Rollout) -> list[Facts]:
    """What happens at what time if nothing else does: {"at", "text"}, the next first."""
    if rollout.status.final:
        return []
    found: list[Facts] = []
    if rollout.stuck_since is not None and rollout.stuck_seconds > 0:
        what = "it is rolled back, as it makes no progress"
        found.append({"at": rollout.stuck_since + rollout.stuck_seconds, "text": what})
    if rollout.status is not RolloutStatus.PAUSED:
        step = rollout.steps[rollout.step] if rollout.history else None
        if step is not None and step.kind is StepKind.APPROVE and step.deadline_s:
            what = "it ends inconclusive" if step.on_timeout == "abort" else "people are told again"
            text = f"{what}, unless somebody approves"
            found.append({"at": rollout.step_since + step.deadline_s, "text": text})
        if rollout.promoted_at is None and rollout.max_seconds > 0:
            ends = "it ends inconclusive and all users go back"
            if rollout.on_inconclusive != "abort":
                ends = "people are told, and it goes on"
            at = rollout.started_at + rollout.max_seconds
            found.append({"at": at, "text": f"{ends}, unless every guardrail is proven"})
    return sorted(found, key=lambda d: float(d["at"]))


def _events(ledger: Ledger, rollout: Rollout) -> list[Event]:
    """Its own, and what people asked for while it ran."""
    end = rollout.ended_at if rollout.ended_at is not None else float("inf")
    found = [
        e
        for e in ledger.events(limit=_LOOKED, newest=True)
        if e.subject == rollout.rollout_id
        or (
            e.kind.startswith(("command.rollout", "command.rollback", "command.refused"))
            and rollout.started_at <= e.at <= end
        )
    ]
    return found[-MOST_EVENTS:]
