"""Writes to the ledger: all of a transaction or none of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from intonaco.codec import as_json, encode
from intonaco.decision.budget import Spending, standing
from intonaco.errors import Conflict
from intonaco.ledger import schema as t
from intonaco.ledger.rows import KIND_OF, Command, Effect, command_of
from intonaco.types import Finding, Json, Rollout, RoutingTable, SignalStatus, Update

LONGEST_LEASE_S = 60.0
# How many of a service's signal points are kept: beyond that age (s) the newest of each stretch of
# so many seconds, the others are dropped; at last all are. Some 5,400 points, whatever its age.
POINTS_KEPT: tuple[tuple[float, float | None], ...] = (
    (1800.0, 60.0),
    (2 * 86_400.0, 3600.0),
    (31 * 86_400.0, None),
)
POINTS_OF_A_FINDING = (600.0, 60.0)  # seconds before it and after it


class Transaction:
    """Writes, all or none."""

    def __init__(self, connection: Connection, service_id: str) -> None:
        self.connection = connection
        self.service_id = service_id

    def event(
        self,
        at: float,
        kind: str,
        subject: str,
        text: str,
        *,
        actor: str = "controller",
        data: Mapping[str, Json] | None = None,
    ) -> None:
        self.connection.execute(
            t.events.insert().values(
                at=at,
                service_id=self.service_id,
                kind=kind,
                subject=subject,
                actor=actor,
                text=text,
                data=json.dumps(as_json(dict(data or {}))),
            )
        )

    def put(self, document: Any, *, id: str, at: float, status: str = "") -> None:
        """Write or replace a document."""
        key = {
            "service_id": self.service_id,
            "kind": KIND_OF[type(document)],
            "id": id,
        }
        self._upsert(t.documents, key, {"status": status, "at": at, "body": encode(document)})

    def drop(self, cls: type[Any], *, status: str, before: float) -> None:
        """Delete documents of a kind and status that are older than a time."""
        d = t.documents.c
        self.connection.execute(
            t.documents.delete().where(
                d.service_id == self.service_id,
                d.kind == KIND_OF[cls],
                d.status == status,
                d.at < before,
            )
        )

    def update(self, update: Update) -> None:
        status = "final" if update.phase.final else "active"
        self.put(update, id=update.update_id, at=update.created_at, status=status)

    def rollout(self, rollout: Rollout) -> None:
        status = "final" if rollout.status.final else "active"
        self.put(rollout, id=rollout.rollout_id, at=rollout.started_at, status=status)

    def want(self, effect: Effect, at: float) -> None:
        """Ask for an effect; nothing happens if its key is known."""
        e = t.effects.c
        known = self.connection.execute(
            sa.select(e.key).where(e.service_id == self.service_id, e.key == effect.key)
        ).first()
        if known is None:
            self.connection.execute(
                t.effects.insert().values(
                    service_id=self.service_id,
                    key=effect.key,
                    kind=effect.kind,
                    subject=effect.subject,
                    payload=json.dumps(as_json(dict(effect.payload))),
                    status="wanted",
                    result="{}",
                    error="",
                    attempts=0,
                    updated_at=at,
                )
            )

    def finish_effect(
        self, key: str, at: float, *, result: Mapping[str, Json] | None = None, error: str = ""
    ) -> None:
        e = t.effects.c
        self.connection.execute(
            t.effects.update()
            .where(e.service_id == self.service_id, e.key == key)
            .values(
                status="failed" if error else "done",
                result=json.dumps(as_json(dict(result or {}))),
                error=error,
                updated_at=at,
            )
        )

    def retry_effect(self, key: str, at: float, error: str) -> None:
        """Count a failed attempt; the effect stays wanted."""
        e = t.effects.c
        self.connection.execute(
            t.effects.update()
            .where(e.service_id == self.service_id, e.key == key)
            .values(attempts=e.attempts + 1, error=error, updated_at=at)
        )

    def commit_consumer(self, name: str, offset: Mapping[str, int], state: Json, at: float) -> int:
        """Write how far a reader has read, with what it made of it; characters of that state."""
        key = {"service_id": self.service_id, "name": name}
        text = json.dumps(state)
        values = {"offset": json.dumps(offset), "state": text, "updated_at": at}
        self._upsert(t.consumers, key, values)
        return len(text)

    def command(self, at: float, kind: str, actor: str, arguments: Mapping[str, Json]) -> int:
        result = self.connection.execute(
            t.commands.insert().values(
                service_id=self.service_id,
                at=at,
                actor=actor,
                kind=kind,
                arguments=json.dumps(as_json(dict(arguments))),
            )
        )
        key = result.inserted_primary_key
        assert key is not None
        return int(key[0])

    def commands(self, actor: str, *, limit: int) -> list[Command]:
        """A person's last commands, newest first."""
        c = t.commands.c
        rows = self.connection.execute(
            sa.select(t.commands)
            .where(c.service_id == self.service_id, c.actor == actor)
            .order_by(c.command_id.desc())
            .limit(limit)
        )
        return [command_of(row) for row in rows.mappings()]

    def take_command(self, command_id: int, at: float, outcome: Mapping[str, Json]) -> None:
        self.connection.execute(
            t.commands.update()
            .where(t.commands.c.command_id == command_id)
            .values(taken_at=at, outcome=json.dumps(as_json(dict(outcome))))
        )

    def crown(self, release_id: str, at: float, reason: str) -> None:
        """Make a release the champion; the present one's tenure ends."""
        c = t.tenures.c
        self.connection.execute(
            t.tenures.update()
            .where(c.service_id == self.service_id, c.until.is_(None))
            .values(until=at)
        )
        self.connection.execute(
            t.tenures.insert().values(
                service_id=self.service_id, release_id=release_id, since=at, reason=reason
            )
        )

    def money(self, at: float, subject: str, kind: str, amount: float) -> None:
        self.connection.execute(
            t.budget.insert().values(
                service_id=self.service_id, at=at, subject=subject, kind=kind, amount=amount
            )
        )

    def reserve(
        self,
        at: float,
        subject: str,
        amount: float,
        *,
        limit: float,
        period: float,
        hours: bool = False,
    ) -> None:
        """Set money (or ``hours``) aside, if ``limit`` for any ``period`` seconds allows it. Read
        and written in this one transaction, so two cannot take the same. Raises Conflict."""
        now = standing(
            spending_of(self.connection, self.service_id, hours=hours), limit, period, at
        )
        if amount > now.left + 1e-9:
            unit = "h of the training machine" if hours else ""
            raise Conflict(
                f"the budget has {now.left:.2f} {unit} left of {limit:.2f}, and {amount:.2f} are "
                "needed".replace("  ", " "),
                hint="`intonaco budget` shows when more is free; decision.budget sets it",
            )
        self.money(at, subject, "reserve_hours" if hours else "reserve", amount)

    def routing(self, table: RoutingTable, at: float) -> None:
        """Write a routing table. Raises Conflict if its epoch is taken."""
        try:
            self.connection.execute(
                t.routing.insert().values(
                    service_id=self.service_id, epoch=table.epoch, at=at, body=encode(table)
                )
            )
        except sa.exc.IntegrityError as error:
            raise Conflict(f"routing epoch {table.epoch} is taken") from error

    def signals(self, at: float, points: Sequence[SignalStatus]) -> None:
        self.connection.execute(
            t.signal_points.insert().values(
                service_id=self.service_id, at=at, body=json.dumps(as_json(list(points)))
            )
        )

    def thin_signals(self, now: float) -> None:
        """Drop the signal points that ``POINTS_KEPT`` does not keep, but for those that show how a
        finding came about, until the last age. Again changes nothing."""
        p, d = t.signal_points.c, t.documents.c
        shown = sa.exists().where(
            d.service_id == self.service_id,
            d.kind == KIND_OF[Finding],
            d.at >= p.at - POINTS_OF_A_FINDING[1],
            d.at <= p.at + POINTS_OF_A_FINDING[0],
        )
        for age, step in POINTS_KEPT:
            before = now - age if step is None else (now - age) // step * step  # whole stretches
            old = sa.and_(p.service_id == self.service_id, p.at < before)
            if step is not None:
                stretch = sa.cast(p.at / step, sa.BigInteger)
                newest = sa.select(sa.func.max(p.point_id)).where(old).group_by(stretch)
                old = sa.and_(old, p.point_id.not_in(newest), ~shown)
            self.connection.execute(t.signal_points.delete().where(old))

    def set(self, name: str, value: Json) -> None:
        key = {"service_id": self.service_id, "name": name}
        self._upsert(t.settings, key, {"value": json.dumps(value)})

    def lease(
        self, holder: str, at: float, seconds: float, *, dead: str | None = None
    ) -> int | None:
        """Take or renew the controller's lease: its fencing token, None if somebody else has it.
        ``dead``: a holder known to be no more, whose lease is not waited for."""
        c = t.leases.c
        row = self.connection.execute(
            sa.select(t.leases).where(c.service_id == self.service_id)
        ).first()
        # One that ends later than any lease was written under a clock that has been set back.
        held = row is not None and at < row.expires_at <= at + LONGEST_LEASE_S
        if row is not None and row.holder not in (holder, dead) and held:
            return None
        token = (
            row.token
            if row is not None and row.holder == holder
            else (row.token + 1 if row is not None else 1)
        )
        values = {"holder": holder, "token": token, "expires_at": at + seconds}
        self._upsert(t.leases, {"service_id": self.service_id}, values)
        return int(token)

    def release_lease(self, holder: str) -> None:
        c = t.leases.c
        self.connection.execute(
            t.leases.update()
            .where(c.service_id == self.service_id, c.holder == holder)
            .values(expires_at=0.0)
        )

    def _upsert(self, table: sa.Table, key: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        where = sa.and_(*(table.c[name] == value for name, value in key.items()))
        changed = self.connection.execute(table.update().where(where).values(**values))
        if changed.rowcount == 0:
            self.connection.execute(table.insert().values(**key, **values))


def spending_of(connection: Connection, service_id: str, *, hours: bool = False) -> list[Spending]:
    """All that was settled, and what is reserved as yet, oldest first."""
    reserve, settle = ("reserve_hours", "settle_hours") if hours else ("reserve", "settle")
    b = t.budget.c
    rows = connection.execute(
        sa.select(t.budget)
        .where(b.service_id == service_id, b.kind.in_((reserve, settle)))
        .order_by(b.at, b.entry_id)
    ).all()
    settled = {row.subject for row in rows if row.kind == settle}
    return [
        Spending(at=row.at, amount=row.amount, settled=row.kind == settle, subject=row.subject)
        for row in rows
        if row.kind == settle or row.subject not in settled
    ]
