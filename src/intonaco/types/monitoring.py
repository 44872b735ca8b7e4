"""What was noticed, why it happened, and what is planned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from intonaco.types.decisions import Reckoning
from intonaco.types.vocabulary import Action, Cause, Factor, Json


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
    share_before_interval: tuple[float, float] | None = None
    images_before: tuple[str, ...] = ()  # of the same cluster in the reference, as sample_images


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A detector's statement: what moved, since when, on what evidence, and who explains it."""

    finding_id: str
    service_id: str
    signal: str  # its name in the configuration
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
    of: str = ""  # what the signal is of: "prompt_embedding", "clip_score", "errors", "latency" …
    # ("silence": of a dead-man's switch)
    facts: Mapping[str, Json] = field(default_factory=dict)  # figures that a diagnosis can use


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
    last_at: float | None = None  # of its last value
    no_data: str = ""  # why the last answer was no number


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRound:
    """The probes drawn once by one release, and how far that is from its stored answers.

    ``ok``: True if all are as stored, False if one changed, None if nothing changed but not all
    were measured (or there was nothing to compare with). ``distances``: per probe, None if not
    measured; ``measures``: per probe "bits" (mean difference in 8-bit levels, any is a change),
    "pixels" (the same, beyond ``limits``) or "embedding" (cosine distance beyond ``limits``).
    ``missing``: why a probe was not measured. ``conditions``: environment, dtype and device that
    drew; ``stored_under``: those of the answers compared with, if they were others. ``images``:
    per changed probe (before, now), paths relative to the workspace."""

    round_id: str
    service_id: str
    release: str
    at: float
    why: str  # "schedule", "champion" (it became champion), "finding" or "asked"
    ok: bool | None
    changed: tuple[str, ...]
    distances: Mapping[str, float | None]
    measures: Mapping[str, str]
    limits: Mapping[str, float]
    missing: Mapping[str, str] = field(default_factory=dict)
    conditions: Mapping[str, str] = field(default_factory=dict)
    stored_under: Mapping[str, str] | None = None
    images: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    text: str = ""


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
    factor: Factor | None = None  # what is behind the cause; None: could not be told
    also: tuple[Cause, ...] = ()  # other causes at work at the same time
    factors: Mapping[str, Factor] = field(default_factory=dict)  # of the other causes
    excluded: Mapping[str, str] = field(default_factory=dict)  # cause or factor -> why it is not it
    incident: str = ""  # first diagnosis of the incident that this one belongs to


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
