"""What a reviewer is shown next. Pure: the same review and votes give the same tasks, on every
machine and after every restart.

Order and sides come from the review's key by HMAC-SHA256, differently for each reviewer. A task's
id says nothing of what is in it. Every so often, at a place that cannot be foreseen, comes an
attention check: a scrambled picture, one picture twice, a pair seen before with its sides swapped,
in turn.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from intonaco.types import TIE, Act, Review, TaskKind, Vote

BROKEN = "broken"  # stands for the arm of a scrambled picture
SIDES = ("left", "right")
_ROTATION = (TaskKind.BROKEN, TaskKind.SAME, TaskKind.REPEAT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Two pictures of one prompt and seed. ``left``, ``right``: arms, or ``BROKEN``."""

    task: str
    kind: TaskKind
    item: str
    left: str
    right: str

    def side(self, side: str) -> str:
        return self.left if side == "left" else self.right

    @property
    def intact(self) -> str:
        """The arm whose picture a scrambled one is made of."""
        return self.right if self.left == BROKEN else self.left

    def answer(self, choice: str) -> str:
        """What "left", "right" or "tie" means here, as a ``Vote`` holds it."""
        if choice == TIE or self.left == self.right:
            return choice
        return self.side(choice)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """``done``: tasks that stand; ``left``: pairs and checks that are still to be shown."""

    done: int
    left: int


def standing(votes: Sequence[Vote]) -> list[Vote]:
    """Votes and skips that were not taken back, in order; of several on one task the last."""
    kept: dict[tuple[str, str], Vote] = {}
    order: dict[str, list[tuple[str, str]]] = {}
    for vote in votes:
        mine = order.setdefault(vote.reviewer, [])
        if vote.act is Act.UNDO:
            if mine:
                kept.pop(mine.pop(), None)
            continue
        slot = (vote.reviewer, vote.task)
        if slot in kept:
            mine.remove(slot)
            del kept[slot]
        kept[slot] = vote
        mine.append(slot)
    return sorted(kept.values(), key=lambda v: v.vote_id)


def to_undo(votes: Sequence[Vote], reviewer: str) -> Vote | None:
    """The last act of a reviewer that still stands."""
    mine = [v for v in standing(votes) if v.reviewer == reviewer]
    return mine[-1] if mine else None


def upcoming(
    review: Review, reviewer: str, votes: Sequence[Vote]
) -> tuple[tuple[Task, ...], Progress]:
    """The next two tasks (the second to be loaded ahead), none when nothing is left, and how far
    the reviewer is. Pairs that enough reviewers judged are not shown; votes of those who are set
    aside do not count for that."""
    stand = standing(votes)
    aside = set_aside(votes)
    all_pairs = pairs(review, reviewer)
    mine = [v for v in stand if v.reviewer == reviewer]
    first = _next(review, reviewer, mine, stand, aside, all_pairs)
    counts = _counts(stand, aside)
    open_pairs = _open_pairs(review, all_pairs, mine, counts)
    period = _period(review)
    left = len(open_pairs) + (round(len(open_pairs) / period) if period else 0)
    progress = Progress(done=len(mine), left=max(left, 1) if first else 0)
    if first is None:
        return (), progress
    pretended = Vote(
        vote_id=max((v.vote_id for v in stand), default=0) + 1,
        at=0.0,
        reviewer=reviewer,
        key="",
        task=first.task,
        act=Act.VOTE,
        kind=first.kind,
        item=first.item,
        left=first.left,
        right=first.right,
    )
    second = _next(review, reviewer, [*mine, pretended], [*stand, pretended], aside, all_pairs)
    return ((first,) if second is None else (first, second)), progress


