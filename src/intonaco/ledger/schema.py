"""Tables of the ledger.

Legend: *documents* are immutable or versioned values of ``types/`` stored as JSON with the few
columns that queries need; *events* are one row for each state change; *effects* are the actions
that a state asked for, keyed so that each happens once; *consumers* hold how far a reader of a log
has come together with what it made of it; *commands* are what people asked for; *tenures* say who
was champion when; *votes* are all acts of reviewers, none is ever changed or deleted; *invitations*
are links to reviews, by the digest of their token. ``service_id`` is part of every key.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()

# SQLite only numbers rows by itself for INTEGER primary keys.
_SERIAL = BigInteger().with_variant(Integer(), "sqlite")

documents = Table(
    "documents",
    metadata,
    Column("service_id", String(64), primary_key=True),
    # release, dataset, finding, diagnosis, plan, update, rollout, review, window
    Column("kind", String(32), primary_key=True),
    Column("id", String(128), primary_key=True),
    Column("status", String(32), nullable=False),
    Column("at", Float, nullable=False),
    Column("body", Text, nullable=False),
    Index("documents_by_time", "service_id", "kind", "at"),
    Index("documents_by_status", "service_id", "kind", "status", "at"),
)

events = Table(
    "events",
    metadata,
    Column("event_id", _SERIAL, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("service_id", String(64), nullable=False),
    Column("kind", String(64), nullable=False),
    Column("subject", String(128), nullable=False),
    Column("actor", String(128), nullable=False),
    Column("text", Text, nullable=False),
    Column("data", Text, nullable=False),
    Index("events_by_service", "service_id", "event_id"),
)

effects = Table(
    "effects",
    metadata,
    Column("service_id", String(64), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("kind", String(32), nullable=False),
    Column("subject", String(128), nullable=False),  # update or finding it belongs to
    Column("payload", Text, nullable=False),
    Column("status", String(16), nullable=False),  # wanted, done, failed
    Column("result", Text, nullable=False),
    Column("error", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("updated_at", Float, nullable=False),
    Index("effects_by_subject", "service_id", "subject"),
)

consumers = Table(
    "consumers",
    metadata,
    Column("service_id", String(64), primary_key=True),
    Column("name", String(128), primary_key=True),
    Column("offset", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("updated_at", Float, nullable=False),
)

commands = Table(
    "commands",
    metadata,
    Column("command_id", _SERIAL, primary_key=True, autoincrement=True),
    Column("service_id", String(64), nullable=False),
    Column("at", Float, nullable=False),
    Column("actor", String(128), nullable=False),
    Column("kind", String(64), nullable=False),
    Column("arguments", Text, nullable=False),
    Column("taken_at", Float, nullable=True),
    Column("outcome", Text, nullable=True),
)

tenures = Table(
    "tenures",
    metadata,
    Column("tenure_id", _SERIAL, primary_key=True, autoincrement=True),
    Column("service_id", String(64), nullable=False),
    Column("release_id", String(64), nullable=False),
    Column("since", Float, nullable=False),
    Column("until", Float, nullable=True),
    Column("reason", Text, nullable=False),
)

budget = Table(
    "budget",
    metadata,
    Column("entry_id", _SERIAL, primary_key=True, autoincrement=True),
    Column("service_id", String(64), nullable=False),
    Column("at", Float, nullable=False),
    Column("subject", String(128), nullable=False),
    # reserve, settle: money; reserve_hours, settle_hours: of the training machine
    Column("kind", String(16), nullable=False),
    Column("amount", Float, nullable=False),
)

routing = Table(
    "routing",
    metadata,
    Column("service_id", String(64), primary_key=True),
    Column("epoch", Integer, primary_key=True),
    Column("at", Float, nullable=False),
    Column("body", Text, nullable=False),
)

signal_points = Table(
    "signal_points",
    metadata,
    Column("point_id", _SERIAL, primary_key=True, autoincrement=True),
    Column("service_id", String(64), nullable=False),
    Column("at", Float, nullable=False),
    Column("body", Text, nullable=False),  # a list of SignalStatus
)

settings = Table(
    "settings",
    metadata,
    Column("service_id", String(64), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

leases = Table(
    "leases",
    metadata,
    Column("service_id", String(64), primary_key=True),
    Column("holder", String(128), nullable=False),
    Column("token", Integer, nullable=False),  # fencing token: grows with every new holder
    Column("expires_at", Float, nullable=False),
)

votes = Table(
    "votes",
    metadata,
    Column("vote_id", _SERIAL, primary_key=True, autoincrement=True),
    Column("service_id", String(64), nullable=False),
    Column("review_id", String(64), nullable=False),
    Column("reviewer", String(64), nullable=False),
    Column("key", String(64), nullable=False),  # idempotency key of the reviewer's page
    Column("at", Float, nullable=False),
    Column("body", Text, nullable=False),
    UniqueConstraint("service_id", "review_id", "reviewer", "key", name="votes_once"),
)

invitations = Table(
    "invitations",
    metadata,
    Column("service_id", String(64), primary_key=True),
    Column("review_id", String(64), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("sha256", String(64), nullable=False),  # of the token
    Column("role", String(16), nullable=False),
    Column("at", Float, nullable=False),
    Column("revoked_at", Float, nullable=True),
)
