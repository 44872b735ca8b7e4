"""What the votes of a review say, and its verdict. Pure.

The verdict may be looked at after every vote: it rests on bets that are valid at every look, one
observation for each prompt, taken in the order in which prompts got their last vote. It is about
*these* reviewers and all prompts like those shown; the two-way interval beside it says what may be
expected of other reviewers, and decides nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from intonaco.review.agreement import krippendorff_alpha
from intonaco.review.preferences import Duel, Strength, bradley_terry
from intonaco.review.session import Attention, attention, set_aside, standing
from intonaco.review.statistics import Interval, Preference, preference, two_way, wilson
from intonaco.types import TIE, Act, Review, TaskKind, Verdict, Vote

BOOTSTRAP_DRAWS = 2000
_WORST_FIRST = (Verdict.ERROR, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS)


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceVotes:
    """Votes on one part of the prompts, ties half for either. ``interval``: at the end, fixed n,
    Wilson's, of votes that are not ties."""

    slice: str
    wins: int
    losses: int
    ties: int
    share: float
    interval: Interval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """One question about one candidate against the first arm. ``wins``: for the candidate."""

    candidate: str
    question: str
    wins: int
    losses: int
    ties: int
    preference: Preference  # over prompts, at every look
    wilson: Interval | None  # of votes that are not ties, as if they were independent
    two_way: Interval | None  # other prompts and other reviewers, for one look at the end
    needed: int | None  # votes until it should be decided; None: not with those that are left
    slices: tuple[SliceVotes, ...]

    @property
    def votes(self) -> int:
        return self.wins + self.losses + self.ties


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewerRow:
    reviewer: str
    votes: int
    skipped: int
    checks: Attention
    set_aside: bool
    seconds: float | None  # median, that a pair was looked at
    agreement: float | None  # share of pairs answered as each other reviewer of the pair did


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """``agreement``: Krippendorff's α (ordinal: against, tie, for) by question. ``verdicts`` and
    ``reasons`` by candidate; None while it is open."""

    votes: int  # of pairs, that count, at most as many a pair as were asked for
    wanted: int  # of pairs, in all
    reviewers: tuple[ReviewerRow, ...]
    answers: tuple[Answered, ...]
    agreement: Mapping[str, float | None]
    ranking: tuple[Strength, ...] | None  # more than two releases, the first question
    verdicts: Mapping[str, Verdict | None]
    reasons: Mapping[str, str]

    @property
    def counted(self) -> int:
        """Reviewers whose votes count."""
        return sum(1 for r in self.reviewers if r.votes and not r.set_aside)

    @property
    def decided(self) -> bool:
        return all(v is not None for v in self.verdicts.values())


def review_verdict(
    answered: Sequence[Answered], *, counted: int, review: Review, over: str = ""
) -> tuple[Verdict | None, str]:
    """The verdict on one candidate from its answers (one a question) and the sentence that says
    why; (None, what is missing) while the review goes on. ``counted``: reviewers whose votes count.
    ``over``: why no more votes come ("nobody voted in time"); then what is open is INCONCLUSIVE.

    PASS: in every question shown to be preferred in more than one half less the margin. All must
    hold, so none needs a correction of alpha. FAIL: shown to be preferred in less in any of them.
    Nothing is decided by fewer reviewers than the review asks for.
    """
    if not answered or [a.question for a in answered] != list(review.questions):
        return Verdict.ERROR, "not every question of the review was judged"
    said = [_one(a) for a in answered]
    worst = min((v for v, _ in said), key=_WORST_FIRST.index)
    text = "; ".join(t for v, t in said if v is worst)
    enough = counted >= review.reviewers
    missing = f"{counted} of at least {review.reviewers} reviewers"
    if worst is Verdict.FAIL and enough:
        return Verdict.FAIL, text
    if worst is Verdict.PASS and enough:
        return Verdict.PASS, text
    if not enough:
        text = f"{missing}; {text}"
    if over:
        return Verdict.INCONCLUSIVE, f"{over}: {text}"
    return None, text


