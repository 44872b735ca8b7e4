"""The nouns. One meaning each; ``docs/glossary.md`` says them in words.

Everything here is an immutable value. Times are seconds since the Unix epoch, durations seconds,
money is in the service's currency. Ids are opaque strings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

Json = Any  # JSON value as ``json.loads`` returns it


# ------------------------------------------------------------------------------------ vocabulary


class Verdict(StrEnum):
    """Of a gate or a rollout. Missing data is never ``PASS``."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    ERROR = "error"


class Assessment(StrEnum):
    """Of one metric, challenger against champion."""

    HARMFUL = "harmful"
    NON_INFERIOR = "non_inferior"
    SUPERIOR = "superior"
    UNDECIDED = "undecided"
    NO_DATA = "no_data"


class Cause(StrEnum):
    """Why a finding happened (the table in ``docs/concepts/causes.md``)."""

    PERFORMANCE_DEGRADATION = "performance_degradation"
    DATA_DRIFT = "data_drift"
    CONCEPT_DRIFT = "concept_drift"
    QUALITY_DECLINE = "quality_decline"
    NEW_DATA = "new_data"
    NEW_TECHNIQUE = "new_technique"
    CODE_CHANGE = "code_change"
    BROKEN_FORMAT = "broken_format"
    FIRST_RELEASE = "first_release"
    REQUESTED = "requested"
    UNKNOWN = "unknown"


class Action(StrEnum):
    """What a plan does."""

    FINE_TUNE = "fine_tune"
    FULL_RETRAIN = "full_retrain"
    ASSEMBLE = "assemble"  # a release from existing weights: new sampler, new library versions
    ROLL_BACK = "roll_back"
    WATCH = "watch"
    COLLECT_DATA = "collect_data"
    TELL = "tell"  # escalate to a person

    @property
    def trains(self) -> bool:
        return self in (Action.FINE_TUNE, Action.FULL_RETRAIN)

    @property
    def makes_update(self) -> bool:
        return self.trains or self is Action.ASSEMBLE


class Phase(StrEnum):
    """Where an update is. The last five are final."""

    DATASET = "dataset"
    TRAIN = "train"
    EVALUATE = "evaluate"
    REVIEW = "review"
    GATE = "gate"
    REGISTER = "register"
    STAGE = "stage"
    APPROVE = "approve"
    ROLLOUT = "rollout"
    BAKE = "bake"
    PROMOTED = "promoted"
    REJECTED = "rejected"
    ROLLED_BACK = "rolled_back"
    CANCELLED = "cancelled"
    FAILED = "failed"

    @property
    def final(self) -> bool:
        return self in _FINAL_PHASES


_FINAL_PHASES = frozenset(
    {Phase.PROMOTED, Phase.REJECTED, Phase.ROLLED_BACK, Phase.CANCELLED, Phase.FAILED}
)


class RolloutStatus(StrEnum):
    """Where a rollout is. The last three are final."""

    RUNNING = "running"
    PAUSED = "paused"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    INCONCLUSIVE = "inconclusive"

    @property
    def final(self) -> bool:
        return self in (
            RolloutStatus.PROMOTED,
            RolloutStatus.ROLLED_BACK,
            RolloutStatus.INCONCLUSIVE,
        )


class StepKind(StrEnum):
    SHADOW = "shadow"
    CANARY = "canary"


class JobState(StrEnum):
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        return self is not JobState.RUNNING


class ArmRole(StrEnum):
    CHAMPION = "champion"
    CHALLENGER = "challenger"
    BASELINE = "baseline"
    HOLDBACK = "holdback"
    SHADOW = "shadow"


class Outcome(StrEnum):
    """Of one attempt at one worker."""

    OK = "ok"
    ERROR = "error"  # the worker answered with a server error or broke the connection
    TIMEOUT = "timeout"
    REJECTED = "rejected"  # the worker was full (429) or draining (503)
    INVALID = "invalid"  # the request itself is wrong (4xx): nobody's fault but the client's
    CANCELLED = "cancelled"


# ------------------------------------------------------------------------------------ releases


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingSpec:
    """Everything that decides an image in service. Its canonical JSON's sha256 is the release id.

    ``weights`` maps each file of the pipeline folder (weights and configuration, POSIX relative
    path) to the sha256 of its bytes.
    """

    pipeline_class: str
    weights: Mapping[str, str]
    scheduler: str
    generation: Mapping[str, Json]  # steps, guidance_scale, width, height
    adapters: tuple[str, ...] = ()
    fused: bool = False
    dtype: str = "float32"
    attention: str = "default"  # diffusers' attention backend
    compile: bool = False
    options: tuple[str, ...] = ()  # of "channels_last", "vae_slicing", "vae_tiling", sorted
    safety_filter: str = "none"
    environment: str = ""  # lock digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where a release comes from. Not part of its id."""

    created_at: float
    parent: str | None = None
    recipe: str | None = None
    dataset_version: str | None = None
    training_job: str | None = None
    update_id: str | None = None
    code_revision: str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    release_id: str
    service_id: str
    serving: ServingSpec
    provenance: Provenance
    path: str  # folder of the pipeline, relative to the workspace

    @property
    def short(self) -> str:
        return self.release_id[:10]


