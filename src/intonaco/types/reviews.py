"""People's look at pictures of two or more releases, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from intonaco.types.vocabulary import Verdict

TIE = "tie"


class TaskKind(StrEnum):
    """What a reviewer is shown. All but the first are attention checks and count for nothing
    else."""

    PAIR = "pair"
    SAME = "same"  # one picture twice: the answer is a tie
    BROKEN = "broken"  # a picture beside a scrambled one
    REPEAT = "repeat"  # a pair that the reviewer judged before, sides swapped


class Act(StrEnum):
    """What a reviewer did. An undo takes back the reviewer's last act that still stands."""

    VOTE = "vote"
    SKIP = "skip"
    UNDO = "undo"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewArm:
    name: str  # "champion", or a candidate's
    release_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewItem:
    """A prompt with one seed, drawn by every arm."""

    item: str
    prompt_id: str
    prompt: str
    slice: str
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """What is asked of reviewers, fixed when the review begins. The first arm is what the others
    are held against. ``key`` (hex) decides order and sides; who has it can unblind the review."""

    review_id: str
    service_id: str
    created_at: float
    deadline: float
    arms: tuple[ReviewArm, ...]
    items: tuple[ReviewItem, ...]
    questions: tuple[str, ...]
    key: str
    reviewers: int = 2  # at least so many must have counted votes
    votes_per_pair: int = 2
    min_prompts: int = 20
    margin: float = 0.1  # of the share of preferences, below one half
    alpha: float = 0.05
    checks: float = 0.15  # of what is shown, about
    guide: str = ""
    update_id: str | None = None
    closed_at: float | None = None
    closed_because: str = ""
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)  # by candidate, once closed
    reasons: Mapping[str, str] = field(default_factory=dict)

    @property
    def candidates(self) -> tuple[str, ...]:
        return tuple(arm.name for arm in self.arms[1:])


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """One act of a reviewer, as it was written down. ``left``, ``right``: names of arms, or
    "broken". ``answers``: question to the arm preferred, or "tie"; of a check with one arm on both
    sides, to "left", "right" or "tie"."""

    vote_id: int
    at: float
    reviewer: str
    key: str  # made by who voted: the same key is written once
    task: str
    act: Act
    kind: TaskKind = TaskKind.PAIR
    item: str = ""
    left: str = ""
    right: str = ""
    answers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0  # that the reviewer looked


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """A link to one review, for one person. ``role``: "reviewer" votes, "lead" sees the result."""

    name: str
    role: str
    at: float
    revoked_at: float | None = None
