"""Queries of the ledger. Reads are methods of ``Ledger``, writes of a ``Transaction``.

A state and the event that tells of it are written in one transaction. A controller's transaction
carries its fencing token: once another controller holds the lease, the old one's writes fail.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine, RowMapping
from sqlalchemy.exc import DatabaseError

from intonaco.codec import as_json, decode, encode
from intonaco.errors import Conflict, NotFound, StorageError
from intonaco.ledger import schema as t
from intonaco.types import (
    DatasetVersion,
    Diagnosis,
    Event,
    Finding,
    Json,
    Plan,
    Release,
    Rollout,
    RoutingTable,
    SignalStatus,
    Update,
)

T = TypeVar("T")

KINDS: Mapping[str, type[Any]] = {
    "release": Release,
    "dataset": DatasetVersion,
    "finding": Finding,
    "diagnosis": Diagnosis,
    "plan": Plan,
    "update": Update,
    "rollout": Rollout,
}
_KIND_OF = {cls: kind for kind, cls in KINDS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """An action that a state asks for. The same key is done once."""

    key: str
    kind: str
    subject: str
    payload: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectStatus:
    """How far an effect has come: "wanted", "done" or "failed"."""

    effect: Effect
    status: str
    result: Mapping[str, Json]
    error: str
    attempts: int
    updated_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """Something a person asked for."""

    command_id: int
    at: float
    actor: str
    kind: str
    arguments: Mapping[str, Json]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenure:
    """A release's time as champion."""

    release_id: str
    since: float
    until: float | None
    reason: str


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
    def begin(self, fence: int | None = None) -> Iterator[Transaction]:
        """A write transaction. Raises Conflict if ``fence`` is no longer the lease's token."""
        with self.engine.begin() as connection:
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
            raise NotFound(f"no {_KIND_OF[cls]} {id}")
        return found

    def find(self, cls: type[T], id: str) -> T | None:
        """A document by id or unambiguous beginning of it."""
        kind = _KIND_OF[cls]
        d = t.documents.c
        mine = sa.and_(d.service_id == self.service_id, d.kind == kind)
        rows = self._rows(sa.select(d.body).where(mine, d.id == id))
        if not rows and id:
            rows = self._rows(sa.select(d.body).where(mine, d.id.startswith(id, autoescape=True)))
        return decode(cls, rows[0]["body"]) if len(rows) == 1 else None

    def all(self, cls: type[T], *, status: str | None = None) -> list[T]:
        """Documents of a kind, oldest first."""
        d = t.documents.c
        query = sa.select(d.body).where(d.service_id == self.service_id, d.kind == _KIND_OF[cls])
        if status is not None:
            query = query.where(d.status == status)
        return [decode(cls, row["body"]) for row in self._rows(query.order_by(d.at, d.id))]

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
        return {row["key"]: _effect(row) for row in rows}

    def wanted_effects(self) -> list[EffectStatus]:
        e = t.effects.c
        rows = self._rows(
            sa.select(t.effects)
            .where(e.service_id == self.service_id, e.status == "wanted")
            .order_by(e.updated_at, e.key)
        )
        return [_effect(row) for row in rows]

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
        return [_command(row) for row in rows]

    def command_outcome(self, command_id: int) -> Mapping[str, Json] | None:
        """What came of a command ({"ok", "text", …}), None while it waits."""
        c = t.commands.c
        rows = self._rows(sa.select(c.outcome).where(c.command_id == command_id))
        return json.loads(rows[0]["outcome"]) if rows and rows[0]["outcome"] else None

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
        found = [tenure for tenure in self.tenures() if tenure.until is None]
        return found[-1].release_id if found else None

    def previous(self) -> str | None:
        """The last champion before the present one."""
        ended = [tenure for tenure in self.tenures() if tenure.until is not None]
        return ended[-1].release_id if ended else None

    def latest_routing(self) -> RoutingTable | None:
        r = t.routing.c
        rows = self._rows(
            sa.select(r.body)
            .where(r.service_id == self.service_id)
            .order_by(r.epoch.desc())
            .limit(1)
        )
        return decode(RoutingTable, rows[0]["body"]) if rows else None

    def routing_history(self) -> list[tuple[float, RoutingTable]]:
        r = t.routing.c
        rows = self._rows(
            sa.select(t.routing).where(r.service_id == self.service_id).order_by(r.epoch)
        )
        return [(row["at"], decode(RoutingTable, row["body"])) for row in rows]

    def spent(self, since: float = 0.0) -> tuple[float, float]:
        """(settled, still reserved) money since a time."""
        b = t.budget.c
        rows = self._rows(sa.select(t.budget).where(b.service_id == self.service_id, b.at >= since))
        settled = {r["subject"]: 0.0 for r in rows if r["kind"] == "settle"}
        reserved = 0.0
        for row in rows:
            if row["kind"] == "settle":
                settled[row["subject"]] += row["amount"]
            elif row["subject"] not in settled:
                reserved += row["amount"]
        return sum(settled.values()), reserved

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
            "kind": _KIND_OF[type(document)],
            "id": id,
        }
        self._upsert(t.documents, key, {"status": status, "at": at, "body": encode(document)})

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

    def commit_consumer(self, name: str, offset: Mapping[str, int], state: Json, at: float) -> None:
        key = {"service_id": self.service_id, "name": name}
        values = {"offset": json.dumps(offset), "state": json.dumps(state), "updated_at": at}
        self._upsert(t.consumers, key, values)

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

    def set(self, name: str, value: Json) -> None:
        key = {"service_id": self.service_id, "name": name}
        self._upsert(t.settings, key, {"value": json.dumps(value)})

    def lease(self, holder: str, at: float, seconds: float) -> int | None:
        """Take or renew the controller's lease: its fencing token, None if somebody else has it."""
        c = t.leases.c
        row = self.connection.execute(
            sa.select(t.leases).where(c.service_id == self.service_id)
        ).first()
        if row is not None and row.holder != holder and row.expires_at > at:
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


def sqlite_engine(path: Path) -> Engine:
    """WAL, a busy time-out, and transactions that take the write lock when they begin."""
    engine = sa.create_engine(f"sqlite:///{path}")

    @sa.event.listens_for(engine, "connect")
    def _connect(connection: Any, record: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA busy_timeout=15000")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if _writes(connection) else "BEGIN")

    return engine


def _writes(connection: Connection) -> bool:
    return not connection.get_execution_options().get("intonaco_read_only", False)


def _effect(row: RowMapping) -> EffectStatus:
    return EffectStatus(
        effect=Effect(
            key=row["key"],
            kind=row["kind"],
            subject=row["subject"],
            payload=json.loads(row["payload"]),
        ),
        status=row["status"],
        result=json.loads(row["result"]),
        error=row["error"],
        attempts=row["attempts"],
        updated_at=row["updated_at"],
    )


def _command(row: RowMapping) -> Command:
    return Command(
        command_id=row["command_id"],
        at=row["at"],
        actor=row["actor"],
        kind=row["kind"],
        arguments=json.loads(row["arguments"]),
    )
