"""``model`` and ``serving``: what is served, how, and to whom."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from intonaco.config.base import Count, Positive, Section, Share
from intonaco.declared import UPSTREAM_NAME, Upstream


class Generation(Section):
    """Defaults of a request; part of the release."""

    steps: Count = 28
    guidance_scale: float = 5.0
    width: Count = 1024
    height: Count = 1024


class Model(Section):
    """``path``: pipeline folder to start from, a URL of one (``s3://…``), or
    ``hf://ORG/NAME@COMMIT``; none: the first update trains it. ``attention``: a backend of
    diffusers, such as "native" or "flash". ``adapters``: LoRAs under ``adapters/`` of that folder,
    each ``NAME`` or ``NAME:SCALE``; ``fused`` adds them to the weights, about 1.5 times as fast."""

    name: str = "model"
    generation: Generation = Generation()
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    attention: str = "default"
    compile: bool = False
    options: tuple[Literal["channels_last", "vae_slicing", "vae_tiling"], ...] = ()
    path: str | None = None
    adapters: tuple[str, ...] = ()
    fused: bool = False


class Limits(Section):
    """Bounds of the public API. ``*_factor``: times the service's own defaults."""

    json_bytes: Count = 2**20
    json_depth: Count = 16
    upload_bytes: Count = 32 * 2**20  # a whole multipart body
    body_seconds: Positive = 60.0  # for a body to arrive
    # Held of bodies that are arriving or being prepared, JSON and forms each; who would go beyond
    # is refused with 429.
    receiving_bytes: Count = 512 * 2**20
    upload_pixels: Count = 4096 * 4096  # of a picture sent in, told by its header
    decodes: Count = 2  # pictures decoded at the same time
    prompt_chars: Count = 32_000
    images: Annotated[int, Field(ge=1, le=10)] = 10  # n
    area_factor: Positive = 4.0  # pixels of an image
    steps_factor: Positive = 4.0
    in_flight: Count = 512  # images being made for users; more are refused with 429
    requests_per_minute: Positive | None = None  # of one caller, for each gateway process
    burst: Count = 10  # requests that a caller may send at once

    @model_validator(mode="after")
    def _one_body_can_be_received(self) -> Limits:
        largest = max(self.json_bytes, self.upload_bytes)
        if self.receiving_bytes < largest:
            raise ValueError(
                f"receiving_bytes is {self.receiving_bytes}, less than a body may have: give at "
                f"least {largest}, or less json_bytes and upload_bytes"
            )
        return self


class Feedback(Section):
    token_days: Positive = 30.0  # how long an image can be voted on
    votes_per_day: Count = 200  # of one unit


class ApiKey(Section):
    """A key that may call. Only its digest is held: ``sha256`` of it in hex, or ``key: env:NAME``
    where the environment holds it."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]{0,62}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    key: Annotated[str, Field(pattern=r"^env:[A-Za-z_]\w*$")] | None = None

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if isinstance(value, str):
            if not value.startswith("env:"):
                raise ValueError("write env:NAME or {name, sha256}; keys do not belong in here")
            return {"name": value.removeprefix("env:"), "key": value}
        return value

    @model_validator(mode="after")
    def _one_of_both(self) -> ApiKey:
        if (self.sha256 is None) == (self.key is None):
            raise ValueError("give either sha256 or key: env:NAME")
        return self


class Gateway(Section):
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8321  # 0: any free port
    request_timeout_s: Positive = 600.0
    challenger_timeout_s: Positive = 60.0  # then the champion answers instead
    breaker_failures: Count = 3  # hard failures in a row that trip a challenger
    keep_images: Share = 1.0  # share of images kept for scoring
    # Whether the pictures that users send in with edits are kept too (with those images that are),
    # so that their drift can be watched.
    keep_conditions: bool = False
    # What records hold of a prompt. With `hash` or `drop` nothing can embed or score it.
    prompts: Literal["keep", "hash", "drop"] = "keep"
    retention_days: Positive | None = None  # of images and records; none: kept until you delete
    # Who may choose a release by header: nobody, all, or these API keys and units.
    pinning: bool | tuple[str, ...] = False
    api_keys: tuple[ApiKey, ...] = ()  # none: whoever reaches the port may call
    heartbeat_s: Positive = 10.0  # a stream that has nothing to say sends a comment this often
    limits: Limits = Limits()
    feedback: Feedback = Feedback()
    processes: Annotated[int, Field(ge=1, le=64)] = 1  # side by side on the same port
    max_response_bytes: Count = 128 * 2**20  # of a worker's answer; a larger one is an error
    # When records reach the disk itself. never: they survive the process, not a power cut.
    records_fsync: Literal["never", "segment", "always"] = "never"

    @field_validator("api_keys")
    @classmethod
    def _names_differ(cls, keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
        if len({k.name for k in keys}) != len(keys):
            raise ValueError("each API key needs a name of its own")
        return keys


class Worker(Section):
    device: str = "auto"  # cuda, else mps, else cpu
    threads: Count = 1  # two per process were slower than one on small machines
    batch_sizes: Annotated[tuple[Count, ...], Field(min_length=1)] = (
        1,
        2,
        4,
        8,
    )  # a batch is padded to the next of these
    # One batch size, the largest: a seed gives the same bits alone and in any company. Memory must
    # hold it; there is no smaller one to fall back to.
    strict: bool = False
    batch_wait_ms: Annotated[float, Field(ge=0)] = 5.0
    queue_limit: Count = 64
    offload: Literal["none", "model", "sequential"] = "none"  # weights wait in main memory
    warm_up: bool = True
    ready_timeout_s: Positive = 300.0
    # Gigabytes (10^9 bytes) that one worker takes at most, and that its device has; none: as the
    # champion's workers say. Releases that do not fit together are not loaded together.
    memory_gb: Positive | None = None
    device_memory_gb: Positive | None = None


class Tracing(Section):
    """Spans of requests for an OpenTelemetry collector; needs the extra ``otel``. Credentials and
    other settings of the way there come from the environment (``OTEL_EXPORTER_OTLP_HEADERS``)."""

    endpoint: str  # of OTLP over HTTP; one without a path gets /v1/traces
    sample: Share = 0.1  # of requests
    # Requests that come with a `traceparent` are traced as it says, not by `sample`. Only where
    # clients are your own: whoever sets it can have everything traced, or nothing.
    clients_decide: bool = False

    @field_validator("endpoint")
    @classmethod
    def _is_an_address(cls, endpoint: str) -> str:
        try:
            parts = urlsplit(endpoint)
            known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            known = False
        if not known:
            raise ValueError("not http://HOST:PORT or https://HOST")
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError("credentials do not belong in here; set OTEL_EXPORTER_OTLP_HEADERS")
        return endpoint


class Serving(Section):
    # "local", "http" (servers that run already), an entry point of `intonaco.serving`, or
    # module:attribute
    type: str = "local"
    # With type http: the image servers, by name. The first is the one that a new service begins
    # with; the others are challengers when an update asks for them.
    upstreams: dict[Annotated[str, Field(pattern=UPSTREAM_NAME)], Upstream] = Field(default={})
    gateway: Gateway = Gateway()
    worker: Worker = Worker()
    tracing: Tracing | None = None  # none: nothing is traced
    replicas: Count = 1  # worker processes per release
    # An hour of what one worker runs on, in the budget's currency; none: cost is not told
    hourly_price: Annotated[float, Field(ge=0)] | None = None
    # For a release whose environment is not this one: build it, refuse the release, or start it
    # here all the same (its worker then attests another id and gets no traffic)
    environments: Literal["build", "refuse", "ignore"] = "build"
    # "auto": build only what differs, as a layer over this interpreter, where that is sound
    environment_base: Literal["auto", "none"] = "auto"
    environment_timeout_s: Positive = 3600.0  # of a build
    # One worker for all releases over the same base weights, each with its LoRA adapters: a second
    # one costs no second copy. They share its fate: a crash or a fault of memory that one causes
    # takes the others with it, the champion too, and the breaker may trip the wrong one.
    share_base: bool = False
    # Openly injected faults for drills: release id or recipe/technique name -> one fault for each
    # deployment in turn, e.g. ["errors:after=20", "slow:after=20,seconds=1.5"]
    faults: dict[str, tuple[str, ...]] = Field(default={})

    @model_validator(mode="after")
    def _http_has_upstreams(self) -> Serving:
        if (self.type == "http") != bool(self.upstreams):
            raise ValueError("type: http and upstreams go together: give both, or neither")
        return self

    @model_validator(mode="after")
    def _a_shared_base_stays_in_place(self) -> Serving:
        if self.share_base and self.worker.offload != "none":
            raise ValueError(
                f"share_base keeps the base on the device, and worker.offload is "
                f"{self.worker.offload!r}: leave one of them out"
            )
        return self
