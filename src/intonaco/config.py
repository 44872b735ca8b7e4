"""The schema of ``intonaco.yaml`` and its errors.

Every field has a default that is safe for real use, or is required. Unknown fields are refused.
Secrets are written as ``env:NAME``. Paths are relative to the folder that holds the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from intonaco.declared import UPSTREAM_NAME, Upstream
from intonaco.errors import ConfigError
from intonaco.types import StepKind

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


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
    upload_pixels: Count = 4096 * 4096  # of a picture sent in, told by its header
    decodes: Count = 2  # pictures decoded at the same time
    prompt_chars: Count = 32_000
    images: Annotated[int, Field(ge=1, le=10)] = 10  # n
    area_factor: Positive = 4.0  # pixels of an image
    steps_factor: Positive = 4.0
    in_flight: Count = 512  # images being made for users; more are refused with 429
    requests_per_minute: Positive | None = None  # of one caller, for each gateway process
    burst: Count = 10  # requests that a caller may send at once


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
    upstreams: dict[Annotated[str, Field(pattern=UPSTREAM_NAME)], Upstream] = {}
    gateway: Gateway = Gateway()
    worker: Worker = Worker()
    tracing: Tracing | None = None  # none: nothing is traced
    replicas: Count = 1  # worker processes per release
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
    faults: dict[str, tuple[str, ...]] = {}

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


class Extractor(Section):
    """The pinned model that embeds prompts and images. Never part of a release."""

    type: str = "clip"
    path: str
    digest: str | None = None  # sha256; refuse anything else


class Signal(Section):
    """``of``: what is watched. ``weight``: share of the false-alarm budget."""

    of: Literal["prompt_embedding", "clip_score", "errors", "latency"]
    detector: str = "auto"  # built-in, entry point or module:attribute
    weight: Positive = 1.0
    reference: Annotated[int, Field(ge=50)] = 2000  # requests that say what is normal
    tolerance: Annotated[float, Field(ge=0)] = 0.0  # a move this small is nothing to tell
    direction: Literal["up", "down", "both"] = "both"
    slower_than: Positive = 3.0  # latency: slow is this many times the reference median


DEFAULT_SIGNALS = {
    "prompts": Signal(of="prompt_embedding"),
    "clip_score": Signal(of="clip_score", direction="down"),
    "errors": Signal(of="errors", direction="up", tolerance=0.01),
    "latency": Signal(of="latency", direction="up", tolerance=0.02),
}


class Monitoring(Section):
    """``requests_between_false_alarms``: over all signals of the service together."""

    requests_between_false_alarms: Positive = 50_000
    signals: dict[str, Signal] = DEFAULT_SIGNALS
    probes: tuple[str, ...] = ()  # prompts generated with fixed seeds to tell model from users
    # Between a finding and its diagnosis: a topic of 5 % of the requests is then seen five times.
    settle_requests: Annotated[int, Field(ge=0)] = 100


class Budget(Section):
    amount: Annotated[float, Field(ge=0)] = 100.0
    per_days: Positive = 30.0
    currency: str = "EUR"
    hourly_price: Annotated[float, Field(ge=0)] = 2.0  # of the machine that trains


class Decision(Section):
    """When an update pays: see docs/concepts/decision.md."""

    mode: Literal["auto", "ask", "watch"] = "auto"
    budget: Budget = Budget()
    value_per_request: Annotated[float, Field(ge=0)] = 0.001  # worth of one good image
    horizon_days: Positive = 30.0  # how long an update is expected to serve
    cooldown_s: Annotated[float, Field(ge=0)] = 3600.0
    min_quality_gap: Annotated[float, Field(ge=0)] = 0.05  # score units, moved against unmoved
    min_labelled: Count = 100  # labelled items needed to learn the moved part
    fine_tune: tuple[str, ...] = ("fine_tune",)  # recipes, one candidate each
    full_retrain: tuple[str, ...] = ("full",)


class VaeRecipe(Section):
    steps: Count
    batch_size: Count = 32
    learning_rate: Positive = 4e-3
    kl_weight: Annotated[float, Field(ge=0)] = 1e-3


class LoraRecipe(Section):
    """``fused``: added to the weights, which serves fastest. Else the release is the base's own
    files and an adapter beside them, which a worker with ``serving.share_base`` needs no second
    base for; a champion with such an adapter has it trained further."""

    rank: Count = 16
    alpha: Positive = 32.0
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    fused: bool = True


class Recipe(Section):
    """One way to train. ``init``: "champion", a folder, or ``module:callable`` that builds an
    untrained pipeline."""

    method: Literal["full", "lora"] = "lora"
    init: str = "champion"
    steps: Count = 1000
    batch_size: Count = 32
    learning_rate: Positive = 1e-4
    warm_up_steps: Annotated[int, Field(ge=0)] = 30
    decay_share: Share = 0.4  # the last part of the steps, learning rate falling linearly
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    gradient_clip: Positive = 1.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.995
    caption_dropout: Share = 0.1
    replay: Annotated[float, Field(ge=0, lt=1)] = 0.3  # share of real old data mixed in
    vae: VaeRecipe | None = None  # train the VAE too (from scratch)
    lora: LoraRecipe | None = None
    seed: int = 0
    threads: Count = 1
    estimated_seconds: Positive = 3600.0  # for the cost estimate until a run of it was measured

    @model_validator(mode="after")
    def _lora_has_settings(self) -> Recipe:
        if self.method == "lora" and self.lora is None:
            object.__setattr__(self, "lora", LoraRecipe())
        return self

    @model_validator(mode="after")
    def _an_adapter_has_a_base(self) -> Recipe:
        if self.method == "lora" and self.lora is not None and not self.lora.fused:
            if self.vae is not None:
                raise ValueError("lora.fused: false leaves the base as it is, so it trains no vae")
            if ":" in self.init:
                raise ValueError(
                    f"lora.fused: false needs a base on disk, and init is {self.init!r}: "
                    "give champion or a folder"
                )
        return self


class Training(Section):
    type: str = "local"  # a built-in, an entry point of `intonaco.training`, or module:attribute
    recipes: dict[str, Recipe] = {"fine_tune": Recipe(), "full": Recipe(method="full")}
    max_seconds: Positive = 86_400.0
    parallel: Count = 1  # candidates trained at the same time


class Data(Section):
    """``train``: folder of the first training set. ``pool``: folder of labelled items that a
    fine-tune may draw on. ``reference``: held-out real images, never trained on."""

    train: str | None = None
    pool: str | None = None
    reference: str | None = None
    on_invalid: Literal["fail", "drop"] = "fail"


class Margins(Section):
    """Non-inferiority margins of the offline gate, absolute and fixed beforehand.

    ``adherence``: CLIP cosine. ``slice_adherence``: the same within each slice.
    ``distance``: relative MMD^2. ``recall``: share of reference images covered.
    ``latency``: log ratio. ``memory``: ratio, a hard limit."""

    adherence: Positive = 0.02
    slice_adherence: Positive = 0.05
    distance: Positive = 0.01
    recall: Positive = 0.10
    latency: Positive = 0.10
    memory: Positive = 1.25


class Evaluation(Section):
    prompts: str | None = None  # jsonl {"prompt_id", "prompt", "slice"}
    seeds_per_prompt: Count = 4
    batch_size: Count = 32
    latency_rounds: Count = 10
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    margins: Margins = Margins()
    min_improvement: Annotated[float, Field(ge=0)] = 0.01  # cosine, on what an update is to improve
    floor_adherence: float | None = None  # absolute, for a first release that has nothing to beat
    threads: Count = 1


class Step(Section):
    kind: StepKind = StepKind.CANARY
    weight: Share
    min_seconds: Annotated[float, Field(ge=0)] = 600.0
    min_units: Annotated[int, Field(ge=0)] = 100


DEFAULT_STEPS = (
    Step(kind=StepKind.SHADOW, weight=0.1),
    Step(weight=0.05),
    Step(weight=0.25),
    Step(weight=0.5),
    Step(weight=1.0),
)


class RolloutMargins(Section):
    """Online, absolute, per user. ``errors``: share of users whose request failed. ``slow``: share
    whose request took longer than ``slower_than`` times the champion's median in its class.
    ``clip_score``: cosine."""

    errors: Positive = 0.01
    slow: Positive = 0.05
    clip_score: Positive = 0.02


class RolloutConfig(Section):
    strategy: Literal["canary", "blue_green"] = "canary"
    steps: tuple[Step, ...] = DEFAULT_STEPS
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    margins: RolloutMargins = RolloutMargins()
    harm_tolerance: Annotated[float, Field(ge=0)] = 0.0
    # Cosines are clamped into this range; one that fits the usual scores decides sooner.
    score_range: tuple[float, float] = (-1.0, 1.0)
    slower_than: Positive = 2.0
    max_seconds: Positive = 86_400.0
    bake_seconds: Annotated[float, Field(ge=0)] = 3600.0  # at 100 %, the old release kept warm
    drain_seconds: Positive = 660.0  # longer than the longest request

    @field_validator("steps")
    @classmethod
    def _ends_at_all(cls, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        canary = [s.weight for s in steps if s.kind is StepKind.CANARY]
        if not canary or canary[-1] != 1.0:
            raise ValueError("the last canary step must have weight 1.0")
        if canary != sorted(canary):
            raise ValueError("canary weights must not fall")
        return steps


class Approval(Section):
    mode: Literal["auto", "ask"] = "ask"
    timeout_s: Positive = 7 * 86_400.0


class RegistryConfig(Section):
    type: str = "mlflow"
    uri: str | None = None  # none: SQLite in the workspace


class TrackerConfig(Section):
    type: str = "mlflow"
    uri: str | None = None


class Console(Section):
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8322


class Config(Section):
    """All of ``intonaco.yaml``."""

    service: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,62}$")]
    model: Model = Model()
    serving: Serving = Serving()
    extractor: Extractor | None = None
    monitoring: Monitoring = Monitoring()
    decision: Decision = Decision()
    data: Data = Data()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    approval: Approval = Approval()
    rollout: RolloutConfig = RolloutConfig()
    registry: RegistryConfig = RegistryConfig()
    tracker: TrackerConfig = TrackerConfig()
    console: Console = Console()
    tick_seconds: Positive = 1.0

    @model_validator(mode="after")
    def _recipes_exist(self) -> Config:
        for field in ("fine_tune", "full_retrain"):
            for name in getattr(self.decision, field):
                if name not in self.training.recipes:
                    known = ", ".join(sorted(self.training.recipes))
                    raise ValueError(
                        f"decision.{field} names the recipe {name!r}; training.recipes has: {known}"
                    )
        return self

    @model_validator(mode="after")
    def _prompts_are_there_to_watch(self) -> Config:
        if self.serving.gateway.prompts != "keep":
            for name, signal in self.monitoring.signals.items():
                if signal.of in ("prompt_embedding", "clip_score"):
                    raise ValueError(
                        f"monitoring.signals.{name} needs prompts, and serving.gateway.prompts is "
                        f"{self.serving.gateway.prompts!r}: leave the signal out, or keep prompts"
                    )
        return self

    @model_validator(mode="after")
    def _upstreams_fit(self) -> Config:
        if self.serving.type != "http":
            return self
        if self.model.path is not None:
            raise ValueError("model.path is for a model that is served here; serving.type is http")
        for name, upstream in self.serving.upstreams.items():
            if self.monitoring.probes and not upstream.seed:
                raise ValueError(
                    f"monitoring.probes need the same image for the same seed, and"
                    f" serving.upstreams.{name}.seed is false: leave the probes out"
                )
        return self


def parse(text: str, *, source: str = "intonaco.yaml") -> Config:
    """Config of a YAML text. Raises ConfigError: path of the field, what was given, what is
    allowed."""
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}, column {mark.column + 1}:" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be parsed"
        raise ConfigError(f"{source}:{where} not valid YAML: {problem}") from error
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{source}: expected a mapping at the top, got {type(raw).__name__}",
            hint="`intonaco init` writes a commented example",
        )
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(_explain(error, source), hint=_more(error)) from error


def load(path: Path) -> Config:
    """Config of a file. Raises ConfigError."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise ConfigError(
            f"{path} does not exist", hint="`intonaco init` writes one, `intonaco demo` a full one"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    return parse(text, source=str(path))


