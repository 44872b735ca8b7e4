"""What was noticed, why it happened, and what is planned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from intonaco.types.decisions import Reckoning
from intonaco.types.vocabulary import Action, Cause, Json


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterMove:
    """A group of requests that explains a finding. Shares and intervals are of requests."""

    cluster: int
    share_before: float
    share_now: float
    share_now_interval: tuple[float, float]
    quality_inside: float | None  # mean score of the cluster's requests now
    quality_outside: float | None
    sample_prompts: tuple[str, ...]
    sample_images: tuple[str, ...]  # paths relative to the workspace
    centroid: tuple[float, ...]
    moved: bool = True  # False: one of the other clusters, kept so that items can be assigned


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A detector's statement: what moved, since when, on what evidence, and who explains it."""

    finding_id: str
    service_id: str
    signal: str  # "prompts", "clip_score", "errors", "latency"
    detector: str
    at: float
    request: int  # how many champion requests the signal had seen when it fired
    armed_at: int  # how many when it began to watch
    since: int  # estimate of the request at which the change began
    since_at: float
    evidence: float  # log e-value
    threshold: float  # log threshold
    value_before: float
    value_now: float
    unit: str  # of the values: "share", "cosine", "s", "distance"
    direction: str  # "up", "down", "moved"
    clusters: tuple[ClusterMove, ...] = ()
    release: str | None = None
    text: str = ""  # one sentence for a person


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalStatus:
    """What a signal looks like now (console, report)."""

    signal: str
    detector: str
    armed: bool
    armed_at: int | None
    requests: int
    value: float | None
    reference: float | None
    evidence: float
    threshold: float
    firing: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    diagnosis_id: str
    service_id: str
    at: float
    cause: Cause
    reason: str
    findings: tuple[Finding, ...]
    moved_share: float = 0.0  # share of traffic in the moved clusters now
    quality_gap: float = 0.0  # outside minus inside the moved clusters, in score units


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Chosen action with its reason, cost, benefit and budget check."""

    plan_id: str
    service_id: str
    at: float
    action: Action
    cause: Cause
    reason: str
    recipes: tuple[str, ...] = ()  # one candidate each
    estimated_cost: float = 0.0
    expected_benefit: float = 0.0
    budget_left: float = 0.0
    currency: str = "EUR"
    diagnosis_id: str | None = None
    clusters: tuple[ClusterMove, ...] = ()  # what to learn
    assemble: Mapping[str, Json] = field(default_factory=dict)  # changes of a new technique
    requested_by: str = "policy"
    would: Action | None = None  # what it would have done, were the mode not "watch"
    look_again_at: float | None = None  # judged again then, unless it is over before
    reserve: float = 0.0  # money set aside for it; its jobs are stopped where that ends
    reserve_hours: float = 0.0  # of the training machine
    limits: Mapping[str, float] = field(default_factory=dict)  # seconds a job: recipe, "evaluate"
    dataset_version: str | None = None  # to learn from, instead of the pool
    trigger: str | None = None  # what set it off, if no finding did
    reckoning: Reckoning | None = None
