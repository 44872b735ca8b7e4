"""Votes and invitations of a review. A vote is written once and never changed: taking one back is
another row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import sqlalchemy as sa
from sqlalchemy.engine import RowMapping
from sqlalchemy.exc import IntegrityError

from intonaco.codec import decode, encode
from intonaco.errors import Conflict
from intonaco.ledger import schema as t
from intonaco.ledger.store import Ledger
from intonaco.ledger.transaction import Transaction
from intonaco.types import Invitation, Review, Vote


def votes(ledger: Ledger, review_id: str) -> list[Vote]:
    """All acts of a review's reviewers, in the order in which they were written."""
    with ledger.engine.execution_options(intonaco_read_only=True).connect() as connection:
        return _votes(connection, ledger.service_id, review_id)


def votes_of(tx: Transaction, review_id: str) -> list[Vote]:
    """As ``votes``, within a write."""
    return _votes(tx.connection, tx.service_id, review_id)


def _votes(connection: sa.Connection, service_id: str, review_id: str) -> list[Vote]:
    v = t.votes.c
    query = sa.select(t.votes).where(v.service_id == service_id, v.review_id == review_id)
    return [_vote(row) for row in connection.execute(query.order_by(v.vote_id)).mappings()]


def cast(
    ledger: Ledger,
    review_id: str,
    reviewer: str,
    key: str,
    at: float,
    make: Callable[[list[Vote]], Vote],
) -> Vote:
    """Write what ``make`` says, given the votes of this moment, unless this reviewer's ``key`` is
    written already; the row as it stands in the ledger, committed. Raises Conflict if the review is
    closed, and whatever ``make`` raises; then nothing is written."""
    try:
        with ledger.begin() as tx:
            known = _known(tx, review_id, reviewer, key)
            if known is not None:
                return known
            if review(tx, review_id).closed_at is not None:
                raise Conflict("this review is over")
            vote = replace(make(votes_of(tx, review_id)), reviewer=reviewer, key=key, at=at)
            inserted = tx.connection.execute(
                t.votes.insert().values(
                    service_id=ledger.service_id,
                    review_id=review_id,
                    reviewer=reviewer,
                    key=key,
                    at=at,
                    body=encode(vote),
                )
            ).inserted_primary_key
            assert inserted is not None
            return replace(vote, vote_id=int(inserted[0]))
    except IntegrityError:  # the same key came twice at once, and the other was first
        with ledger.begin() as tx:
            known = _known(tx, review_id, reviewer, key)
        if known is None:
            raise
        return known


def close(tx: Transaction, closed: Review, now: float, text: str, actor: str) -> None:
    """Write a review's end with its event."""
    tx.put(closed, id=closed.review_id, at=closed.created_at, status="closed")
    tx.event(
        now,
        "review.closed",
        closed.review_id,
        text,
        actor=actor,
        data={"update_id": closed.update_id, "verdicts": dict(closed.verdicts)},
    )


def extend(tx: Transaction, longer: Review, now: float, actor: str) -> None:
    """Write a review's later deadline with its event."""
    tx.put(longer, id=longer.review_id, at=longer.created_at, status="open")
    tx.event(
        now,
        "review.extended",
        longer.review_id,
        "it has more time",
        actor=actor,
        data={"update_id": longer.update_id, "deadline": longer.deadline},
    )


def invite(tx: Transaction, review_id: str, name: str, role: str, sha256: str, at: float) -> None:
    """Write an invitation; one of that name is replaced, so its link ends."""
    key = {"service_id": tx.service_id, "review_id": review_id, "name": name}
    where = sa.and_(*(t.invitations.c[k] == v for k, v in key.items()))
    tx.connection.execute(t.invitations.delete().where(where))
    tx.connection.execute(
        t.invitations.insert().values(**key, sha256=sha256, role=role, at=at, revoked_at=None)
    )


def revoke(tx: Transaction, review_id: str, name: str, at: float) -> bool:
    """End an invitation; False if there is none that stands."""
    i = t.invitations.c
    done = tx.connection.execute(
        t.invitations.update()
        .where(
            i.service_id == tx.service_id,
            i.review_id == review_id,
            i.name == name,
            i.revoked_at.is_(None),
        )
        .values(revoked_at=at)
    )
    return done.rowcount > 0


def invitations(ledger: Ledger, review_id: str) -> list[Invitation]:
    i = t.invitations.c
    query = sa.select(t.invitations).where(
        i.service_id == ledger.service_id, i.review_id == review_id
    )
    with ledger.engine.execution_options(intonaco_read_only=True).connect() as connection:
        rows = connection.execute(query.order_by(i.at, i.name)).mappings().all()
    return [_invitation(row) for row in rows]


def invited(ledger: Ledger, review_id: str, sha256: str) -> Invitation | None:
    """Whose token has this digest, if the invitation stands."""
    i = t.invitations.c
    query = sa.select(t.invitations).where(
        i.service_id == ledger.service_id,
        i.review_id == review_id,
        i.sha256 == sha256,
        i.revoked_at.is_(None),
    )
    with ledger.engine.execution_options(intonaco_read_only=True).connect() as connection:
        row = connection.execute(query).mappings().first()
    return _invitation(row) if row is not None else None


def _known(tx: Transaction, review_id: str, reviewer: str, key: str) -> Vote | None:
    v = t.votes.c
    row = (
        tx.connection.execute(
            sa.select(t.votes).where(
                v.service_id == tx.service_id,
                v.review_id == review_id,
                v.reviewer == reviewer,
                v.key == key,
            )
        )
        .mappings()
        .first()
    )
    return _vote(row) if row is not None else None


def review(tx: Transaction, review_id: str) -> Review:
    """A review by its whole id, within a write."""
    d = t.documents.c
    row = tx.connection.execute(
        sa.select(d.body).where(
            d.service_id == tx.service_id, d.kind == "review", d.id == review_id
        )
    ).one()
    return decode(Review, row.body)


def _vote(row: RowMapping) -> Vote:
    return replace(decode(Vote, row["body"]), vote_id=row["vote_id"])


def _invitation(row: RowMapping) -> Invitation:
    return Invitation(
        name=row["name"], role=row["role"], at=row["at"], revoked_at=row["revoked_at"]
    )
