"""Reviews, as people are shown them. While a review is open nothing here tells which release is
which: they are called A, B, ..., in an order that the review's key decides."""

from __future__ import annotations

from collections.abc import Mapping

from intonaco.ledger import Ledger
from intonaco.ledger import votes as rows
from intonaco.readmodel.plain import Facts, plain
from intonaco.review.desk import DECIDED
from intonaco.review.result import Answered, Result, result_of
from intonaco.review.session import labels
from intonaco.review.statistics import Interval
from intonaco.types import Act, Review, TaskKind


def reviews(ledger: Ledger) -> list[Facts]:
    """All reviews, newest first, without what open ones say."""
    found: list[Facts] = plain([review_brief(ledger, r) for r in reversed(ledger.all(Review))])
    return found


def review_brief(ledger: Ledger, review: Review) -> Facts:
    """What is asked, how far it is, and how it ended."""
    votes = rows.votes(ledger, review.review_id)
    result = result_of(review, votes, over=_over(review), draws=0)
    return {
        "id": review.review_id,
        "open": review.closed_at is None,
        "update": review.update_id,
        "created_at": review.created_at,
        "deadline": review.deadline,
        "closed_at": review.closed_at,
        "closed_because": review.closed_because,
        "candidates": review.candidates,
        "questions": review.questions,
        "prompts": len({item.prompt_id for item in review.items}),
        "votes": result.votes,
        "wanted": result.wanted,
        "reviewers": result.counted,
        "reviewers_wanted": review.reviewers,
        "verdicts": dict(review.verdicts),
        "reasons": dict(review.reasons) if review.closed_at is not None else {},
    }


def review_result(ledger: Ledger, review: Review, *, unblinded: bool | None = None) -> Facts:
    """What the votes say so far, or said in the end. ``unblinded``: with the releases' names, None
    for once the review is closed."""
    votes = rows.votes(ledger, review.review_id)
    result = result_of(review, votes, over=_over(review))
    open_ = unblinded if unblinded is not None else review.closed_at is not None
    own: Mapping[str, str] = {arm.name: arm.name for arm in review.arms}
    names = own if open_ else labels(review)
    facts: Facts = plain(
        review_brief(ledger, review)
        | {
            "unblinded": open_,
            "margin": review.margin,
            "alpha": review.alpha,
            "min_prompts": review.min_prompts,
            "releases": {names[arm.name]: arm.release_id for arm in review.arms} if open_ else {},
            "decided": {n: bool(v) for n, v in result.verdicts.items()} if open_ else {},
            "answers": [_answer(a, review, names, open_) for a in result.answers],
            "agreement": result.agreement,
            "people": _people(result),
            "ranking": [
                {
                    "name": names[s.name],
                    "log_odds": s.log_odds,
                    "interval": s.interval,
                }
                for s in result.ranking
            ]
            if result.ranking and open_
            else None,
            "skips": sum(v.act is Act.SKIP and v.kind is TaskKind.PAIR for v in votes),
        }
    )
    return facts


def _over(review: Review) -> str:
    """Why it ended without being decided; a decision rests on whole prompts only."""
    return "" if review.closed_because == DECIDED else review.closed_because


def _answer(a: Answered, review: Review, names: Mapping[str, str], open_: bool) -> Facts:
    candidate, champion = names[a.candidate], names[review.arms[0].name]
    # Blind, the letters alone decide which of the two comes first.
    turned = not open_ and champion < candidate
    p = a.preference
    return {
        "first": champion if turned else candidate,
        "second": candidate if turned else champion,
        "question": a.question,
        "for_first": a.losses if turned else a.wins,
        "ties": a.ties,
        "for_second": a.wins if turned else a.losses,
        "prompts": p.prompts,
        "share": None if p.mean is None else (1 - p.mean if turned else p.mean),
        "interval": _turn(p.interval if p.prompts else None, turned),
        "level": 1 - 2 * p.alpha,  # of the intervals
        "wilson": _turn(a.wilson, turned),
        "two_way": _turn(a.two_way, turned),
        "decided": p.shown_above or p.shown_below,
        "threshold": p.threshold if open_ else None,
        "needed": a.needed,
        "slices": [
            {
                "slice": s.slice,
                "for_first": s.losses if turned else s.wins,
                "ties": s.ties,
                "for_second": s.wins if turned else s.losses,
                "share": 1 - s.share if turned else s.share,
                "interval": _turn(s.interval, turned),
            }
            for s in a.slices
        ],
    }


def _people(result: Result) -> list[Facts]:
    return [
        {
            "reviewer": r.reviewer,
            "votes": r.votes,
            "skipped": r.skipped,
            "checks": r.checks.shown,
            "failed": r.checks.failed,
            "set_aside": r.set_aside,
            "seconds": r.seconds,
            "agreement": r.agreement,
        }
        for r in result.reviewers
    ]


def _turn(interval: Interval | None, turned: bool) -> Interval | None:
    if interval is None or not turned:
        return interval
    return (1 - interval[1], 1 - interval[0])