def json_schema() -> dict[str, Any]:
    """JSON Schema of ``intonaco.yaml``."""
    return Config.model_json_schema()


def _explain(error: ValidationError, source: str) -> str:
    first = error.errors()[0]
    path = ".".join(str(p) for p in first["loc"]) or "(top)"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return f"{source}: {path}: unknown field; {_allowed(first['loc'])}"
    if first["type"] == "missing":
        return f"{source}: {path}: required and not given"
    if not first["loc"]:
        return f"{source}: {message}"
    if {"api_keys", "endpoint", "upstreams"} & set(first["loc"]) or first["loc"] == ("serving",):
        # what was given may hold a key
        return f"{source}: {path}: {message}"
    given = repr(first["input"])
    return (
        f"{source}: {path}: {message} (given: {given if len(given) < 80 else given[:77] + '...'})"
    )


def _allowed(loc: tuple[int | str, ...]) -> str:
    model: Any = Config
    for part in loc[:-1]:
        field = getattr(model, "model_fields", {}).get(part)
        annotation = field.annotation if field else None
        model = _section_in(annotation) or (model if field is None else None)
    fields = getattr(model, "model_fields", None)
    return "allowed: " + ", ".join(sorted(fields)) if fields else "see the reference"


def _section_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _section_in(argument)
        if found:
            return found
    return None


def _more(error: ValidationError) -> str | None:
    rest = error.error_count() - 1
    return f"and {rest} more; `intonaco check` lists them" if rest else None