def find(review: Review, reviewer: str, votes: Sequence[Vote], task: str) -> Task | None:
    """The reviewer's task of that id: a pair, or a check that was due."""
    for each in pairs(review, reviewer):
        if each.task == task:
            return each
    mine = [v for v in standing(votes) if v.reviewer == reviewer]
    period = _period(review)
    if period:
        shown = sum(v.kind is TaskKind.PAIR for v in mine)
        for number in range(shown // period + 2):  # the one that comes next, too
            check = _check(review, reviewer, mine, number)
            if check is not None and check.task == task:
                return check
    return None


def pairs(review: Review, reviewer: str) -> list[Task]:
    """All pairs of the review in this reviewer's order and with this reviewer's sides."""
    found = []
    for item in review.items:
        for a, b in combinations((arm.name for arm in review.arms), 2):
            name = _name(review, reviewer, "pair", item.item, a, b)
            left, right = (b, a) if _bit(review, reviewer, "side", item.item, a, b) else (a, b)
            found.append(
                Task(task=name, kind=TaskKind.PAIR, item=item.item, left=left, right=right)
            )
    return sorted(found, key=lambda t: _digest(review, reviewer, "order", t.task))


def _next(
    review: Review,
    reviewer: str,
    mine: Sequence[Vote],
    stand: Sequence[Vote],
    aside: frozenset[str],
    all_pairs: Sequence[Task],
) -> Task | None:
    open_pairs = _open_pairs(review, all_pairs, mine, _counts(stand, aside))
    shown = sum(v.kind is TaskKind.PAIR for v in mine)
    taken = {v.task for v in mine}
    period = _period(review)
    if period:
        for number in range(shown // period + 1):
            if shown < _due(review, reviewer, number):
                break
            check = _check(review, reviewer, mine, number)
            if check is not None and check.task not in taken:
                return check
    return open_pairs[0] if open_pairs else None


def _open_pairs(
    review: Review,
    all_pairs: Sequence[Task],
    mine: Sequence[Vote],
    counts: Mapping[tuple[str, frozenset[str]], int],
) -> list[Task]:
    taken = {v.task for v in mine}
    return [
        t
        for t in all_pairs
        if t.task not in taken
        and counts.get((t.item, frozenset((t.left, t.right))), 0) < review.votes_per_pair
    ]


def _counts(stand: Sequence[Vote], aside: frozenset[str]) -> dict[tuple[str, frozenset[str]], int]:
    counts: dict[tuple[str, frozenset[str]], int] = {}
    for v in stand:
        if v.kind is TaskKind.PAIR and v.act is Act.VOTE and v.reviewer not in aside:
            slot = (v.item, frozenset((v.left, v.right)))
            counts[slot] = counts.get(slot, 0) + 1
    return counts


def _period(review: Review) -> int:
    """Pairs for each check; 0 without checks."""
    return max(1, round((1 - review.checks) / review.checks)) if review.checks > 0 else 0


def _due(review: Review, reviewer: str, number: int) -> int:
    """After how many pairs a check comes: somewhere within its own stretch of them."""
    period = _period(review)
    offset = int(_digest(review, reviewer, "due", str(number))[:8], 16) % period
    return number * period + 1 + offset


def _check(review: Review, reviewer: str, mine: Sequence[Vote], number: int) -> Task | None:
    """The check of a number; None for a repeat of which there is nothing to repeat yet."""
    name = _name(review, reviewer, "check", str(number))
    kind = _ROTATION[number % len(_ROTATION)]
    swap = _bit(review, reviewer, "side of check", str(number))
    draw = int(_digest(review, reviewer, "check of", str(number))[:12], 16)
    if kind is TaskKind.REPEAT:
        before = [v for v in mine if v.kind is TaskKind.PAIR][: _due(review, reviewer, number) - 1]
        voted = [v for v in before if v.act is Act.VOTE]
        if not voted:
            return None
        again = voted[draw % len(voted)]
        # What was taken back changes which pair is repeated: another pair has another id, so
        # neither a browser's cache nor a late answer takes the one for the other.
        name = _name(review, reviewer, "check", str(number), again.task)
        return Task(task=name, kind=kind, item=again.item, left=again.right, right=again.left)
    item = review.items[draw % len(review.items)].item
    arm = review.arms[draw // len(review.items) % len(review.arms)].name
    if kind is TaskKind.SAME:
        return Task(task=name, kind=kind, item=item, left=arm, right=arm)
    left, right = (BROKEN, arm) if swap else (arm, BROKEN)
    return Task(task=name, kind=kind, item=item, left=left, right=right)


def _digest(review: Review, *parts: str) -> str:
    said = "\x1f".join((review.review_id, *parts)).encode()
    return hmac.digest(bytes.fromhex(review.key), said, "sha256").hex()


def _name(review: Review, *parts: str) -> str:
    return _digest(review, "task", *parts)[:20]


def _bit(review: Review, *parts: str) -> bool:
    return int(_digest(review, *parts)[0], 16) % 2 == 1


# ------------------------------------------------------------------ attention


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """A reviewer's checks. ``failed`` of ``shown``."""

    shown: int
    failed: int
    by_kind: Mapping[TaskKind, tuple[int, int]]  # (failed, shown)

    @property
    def set_aside(self) -> bool:
        """The rule: at least three checks, and more than a third of them failed, or more than half
        of the scrambled ones: who calls everything a tie fails no other. Failed repeats count for
        a third at most, so who is only torn between close pictures is not set aside."""
        repeats = self.by_kind[TaskKind.REPEAT][0]
        counted = self.failed - repeats + min(repeats, self.shown // 3)
        blind, scrambled = self.by_kind[TaskKind.BROKEN]
        return self.shown >= 3 and (3 * counted > self.shown or 2 * blind > scrambled)


def attention(votes: Sequence[Vote], reviewer: str) -> Attention:
    """How a reviewer did on the checks, by the votes that stand; a skipped check is not counted.

    Failed are: a scrambled picture not answered with the other one (in the first question), one
    picture twice not called a tie (in any), a repeated pair whose answer (in the first question)
    turned from one release to the other.
    """
    mine = [v for v in standing(votes) if v.reviewer == reviewer and v.act is Act.VOTE]
    earlier = {(v.item, frozenset((v.left, v.right))): v for v in mine if v.kind is TaskKind.PAIR}
    tally = {kind: [0, 0] for kind in _ROTATION}
    for v in mine:
        if v.kind is TaskKind.PAIR or not v.answers:
            continue
        first = next(iter(v.answers.values()))
        if v.kind is TaskKind.BROKEN:
            failed = first in (BROKEN, TIE)
        elif v.kind is TaskKind.SAME:
            failed = any(a != TIE for a in v.answers.values())
        else:
            once = earlier.get((v.item, frozenset((v.left, v.right))))
            if once is None or not once.answers:
                continue
            before = next(iter(once.answers.values()))
            failed = TIE not in (first, before) and first != before
        tally[v.kind][0] += failed
        tally[v.kind][1] += 1
    return Attention(
        shown=sum(t[1] for t in tally.values()),
        failed=sum(t[0] for t in tally.values()),
        by_kind={kind: (t[0], t[1]) for kind, t in tally.items()},
    )


def set_aside(votes: Sequence[Vote]) -> frozenset[str]:
    """Reviewers whose votes do not count."""
    return frozenset(
        name for name in {v.reviewer for v in votes} if attention(votes, name).set_aside
    )


def written(task: Task, choices: Mapping[str, str], seconds: float) -> Vote:
    """The vote of ``choices`` (question to "left", "right" or "tie"), to be written down."""
    return replace(
        skipped(task, seconds),
        act=Act.VOTE,
        answers={question: task.answer(choice) for question, choice in choices.items()},
    )


def skipped(task: Task, seconds: float) -> Vote:
    """The skip of a task, to be written down."""
    return Vote(
        vote_id=0,
        at=0.0,
        reviewer="",
        key="",
        task=task.task,
        act=Act.SKIP,
        kind=task.kind,
        item=task.item,
        left=task.left,
        right=task.right,
        seconds=seconds,
    )


def labels(review: Review) -> Mapping[str, str]:
    """What arms are called as long as the review is blind: A, B, ... in an order of the key's."""
    names = sorted((arm.name for arm in review.arms), key=lambda n: _digest(review, "label", n))
    return {name: chr(ord("A") + k) for k, name in enumerate(names)}
