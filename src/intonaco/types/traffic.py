"""Who gets what, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from intonaco.types.vocabulary import ArmRole, Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One arm of a routing table. Weights of the non-shadow arms sum to 1; a shadow arm's weight is
    the share of live requests copied to it. ``start``: of an arm of a split, where its users begin
    on the line from 0 to 1, so that they stay where they are whatever becomes of other arms; None:
    as the gateway stacks them."""

    name: str  # "champion", "challenger:NAME", "baseline", "holdback", "shadow:NAME", "returned:…"
    role: ArmRole
    release: str
    urls: tuple[str, ...]
    weight: float
    start: float | None = None


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

    def stable(self) -> Arm:
        """Who answers what another release cannot: the champion, or while a new champion bakes the
        one before it."""
        roles = {a.role: a for a in self.arms}
        champion = roles[ArmRole.CHAMPION]
        return champion if ArmRole.CHALLENGER in roles else roles.get(ArmRole.HOLDBACK, champion)


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
    table: str = ""  # digest of the table that it follows, "" if it does not say


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
    retry_after_s: float | None = None  # what a worker that refused it said


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
    condition: str | None = None  # path of the picture that an edit started from, if kept

    @property
    def key(self) -> str:
        return f"{self.gateway}/{self.gateway_epoch}/{self.seq}"

    @property
    def request_class(self) -> str:
        """Requests of one class cost about the same. Generations have the name that they had in
        state which was stored before edits were told apart."""
        kind = "" if self.task == "generate" else f"{self.task} "
        return f"{kind}{self.width}x{self.height}x{self.steps}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRecord:
    """A record with what the scorer saw in it. ``scores`` hold raw values ("clip": cosine).
    Embeddings are unit vectors, empty where there is none, and personal data. Of an image that was
    not looked at (none was kept, or it is not in the sample) nothing is said."""

    record: Record
    prompt_embedding: tuple[float, ...]
    scores: Mapping[str, float]
    extractor: str  # digest of the extractor
    image_embedding: tuple[float, ...] = ()
    condition_embedding: tuple[float, ...] = ()
    image_hash: str = ""  # perceptual hash of 64 bits, hex
    image_facts: Mapping[str, float] = field(default_factory=dict)  # "contrast", "black", "white"
    image_broken: bool | None = None  # whether the stored image cannot be read
    heads: str = ""  # digest of the heads that gave the scores beside "clip"


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
