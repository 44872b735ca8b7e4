"""Where reviews are opened, voted on and closed: the only part that touches the ledger."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from intonaco.config import ReviewConfig
from intonaco.errors import Conflict, NotFound
from intonaco.evaluation.prompts import Prompt
from intonaco.ledger import Ledger
from intonaco.ledger import votes as rows
from intonaco.review import pictures, session
from intonaco.review.result import result_of
from intonaco.types import Act, Invitation, Review, Vote
from intonaco.workspace import Workspace


def open_review(
    ledger: Ledger,
    workspace: Workspace,
    settings: ReviewConfig,
    *,
    review_id: str,
    arms: Sequence[pictures.Drawn],
    prompts: Sequence[Prompt],
    alpha: float,
    now: float,
    actor: str,
    update_id: str | None = None,
) -> Review:
    """Begin a review, or find it if it has begun. The pictures are on disk before the review is in
    the ledger. Raises ConfigError, StorageError."""
    known = ledger.find(Review, review_id)
    if known is not None and known.review_id == review_id:
        return known
    key = hmac.digest(workspace.instance_key(), f"review {review_id}".encode(), "sha256").hex()
    items = pictures.choose(arms, prompts, key=key, limit=settings.prompts)
    review = Review(
        review_id=review_id,
        service_id=ledger.service_id,
        created_at=now,
        deadline=now + settings.timeout_s,
        arms=tuple(d.arm for d in arms),
        items=items,
        questions=settings.questions,
        key=key,
        reviewers=settings.reviewers,
        votes_per_pair=settings.votes_per_pair,
        min_prompts=min(settings.min_prompts, len(items)),
        margin=settings.margin,
        alpha=alpha,
        checks=settings.checks,
        guide=settings.guide,
        update_id=update_id,
    )
    pictures.store(workspace, review, arms)
    with ledger.begin() as tx:
        tx.put(review, id=review_id, at=now, status="open")
        tx.event(
            now,
            "review.opened",
            review_id,
            f"review of {', '.join(review.candidates)} against {review.arms[0].name}: "
            f"{len(items)} prompts, {settings.votes_per_pair} votes a pair",
            actor=actor,
            data={"update_id": update_id, "deadline": review.deadline},
        )
    return review


def settle(ledger: Ledger, review_id: str, now: float, *, over: str = "") -> Review:
    """Close a review that is decided, has all its votes, or has run out of time; or that is
    ``over`` for another reason. The review as it stands then. Raises NotFound."""
    review = ledger.get(Review, review_id)
    if review.closed_at is not None:
        return review
    votes = rows.votes(ledger, review.review_id)
    result = result_of(review, votes, draws=0)
    actor = "reviewers"
    if over or now >= review.deadline:
        over, actor = over or "nobody decided it in time", "controller"
    elif not result.decided:
        if result.votes < result.wanted:
            return review
        over = "all votes are in"
    else:
        over = ""
    if over:
        result = result_of(review, votes, over=over, draws=0)
    verdicts = {name: v for name, v in result.verdicts.items() if v is not None}
    closed = replace(
        review,
        closed_at=now,
        closed_because=over or "decided",
        verdicts=verdicts,
        reasons=dict(result.reasons),
    )
    text = "; ".join(f"{n}: {v}, {closed.reasons[n]}" for n, v in verdicts.items())
    with ledger.begin() as tx:
        if rows.close(tx, closed, now, text, actor):
            return closed
    return ledger.get(Review, review_id)


def vote(
    ledger: Ledger,
    review: Review,
    reviewer: str,
    *,
    key: str,
    task: str,
    choices: Mapping[str, str] | None,
    seconds: float,
    now: float,
) -> Vote:
    """Write a vote down, or a skip if there are no ``choices``; committed when this returns, and
    once only for a ``key``. Raises NotFound for a task that is not this reviewer's, Conflict if the
    review is over."""

    def make(votes: list[Vote]) -> Vote:
        found = session.find(review, reviewer, votes, task)
        if found is None:
            raise NotFound("this pair is not among yours")
        if choices is None:
            return session.skipped(found, seconds)
        return session.written(found, choices, seconds)

    return _cast(ledger, review, reviewer, key, now, make)


def undo(ledger: Ledger, review: Review, reviewer: str, *, key: str, now: float) -> Vote:
    """Take back the reviewer's last act that still stands, once for a ``key``. Raises Conflict if
    there is none or the review is over."""

    def make(votes: list[Vote]) -> Vote:
        last = session.to_undo(votes, reviewer)
        if last is None:
            raise Conflict("there is nothing to take back")
        return replace(last, act=Act.UNDO, answers={})

    return _cast(ledger, review, reviewer, key, now, make)


def _cast(
    ledger: Ledger,
    review: Review,
    reviewer: str,
    key: str,
    now: float,
    make: Callable[[list[Vote]], Vote],
) -> Vote:
    return rows.cast(ledger, review.review_id, reviewer, key, now, make)


def invite(ledger: Ledger, review: Review, name: str, role: str, *, now: float, actor: str) -> str:
    """A token for one person and this review; an earlier one of that name ends. Only its digest is
    kept. Raises Conflict if the review is over."""
    if review.closed_at is not None:
        raise Conflict(f"review {review.review_id} is over: {review.closed_because}")
    token = secrets.token_urlsafe(24)
    with ledger.begin() as tx:
        rows.invite(tx, review.review_id, name, role, digest(token), now)
        tx.event(
            now, "review.invited", review.review_id, f"{name} was invited as {role}", actor=actor
        )
    return token


def who(ledger: Ledger, review_id: str, token: str) -> Invitation | None:
    """Whose token it is, if it was given for this review and not ended."""
    return rows.invited(ledger, review_id, digest(token))


def digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
