"""Where reviews are opened, voted on and closed: the only part that touches the ledger."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from intonaco.config import ReviewConfig
from intonaco.errors import ConfigError, Conflict, NotFound
from intonaco.evaluation.prompts import Prompt
from intonaco.ledger import Ledger
from intonaco.ledger import votes as rows
from intonaco.review import pictures, session
from intonaco.review.result import result_of
from intonaco.types import TIE, Act, Invitation, Review, Vote
from intonaco.workspace import Workspace

DECIDED = "decided"
TIME_UP = "its time is up"
ALL_IN = "all votes are in"


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
    names = [d.arm.name for d in arms]
    reserved = {TIE, session.BROKEN}
    if len(set(names)) < len(names) or reserved & set(names):
        raise ConfigError(
            f"releases called {', '.join(names)} cannot be compared: each needs a name of its own, "
            f"and none of {', '.join(sorted(reserved))}",
            hint="give the recipe another name",
        )
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


def settle(
    ledger: Ledger, review_id: str, now: float, *, over: str = "", actor: str = "controller"
) -> Review:
    """Close a review that is decided, has all its votes, or has run out of time; or that is
    ``over`` for another reason, which is ``actor``'s. The review as it stands then. Raises
    NotFound."""
    review = ledger.get(Review, review_id)
    if review.closed_at is not None:
        return review
    if _ended(review, rows.votes(ledger, review.review_id), now, over) is None:
        return review
    with ledger.begin() as tx:  # once more with the lock: another vote may have come
        review = rows.review(tx, review.review_id)
        if review.closed_at is not None:
            return review
        closed = _ended(review, rows.votes_of(tx, review.review_id), now, over)
        if closed is None:
            return review
        text = "; ".join(f"{n}: {v}, {closed.reasons[n]}" for n, v in closed.verdicts.items())
        by_votes = closed.closed_because in (DECIDED, ALL_IN)
        rows.close(tx, closed, now, text, "reviewers" if by_votes else actor)
        return closed


def _ended(review: Review, votes: Sequence[Vote], now: float, over: str) -> Review | None:
    """A review with its end, or None if it goes on."""
    result = result_of(review, votes, draws=0)
    if not over and now >= review.deadline:
        over = TIME_UP
    elif not over and not result.decided:
        if result.votes < result.wanted:
            return None
        over = ALL_IN
    if over:
        result = result_of(review, votes, over=over, draws=0)
    return replace(
        review,
        closed_at=now,
        closed_because=over or DECIDED,
        verdicts={name: v for name, v in result.verdicts.items() if v is not None},
        reasons=dict(result.reasons),
    )


def end(ledger: Ledger, review: Review, why: str, *, now: float, actor: str) -> Review:
    """Close a review by hand: what its votes show stands, what they do not is inconclusive. Raises
    Conflict if it is over."""
    _still_open(review)
    over = f"ended by {actor}: {why}" if why else f"ended by {actor}"
    return settle(ledger, review.review_id, now, over=over, actor=actor)


def extend(ledger: Ledger, review: Review, seconds: float, *, now: float, actor: str) -> Review:
    """Give a review so many more seconds. Raises Conflict if it is over."""
    with ledger.begin() as tx:
        review = rows.review(tx, review.review_id)
        _still_open(review)
        longer = replace(review, deadline=max(now, review.deadline) + seconds)
        rows.extend(tx, longer, now, actor)
    return longer


def _still_open(review: Review) -> None:
    if review.closed_at is not None:
        raise Conflict(f"review {review.review_id} is over: {review.closed_because}")


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
    _still_open(review)
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
