"""Updates, rollouts and the work they ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from intonaco.types.monitoring import Plan
from intonaco.types.vocabulary import (
    Assessment,
    JobState,
    Json,
    Phase,
    RolloutStatus,
    StepKind,
    Verdict,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricResult:
    """One comparison of the gate: candidate minus champion unless ``absolute``."""

    metric: str
    slice: str | None
    champion: float | None
    candidate: float | None
    difference: float | None
    interval: tuple[float, float] | None
    margin: float | None
    assessment: Assessment
    guardrail: bool
    unit: str = ""
    method: str = ""  # how the interval was made


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    name: str  # recipe or technique name
    dataset_version: str | None = None
    release_id: str | None = None
    verdict: Verdict | None = None
    reasons: tuple[str, ...] = ()
    metrics: tuple[MetricResult, ...] = ()
    train_seconds: float = 0.0
    cost: float = 0.0
    registry_version: str | None = None
    attempt: int = 0  # which candidate for its trigger it is at the gate, from 1; 0: not there yet
    alpha: float | None = None  # that the gate judged it at


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """One durable run of the loop for one plan."""

    update_id: str
    service_id: str
    plan: Plan
    phase: Phase
    created_at: float
    phase_since: float
    champion: str | None  # release to beat, None for a first release
    candidates: tuple[Candidate, ...]
    chosen: str | None = None  # release id of the candidate that goes on
    rollout_id: str | None = None
    attempt: int = 1  # of the rollout; a retry halves alpha
    reason: str = ""  # of the final phase
    next_check_at: float = 0.0
    cancel_requested: bool = False
    arms: Mapping[str, str] = field(default_factory=dict)  # of a split: releases by arm, staged

    def candidate(self, name: str) -> Candidate:
        return next(c for c in self.candidates if c.name == name)

    @property
    def chosen_candidate(self) -> Candidate | None:
        return next((c for c in self.candidates if c.release_id == self.chosen), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutStep:
    """``weight``: share of users (canary), of live requests copied (shadow), of users kept on the
    previous champion (bake). A step is left for the next when nothing is harmful and both
    ``min_seconds`` have passed and ``min_units`` distinct challenger units (pairs, in shadow) were
    judged. ``min_seconds`` None: a pause until somebody resumes. ``deadline_s``: of an approval;
    after it ``on_timeout``, "abort" or "hold" (goes on waiting, and tells). ``replicas``: that the
    challenger has at this step of a rolling rollout."""

    kind: StepKind
    weight: float = 0.0
    min_seconds: float | None = 0.0
    min_units: int = 0
    deadline_s: float | None = None
    on_timeout: str = "abort"
    replicas: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """Replicas of a rolling rollout. ``challenger``: how many of ``total`` it is to have, and the
    users' share follows; the champion has the others. Never fewer than ``total - unavailable``
    answer, never more than ``total + surge`` are there."""

    total: int
    surge: int
    unavailable: int
    challenger: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricAssessment:
    """One online metric, challenger minus champion, valid at every look. ``units_ahead``: users of
    both arms (pairs in a shadow step) still expected until it is proven no worse than the margin,
    if the challenger is no different; None where that cannot be told. ``missing``: in words, what
    keeps it from being judged."""

    metric: str
    assessment: Assessment
    difference: float | None
    interval: tuple[float, float] | None  # confidence sequence, level 1 - alpha
    margin: float
    evidence_harm: float  # log e-value against "no worse than the tolerance"
    evidence_non_inferior: float  # log e-value against "worse than the margin"
    threshold: float  # log 1/alpha for harm
    units_challenger: int
    units_champion: int
    shadow_pairs: int = 0
    units_ahead: int | None = None
    missing: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """A step that was entered: when, and how it ended."""

    kind: StepKind
    weight: float
    entered_at: float
    left_at: float | None = None
    units: int = 0
    decision: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitArm:
    """A challenger of a split. ``start``: where its users begin on the line from 0 to 1, for as
    long as the split lasts. ``units``: its users that were judged. ``removed_at``: since when the
    champion answers its users, because of ``reason``. ``stuck_since``: since when it is not
    ready."""

    name: str
    release: str
    share: float
    start: float
    assessments: tuple[MetricAssessment, ...] = ()
    units: int = 0
    removed_at: float | None = None
    reason: str = ""
    stuck_since: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PairComparison:
    """Two arms of a split on the metric that decides: ``difference`` is ``first`` minus ``second``
    in the metric's own unit, with a confidence sequence."""

    first: str
    second: str
    difference: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A fixed split between the champion and several challengers. ``metric`` decides; ``then`` is
    what a winner gets: "promote", "ask" (a person's word first) or "none" (it is told). ``winner``:
    the arm that ended it, with ``text``: why."""

    metric: str
    arms: tuple[SplitArm, ...]
    then: str = "promote"
    pairs: tuple[PairComparison, ...] = ()
    winner: str | None = None
    text: str = ""

    @property
    def live(self) -> tuple[SplitArm, ...]:
        """The arms that are in it still."""
        return tuple(a for a in self.arms if a.removed_at is None)

    @property
    def champion_share(self) -> float:
        """Of the users that were the champion's from the start."""
        return 1.0 - sum(a.share for a in self.arms)

    def arm(self, name: str) -> SplitArm:
        return next(a for a in self.arms if a.name == name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """``promoted_at``: since when the challenger is champion; it is watched while the rollout goes
    on, and ``champion`` is the one before. ``promoted_epoch``: the last routing table before.
    ``returning``: why it goes back as soon as the champion can take the users, with
    ``returning_verdict``. ``stuck_since``: since when challenger or gateway do not do what the step
    asks for. ``overdue``: it was told that a deadline has passed; ``asked``: that a person is to
    say whether what is undecided will do. ``accepted``: metrics of which somebody, ``accepted_by``,
    said so. ``capacity``: of a rolling one. ``notice``: its cost, said before it began. ``split``:
    its arms, where there are several challengers; ``challenger`` is the winner then, the first of
    them until there is one. ``baseline``: workers of the champion's release that the equal slice
    has of its own, 0 where there is none."""

    rollout_id: str
    service_id: str
    update_id: str
    champion: str | None
    challenger: str
    steps: tuple[RolloutStep, ...]
    status: RolloutStatus
    started_at: float
    step: int = 0
    step_since: float = 0.0
    salt: str = ""
    alpha: float = 0.05
    max_seconds: float = 0.0
    attempt: int = 1
    history: tuple[StepResult, ...] = ()
    assessments: tuple[MetricAssessment, ...] = ()
    reason: str = ""
    ended_at: float | None = None
    verdict: Verdict | None = None  # once it has ended
    paused_at: float | None = None
    promoted_at: float | None = None
    promoted_epoch: int | None = None
    returning: str = ""
    returning_verdict: Verdict | None = None
    stuck_since: float | None = None
    stuck_seconds: float = 0.0  # that it may be stuck, 0: for ever
    overdue: bool = False
    on_inconclusive: str = "abort"  # at max_seconds: "abort", "hold", "ask"
    asked: bool = False
    accepted: tuple[str, ...] = ()
    accepted_by: str = ""
    capacity: Capacity | None = None
    notice: str = ""
    split: Split | None = None
    baseline: int = 0

    @property
    def challengers(self) -> tuple[str, ...]:
        """Releases that may answer users beside the champion: one, or those of a split that is not
        decided."""
        if self.split is None or self.split.winner is not None:
            return (self.challenger,)
        return tuple(a.release for a in self.split.live)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """External work. ``key`` is its idempotency key: the same key is never run twice."""

    key: str
    entrypoint: str  # python module run as ``python -m ENTRYPOINT JOB_FOLDER``
    payload: Mapping[str, Json]
    max_seconds: float = 0.0  # 0: no limit; the reservation's ceiling otherwise


@dataclass(frozen=True, slots=True, kw_only=True)
class JobHandle:
    key: str
    backend: str
    ref: Mapping[str, Json]  # what the backend needs to find it again


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    """``progress``: {"phase", "step", "total", "text"…}; ``result``: what the job wrote."""

    state: JobState
    progress: Mapping[str, Json] = field(default_factory=dict)
    result: Mapping[str, Json] = field(default_factory=dict)
    error: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingStatus:
    """A release as its serving backend sees it. ``attested`` is the id the worker worked out itself
    from what it loaded. ``replicas``: workers that were started for it, ready or not; ``ending``:
    that take no more and answer what they have. ``urls``: of those that are ready, in the order in
    which ``scale`` keeps them. ``deployed``: false if nobody asked for it, or it was retired."""

    release: str
    ready: bool
    urls: tuple[str, ...] = ()
    attested: str | None = None
    error: str = ""
    facts: Mapping[str, Json] = field(default_factory=dict)
    replicas: int = 0
    ending: int = 0
    deployed: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A state change: who, what, why."""

    at: float
    service_id: str
    kind: str  # "finding", "diagnosis", "plan", "update.phase", "rollout.step", ...
    subject: str  # id of what changed
    actor: str
    text: str
    data: Mapping[str, Json] = field(default_factory=dict)
    event_id: int = 0
