"""Queries of the ledger. Reads are methods of ``Ledger``, writes of a ``Transaction``.

A state and the event that tells of it are written in one transaction. A controller's transaction
carries its fencing token: once another controller holds the lease, the old one's writes fail.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine, RowMapping
from sqlalchemy.exc import DatabaseError

from intonaco.codec import decode
from intonaco.decision.budget import Spending
from intonaco.errors import Conflict, NotFound, StorageError
from intonaco.ledger import schema as t
from intonaco.ledger.rows import (
    KIND_OF,
    Command,
    EffectStatus,
    Tenure,
    command_of,
    effect_of,
)
from intonaco.ledger.transaction import Transaction, spending_of
from intonaco.types import (
    Event,
    Json,
    Rollout,
    RoutingTable,
    SignalStatus,
    Update,
)

T = TypeVar("T")

BUSY_S = 15.0  # that a transaction waits for others to end theirs


class Ledger:
    """One service's ledger."""

    def __init__(self, engine: Engine, service_id: str) -> None:
        self.engine = engine
        self.service_id = service_id
        self._reader = engine.execution_options(intonaco_read_only=True)

    @classmethod
    def open(cls, path: Path, service_id: str) -> Ledger:
        """Open (and if needed create or migrate) an SQLite ledger. Raises StorageError."""
        from intonaco.ledger.migrate import migrate

        path.parent.mkdir(parents=True, exist_ok=True)
        engine = sqlite_engine(path)
        try:
            migrate(engine)
        except DatabaseError as error:
            raise StorageError(f"{path} cannot be opened: {error.orig}") from error
        return cls(engine, service_id)

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def begin(
        self, fence: int | None = None, *, wait_s: float | None = None
    ) -> Iterator[Transaction]:
        """A write transaction. Raises Conflict if ``fence`` is no longer the lease's token, and
        SQLAlchemy's OperationalError if others keep the ledger locked for ``wait_s``."""
        waits = BUSY_S if wait_s is None else wait_s
        with self.engine.execution_options(intonaco_wait_s=waits).begin() as connection:
            if fence is not None:
                row = connection.execute(
                    sa.select(t.leases.c.token).where(t.leases.c.service_id == self.service_id)
                ).first()
                if row is None or row.token != fence:
                    raise Conflict("another controller has taken over this service")
            yield Transaction(connection, self.service_id)

    # ------------------------------------------------------------------ reads

    def _rows(self, query: sa.Select[Any]) -> Sequence[RowMapping]:
        with self._reader.connect() as connection:
            return connection.execute(query).mappings().all()

    def get(self, cls: type[T], id: str) -> T:
        """A document. Raises NotFound."""
        found = self.find(cls, id)
        if found is None:
            raise NotFound(f"no {KIND_OF[cls]} {id}")
        return found

    def find(self, cls: type[T], id: str) -> T | None:
        """A document by id or unambiguous beginning of it."""
        kind = KIND_OF[cls]
        d = t.documents.c
        mine = sa.and_(d.service_id == self.service_id, d.kind == kind)
        rows = self._rows(sa.select(d.body).where(mine, d.id == id))
        if not rows and id:
            rows = self._rows(sa.select(d.body).where(mine, d.id.startswith(id, autoescape=True)))
        return decode(cls, rows[0]["body"]) if len(rows) == 1 else None

    def all(self, cls: type[T], *, status: str | None = None) -> list[T]:
        """Documents of a kind, oldest first."""
        d = t.documents.c
        query = sa.select(d.body).where(d.service_id == self.service_id, d.kind == KIND_OF[cls])
        if status is not None:
            query = query.where(d.status == status)
        return [decode(cls, row["body"]) for row in self._rows(query.order_by(d.at, d.id))]

    def since(self, cls: type[T], at: float, *, status: str) -> list[T]:
        """Documents of a kind and status from a time on, oldest first."""
        d = t.documents.c
        query = sa.select(d.body).where(
            d.service_id == self.service_id,
            d.kind == KIND_OF[cls],
            d.status == status,
            d.at >= at,
        )
        return [decode(cls, row["body"]) for row in self._rows(query.order_by(d.at, d.id))]

    def newest(self, cls: type[T], limit: int, *, status: str | None = None) -> list[T]:
        """The last documents of a kind, newest first."""
        d = t.documents.c
        query = sa.select(d.body).where(d.service_id == self.service_id, d.kind == KIND_OF[cls])
        if status is not None:
            query = query.where(d.status == status)
        rows = self._rows(query.order_by(d.at.desc(), d.id.desc()).limit(limit))
        return [decode(cls, row["body"]) for row in rows]

    def active_updates(self) -> list[Update]:
        return [u for u in self.all(Update, status="active") if not u.phase.final]

    def active_rollout(self) -> Rollout | None:
        found = self.all(Rollout, status="active")
        return found[-1] if found else None

    def events(
        self, *, after: int = 0, limit: int = 1000, kind: str | None = None, newest: bool = False
    ) -> list[Event]:
        """Events in order. ``newest``: the last ``limit`` of them."""
        e = t.events.c
        query = sa.select(t.events).where(e.service_id == self.service_id, e.event_id > after)
        if kind is not None:
            query = query.where(sa.or_(e.kind == kind, e.kind.startswith(kind + ".")))
        order = e.event_id.desc() if newest else e.event_id.asc()
        rows = self._rows(query.order_by(order).limit(limit))
        found = [
            Event(**{**row, "data": json.loads(row["data"])})
            for row in (reversed(rows) if newest else rows)
        ]
        return found

    def effects(self, subject: str) -> dict[str, EffectStatus]:
        e = t.effects.c
        rows = self._rows(
            sa.select(t.effects).where(e.service_id == self.service_id, e.subject == subject)
        )
        return {row["key"]: effect_of(row) for row in rows}

    def wanted_effects(self) -> list[EffectStatus]:
        e = t.effects.c
        rows = self._rows(
            sa.select(t.effects)
            .where(e.service_id == self.service_id, e.status == "wanted")
            .order_by(e.updated_at, e.key)
        )
        return [effect_of(row) for row in rows]

    def consumer(self, name: str) -> tuple[Mapping[str, int], Json] | None:
        """(offset, state) that was committed last."""
        c = t.consumers.c
        rows = self._rows(
            sa.select(t.consumers).where(c.service_id == self.service_id, c.name == name)
        )
        return (json.loads(rows[0]["offset"]), json.loads(rows[0]["state"])) if rows else None

    def new_commands(self) -> list[Command]:
        c = t.commands.c
        rows = self._rows(
            sa.select(t.commands)
            .where(c.service_id == self.service_id, c.taken_at.is_(None))
            .order_by(c.command_id)
        )
        return [command_of(row) for row in rows]

    def command_outcome(self, command_id: int) -> Mapping[str, Json] | None:
        """What came of a command ({"ok", "text", …}), None while it waits."""
        c = t.commands.c
        rows = self._rows(sa.select(c.outcome).where(c.command_id == command_id))
        return json.loads(rows[0]["outcome"]) if rows and rows[0]["outcome"] else None

    def command(self, command_id: int) -> tuple[Command, Mapping[str, Json] | None] | None:
        """What was asked for and what came of it, None while it waits."""
        c = t.commands.c
        rows = self._rows(
            sa.select(t.commands).where(c.service_id == self.service_id, c.command_id == command_id)
        )
        if not rows:
            return None
        outcome = rows[0]["outcome"]
        return command_of(rows[0]), json.loads(outcome) if outcome else None

    def lease_holder(self) -> str | None:
        """Who took the controller's lease last, whether or not it has run out."""
        c = t.leases.c
        rows = self._rows(sa.select(c.holder).where(c.service_id == self.service_id))
        return rows[0]["holder"] if rows else None

    def tenures(self) -> list[Tenure]:
        """Who was champion when, oldest first."""
        c = t.tenures.c
        rows = self._rows(
            sa.select(t.tenures).where(c.service_id == self.service_id).order_by(c.tenure_id)
        )
        return [
            Tenure(
                release_id=r["release_id"], since=r["since"], until=r["until"], reason=r["reason"]
            )
            for r in rows
        ]

    def champion(self) -> str | None:
        return self._tenant(t.tenures.c.until.is_(None))

    def previous(self) -> str | None:
        """The last champion before the present one."""
        return self._tenant(t.tenures.c.until.is_not(None))

    def _tenant(self, which: sa.ColumnElement[bool]) -> str | None:
        c = t.tenures.c
        query = sa.select(c.release_id).where(c.service_id == self.service_id, which)
        rows = self._rows(query.order_by(c.tenure_id.desc()).limit(1))
        return rows[0]["release_id"] if rows else None

    def latest_routing(self) -> RoutingTable | None:
        r = t.routing.c
        rows = self._rows(
            sa.select(r.body)
            .where(r.service_id == self.service_id)
            .order_by(r.epoch.desc())
            .limit(1)
        )
        return decode(RoutingTable, rows[0]["body"]) if rows else None

    def routing_at(self, epoch: int) -> RoutingTable | None:
        """The table of an epoch, None if this ledger gave none out under it."""
        r = t.routing.c
        rows = self._rows(
            sa.select(r.body).where(r.service_id == self.service_id, r.epoch == epoch)
        )
        return decode(RoutingTable, rows[0]["body"]) if rows else None

    def routing_history(self) -> list[tuple[float, RoutingTable]]:
        r = t.routing.c
        rows = self._rows(
            sa.select(t.routing).where(r.service_id == self.service_id).order_by(r.epoch)
        )
        return [(row["at"], decode(RoutingTable, row["body"])) for row in rows]

    def spent(self, since: float = 0.0) -> tuple[float, float]:
        """(settled, still reserved) money: settled since a time; a reservation counts until it is
        settled, however old it is."""
        rows = self.spending()
        return (
            sum(r.amount for r in rows if r.settled and r.at >= since),
            sum(r.amount for r in rows if not r.settled),
        )

    def spending(self, *, hours: bool = False) -> list[Spending]:
        """All that was settled, and what is reserved as yet; in money, or in ``hours`` of the
        training machine."""
        with self._reader.connect() as connection:
            return spending_of(connection, self.service_id, hours=hours)

    def signal_points(self, limit: int = 2000) -> list[tuple[float, list[SignalStatus]]]:
        p = t.signal_points.c
        rows = self._rows(
            sa.select(t.signal_points)
            .where(p.service_id == self.service_id)
            .order_by(p.point_id.desc())
            .limit(limit)
        )
        return [(r["at"], decode(list[SignalStatus], r["body"])) for r in reversed(rows)]

    def setting(self, name: str) -> Json:
        s = t.settings.c
        rows = self._rows(sa.select(s.value).where(s.service_id == self.service_id, s.name == name))
        return json.loads(rows[0]["value"]) if rows else None


def sqlite_engine(path: Path) -> Engine:
    """WAL, a busy time-out, and transactions that take the write lock when they begin."""
    # Errors are logged, and the rows that they are about name reviewers, sides and prompts.
    engine = sa.create_engine(f"sqlite:///{path}", hide_parameters=True)

    @sa.event.listens_for(engine, "connect")
    def _connect(connection: Any, record: Any) -> None:
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout={BUSY_S * 1000:.0f}")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        wait_s = connection.get_execution_options().get("intonaco_wait_s", BUSY_S)
        connection.exec_driver_sql(f"PRAGMA busy_timeout={wait_s * 1000:.0f}")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if _writes(connection) else "BEGIN")

    return engine


def _writes(connection: Connection) -> bool:
    return not connection.get_execution_options().get("intonaco_read_only", False)