def _one(a: Answered) -> tuple[Verdict, str]:
    p = a.preference
    named = "reviewers" if a.question == "overall" else f"on {a.question}, reviewers"
    if p.mean is None:
        return Verdict.INCONCLUSIVE, f"{named} judged no prompt to the end yet"
    low, high = p.interval
    text = (
        f"{named} preferred it {a.wins} : {a.losses} with {a.ties} ties, "
        f"{100 * p.mean:.1f} % ({100 * low:.1f} to {100 * high:.1f}) over {p.prompts} prompts"
    )
    wanted = f"{100 * p.threshold:.0f} %"
    if p.shown_below:
        return Verdict.FAIL, f"{text}: less than {wanted}"
    if p.shown_above:
        return Verdict.PASS, f"{text}: more than {wanted}"
    return Verdict.INCONCLUSIVE, f"{text}: not shown to be on either side of {wanted}"


def result_of(
    review: Review, votes: Sequence[Vote], *, over: str = "", draws: int = BOOTSTRAP_DRAWS
) -> Result:
    """Everything the votes say. ``over``: why no more come, "" while the review goes on; then
    prompts that did not get all their votes are taken too. ``draws``: of the two-way bootstrap; 0
    leaves it out. Raises nothing for what is missing."""
    aside = set_aside(votes)
    stand = standing(votes)
    counted = [
        v
        for v in stand
        if v.kind is TaskKind.PAIR and v.act is Act.VOTE and v.reviewer not in aside
    ]
    first = review.arms[0].name
    alpha = review.alpha / max(1, len(review.candidates))
    rows = _reviewers(stand, votes, counted, aside)
    enough = sum(1 for r in rows if r.votes and not r.set_aside)
    answers: list[Answered] = []
    verdicts: dict[str, Verdict | None] = {}
    reasons: dict[str, str] = {}
    for candidate in review.candidates:
        of_pair = [v for v in counted if {v.left, v.right} == {first, candidate}]
        mine = [
            _answered(review, of_pair, candidate, question, alpha, bool(over), draws)
            for question in review.questions
        ]
        answers += mine
        verdicts[candidate], reasons[candidate] = review_verdict(
            mine, counted=enough, review=review, over=over
        )
    pairs = len(review.arms) * (len(review.arms) - 1) // 2
    of_pairs = Counter((v.item, frozenset((v.left, v.right))) for v in counted)
    return Result(
        votes=sum(min(n, review.votes_per_pair) for n in of_pairs.values()),
        wanted=len(review.items) * pairs * review.votes_per_pair,
        reviewers=rows,
        answers=tuple(answers),
        agreement={q: _agreement(counted, q, review) for q in review.questions},
        ranking=_ranking(review, counted) if len(review.arms) > 2 else None,
        verdicts=verdicts,
        reasons=reasons,
    )


def _answered(
    review: Review,
    votes: Sequence[Vote],
    candidate: str,
    question: str,
    alpha: float,
    over: bool,
    draws: int,
) -> Answered:
    """``votes``: that count, of this candidate and the first arm, in order."""
    prompts = {item.item: item.prompt_id for item in review.items}
    slices = {item.item: item.slice for item in review.items}
    asked = Counter(item.prompt_id for item in review.items)
    scored = [
        (v, prompts[v.item], score_of(v.answers[question], candidate))
        for v in votes
        if question in v.answers and v.item in prompts
    ]
    by_prompt: dict[str, list[float]] = {}
    whole: list[str] = []  # prompts in the order in which they got their last vote
    for _, prompt, score in scored:
        known_of = by_prompt.setdefault(prompt, [])
        if len(known_of) == review.votes_per_pair * asked[prompt]:
            continue  # one too many, cast by two at once: what was looked at must not change
        known_of.append(score)
        if len(known_of) == review.votes_per_pair * asked[prompt]:
            whole.append(prompt)
    if over:
        whole += [p for p in by_prompt if p not in set(whole)]
    known = preference(
        [float(np.mean(by_prompt[p])) for p in whole],
        0.5 - review.margin,
        alpha=alpha,
        from_prompt=review.min_prompts,
    )
    tally = Counter(score for _, _, score in scored)
    wins, ties, losses = tally[1.0], tally[0.5], tally[0.0]
    needed = known.needed
    if needed:
        # Prompts that lack the fewest votes come first.
        lacking = sorted(
            review.votes_per_pair * count - len(by_prompt.get(prompt, ()))
            for prompt, count in asked.items()
            if prompt not in set(whole)
        )
        needed = sum(lacking[:needed]) if needed <= len(lacking) else None
    return Answered(
        candidate=candidate,
        question=question,
        wins=wins,
        losses=losses,
        ties=ties,
        preference=known,
        wilson=wilson(wins, wins + losses, alpha=alpha),
        two_way=two_way(
            [s for _, _, s in scored],
            [p for _, p, _ in scored],
            [v.reviewer for v, _, _ in scored],
            alpha=alpha,
            draws=draws,
            rng=np.random.default_rng(0),
        )
        if scored and draws
        else None,
        needed=None if over and needed else needed,
        slices=_slices([(slices[v.item], s) for v, _, s in scored], alpha),
    )