# ------------------------------------------------------------------------------------ data


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetVersion:
    """A content-addressed set of (image, caption) items.

    ``version`` is the sha256 of the sorted list of (path, sha256) pairs, metadata included;
    ``dvc_md5`` the id that DVC gives the same tree (without the ``.dir`` ending).
    """

    version: str
    dvc_md5: str
    name: str
    items: int
    bytes: int
    topics: Mapping[str, int] = field(default_factory=dict)  # items per topic
    parents: tuple[str, ...] = ()
    replay: float = 0.0  # share of items replayed from the parents
    created_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetDiff:
    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]


# ------------------------------------------------------------------------------------ traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One arm of a routing table. Weights of the non-shadow arms sum to 1; a shadow arm's weight is
    the share of live requests copied to it."""

    name: str  # "champion", "challenger:NAME", "baseline", "holdback", "shadow:NAME"
    role: ArmRole
    release: str
    urls: tuple[str, ...]
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingTable:
    """What gateways follow. They refuse an epoch older than their own."""

    service_id: str
    epoch: int
    salt: str
    arms: tuple[Arm, ...]
    untrip: tuple[str, ...] = ()  # releases whose breaker this table closes again
    reason: str = ""

    def champion(self) -> Arm:
        return next(a for a in self.arms if a.role is ArmRole.CHAMPION)


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerTrip:
    release: str
    at: float
    first_failure_at: float
    failures: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What a gateway says of itself: the table it follows, what is in flight, what tripped."""

    epoch: int
    salt: str
    weights: Mapping[str, float]  # effective, per arm name (0 for a tripped release)
    in_flight: Mapping[str, int]  # per release id
    trips: tuple[BreakerTrip, ...]
    requests: int  # user requests answered since the gateway started
    failed: int  # of them, answered with a server error


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try of one request at one worker. Times in seconds."""

    arm: str
    release: str
    outcome: Outcome
    started_at: float
    seconds: float
    queue_seconds: float = 0.0
    service_seconds: float = 0.0  # encode + denoise + decode of the batch it was in
    encode_seconds: float = 0.0
    denoise_seconds: float = 0.0
    decode_seconds: float = 0.0
    batch_size: int = 0
    padded_size: int = 0
    gpu_seconds: float = 0.0  # this image's share of the device's time
    peak_memory_bytes: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One generation as the gateway saw it. Key: (gateway, gateway_epoch, seq)."""

    gateway: str
    gateway_epoch: int
    seq: int
    service_id: str
    request_id: str
    at: float
    unit: str  # user, else key, else request: who is randomised
    assigned_arm: str
    probability: float  # of the assigned arm for this unit
    routing_epoch: int
    salt: str
    attempts: tuple[Attempt, ...]
    served_by: str | None  # release id, None if nobody could
    served_arm: str | None
    status: int  # HTTP status the user got
    seconds: float  # end to end
    prompt: str
    seed: int
    steps: int
    guidance_scale: float
    width: int
    height: int
    task: str = "generate"  # or "edit": with a conditioning image
    image: str | None = None  # path relative to the workspace, if kept
    shadow_of: str | None = None  # request id, for the copy that a shadow arm answered
    probe: bool = False
    prompt_form: str = "text"  # what ``prompt`` is: "text", "hash" (HMAC, hex) or "none"

    @property
    def key(self) -> str:
        return f"{self.gateway}/{self.gateway_epoch}/{self.seq}"

    @property
    def request_class(self) -> str:
        return f"{self.width}x{self.height}x{self.steps}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRecord:
    """A record with what the scorer saw in it. ``scores`` hold raw values ("clip": cosine)."""

    record: Record
    prompt_embedding: tuple[float, ...]
    scores: Mapping[str, float]
    extractor: str  # digest of the extractor


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """What a user said of an image, or did with it. Key: (gateway, gateway_epoch, seq).

    ``kind``: "explicit" with a ``vote`` ("up", "down", or "1" to "5" stars), "regenerate" or
    "download" without one. ``unit`` is an opaque digest."""

    gateway: str
    gateway_epoch: int
    seq: int
    service_id: str
    at: float
    request_id: str  # of the record of that image
    made_at: float
    assigned_arm: str
    release: str
    unit: str
    kind: str
    vote: str | None


# ------------------------------------------------------------------------------------ monitoring


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


# ------------------------------------------------------------------------------------ decision


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


# ------------------------------------------------------------------------------------ updates


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

    def candidate(self, name: str) -> Candidate:
        return next(c for c in self.candidates if c.name == name)

    @property
    def chosen_candidate(self) -> Candidate | None:
        return next((c for c in self.candidates if c.release_id == self.chosen), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutStep:
    """``weight``: share of users (canary) or of live requests copied (shadow). A step is left for
    the next when nothing is harmful and both ``min_seconds`` have passed and ``min_units`` distinct
    challenger units (pairs, in shadow) were judged."""

    kind: StepKind
    weight: float
    min_seconds: float = 0.0
    min_units: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricAssessment:
    """One online metric, challenger minus champion, valid at every look."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """A step that was entered: when, with what epoch, and how it ended."""

    kind: StepKind
    weight: float
    entered_at: float
    left_at: float | None = None
    units: int = 0
    decision: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
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


# ------------------------------------------------------------------------------------ jobs, events


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
    from what it loaded."""

    release: str
    ready: bool
    urls: tuple[str, ...] = ()
    attested: str | None = None
    error: str = ""
    facts: Mapping[str, Json] = field(default_factory=dict)


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