def score_of(answer: str, candidate: str) -> float:
    """1 for the candidate, 0 against it, one half for a tie."""
    return 0.5 if answer == TIE else float(answer == candidate)


def _slices(scored: Sequence[tuple[str, float]], alpha: float) -> tuple[SliceVotes, ...]:
    found = []
    for name in sorted({s for s, _ in scored}):
        scores = [score for s, score in scored if s == name]
        wins, losses = scores.count(1.0), scores.count(0.0)
        found.append(
            SliceVotes(
                slice=name,
                wins=wins,
                losses=losses,
                ties=scores.count(0.5),
                share=float(np.mean(scores)),
                interval=wilson(wins, wins + losses, alpha=alpha),
            )
        )
    return tuple(found)


def _reviewers(
    stand: Sequence[Vote],
    votes: Sequence[Vote],
    counted: Sequence[Vote],
    aside: frozenset[str],
) -> tuple[ReviewerRow, ...]:
    names = list(dict.fromkeys(v.reviewer for v in votes))
    rows = []
    for name in names:
        mine = [v for v in stand if v.reviewer == name and v.kind is TaskKind.PAIR]
        voted = [v for v in mine if v.act is Act.VOTE]
        rows.append(
            ReviewerRow(
                reviewer=name,
                votes=len(voted),
                skipped=sum(v.act is Act.SKIP for v in mine),
                checks=attention(votes, name),
                set_aside=name in aside,
                seconds=median(v.seconds for v in voted) if voted else None,
                agreement=_with_others(voted, [v for v in counted if v.reviewer != name]),
            )
        )
    return tuple(rows)


def _with_others(mine: Sequence[Vote], others: Sequence[Vote]) -> float | None:
    """Share of equal answers with each other vote on the same pair, over all questions."""
    theirs: dict[tuple[str, frozenset[str]], list[Vote]] = {}
    for v in others:
        theirs.setdefault((v.item, frozenset((v.left, v.right))), []).append(v)
    same = [
        v.answers.get(q) == a
        for v in mine
        for other in theirs.get((v.item, frozenset((v.left, v.right))), ())
        for q, a in other.answers.items()
    ]
    return float(np.mean(same)) if same else None


def _agreement(counted: Sequence[Vote], question: str, review: Review) -> float | None:
    """Each pair of releases on each item is a unit; the value says for which of the two."""
    order = {arm.name: k for k, arm in enumerate(review.arms)}
    units: dict[tuple[str, str, str], int] = {}
    people: dict[str, int] = {}
    given = []
    for v in counted:
        if question not in v.answers:
            continue
        a, b = sorted((v.left, v.right), key=order.__getitem__)
        unit = units.setdefault((v.item, a, b), len(units))
        person = people.setdefault(v.reviewer, len(people))
        given.append((person, unit, score_of(v.answers[question], b)))
    if not given:
        return None
    ratings = np.full((len(people), len(units)), np.nan)
    for person, unit, value in given:
        ratings[person, unit] = value
    return krippendorff_alpha(ratings, level="ordinal")


def _ranking(review: Review, counted: Sequence[Vote]) -> tuple[Strength, ...] | None:
    prompts = {item.item: item.prompt_id for item in review.items}
    question = review.questions[0]
    duels = [
        Duel(
            first=v.left,
            second=v.right,
            score=score_of(v.answers[question], v.left),
            cluster=prompts[v.item],
        )
        for v in counted
        if question in v.answers and v.item in prompts
    ]
    return bradley_terry([arm.name for arm in review.arms], duels, alpha=review.alpha)
