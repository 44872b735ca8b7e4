"""``extractor``, ``monitoring`` and ``decision``: what is noticed, and when an update pays."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from intonaco.config.base import Count, Positive, Section, Share


class Extractor(Section):
    """The pinned model that embeds prompts and images. Never part of a release."""

    type: str = "clip"
    path: str
    digest: str | None = None  # sha256; refuse anything else


class DetectorChoice(Section):
    """A detector with options in its own words, as in
    ``{name: river:ADWIN, options: {delta: 0.001}}``."""

    name: str
    options: dict[str, bool | int | float | str] = Field(default_factory=dict)


class Head(Section):
    """A scorer that gives each picture a number. ``type``: "sharpness", "noise", "linear" (of the
    extractor's embedding), an entry point of ``intonaco.scorers`` or ``module:attribute``.
    ``path`` and ``digest`` (sha256): its weights in safetensors, refused if they are others."""

    type: str
    path: str | None = None
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None

    @model_validator(mode="after")
    def _weights_are_pinned(self) -> Head:
        if self.path is not None and self.digest is None:
            raise ValueError("a head with weights (path) needs the digest (sha256) of that file")
        return self


class Scoring(Section):
    """What the scorer notes of pictures. ``sample``: share of them that is looked at, chosen by
    request id. ``images``: keep their embeddings. ``heads``: more scores, by name."""

    sample: Share = 1.0
    images: bool = True
    heads: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")], Head] = Field(default={})

    @field_validator("heads")
    @classmethod
    def _clip_is_taken(cls, heads: dict[str, Head]) -> dict[str, Head]:
        if "clip" in heads:
            raise ValueError("clip is the score of the extractor: give the head another name")
        return heads


class Maturity(Section):
    """How feedback is counted: for images that are ``mature_after_s`` old, so that slow and quick
    voters count alike. ``per_unit``: votes, and images, of one unit that count in a cohort (the
    images made in a stretch of ``mature_after_s``). ``kept``: images that wait for their maturity;
    where there are more, a sample of them is followed."""

    mature_after_s: Positive = 86_400.0
    per_unit: Count = 20
    kept: Annotated[int, Field(ge=100, le=200_000)] = 20_000


SignalKind = Literal[
    "prompt_embedding",
    "clip_score",
    "errors",
    "latency",
    # of pictures
    "condition_embedding",
    "image_embedding",
    "score",
    "diversity",
    "blank_images",
    "broken_images",
    "safety",
    # of feedback
    "thumbs",
    "stars",
    "regenerate",
    "download",
    "response_rate",
]

# Fields that only signals of some kinds have; in all others they are refused.
FIELDS_OF_KINDS: dict[str, tuple[str, ...]] = {
    "slower_than": ("latency",),
    "score": ("score", "safety"),
    "unsafe_above": ("safety",),
    "range": ("score",),
}
REQUIRED_OF_KINDS: dict[str, tuple[str, ...]] = {
    "score": ("score",),
    "safety": ("score",),
}
# Kinds that are judged within each topic unless the signal says otherwise.
GIVEN_TOPIC = (
    "clip_score",
    "score",
    "safety",
    "thumbs",
    "stars",
    "regenerate",
    "download",
    "response_rate",
)


class Signal(Section):
    """``of``: what is watched. ``weight``: share of the false-alarm budget. ``given_topic``: judged
    within each topic, so that a move of the traffic is not taken for a change of quality. The
    fields from ``slower_than`` on belong to some kinds only (``FIELDS_OF_KINDS``)."""

    of: SignalKind
    # built-in, entry point, river:CLASS, evidently:METHOD or module:attribute
    detector: str | DetectorChoice = "auto"
    weight: Positive = 1.0
    reference: Annotated[int, Field(ge=50)] = 2000  # requests that say what is normal
    tolerance: Annotated[float, Field(ge=0)] = 0.0  # a move this small is nothing to tell
    direction: Literal["up", "down", "both"] = "both"
    given_topic: bool | None = None  # none: scores and feedback are

    slower_than: Positive = 3.0  # slow is this many times the reference median
    score: str | None = None  # "clip" or one of scoring.heads
    unsafe_above: float = 0.5  # a picture with a higher number is unsafe
    # what values can be; others are cut off there. A score without it: learned from the first ones
    range: tuple[float, float] | None = None

    @property
    def judged_given_topic(self) -> bool:
        return self.of in GIVEN_TOPIC if self.given_topic is None else self.given_topic

    @model_validator(mode="after")
    def _fields_fit(self) -> Signal:
        for name, kinds in FIELDS_OF_KINDS.items():
            given = getattr(self, name) != Signal.model_fields[name].default
            if given and self.of not in kinds:
                raise ValueError(f"{name} is of signals of {' or '.join(kinds)}, not of {self.of}")
        for name in REQUIRED_OF_KINDS.get(self.of, ()):
            if getattr(self, name) is None:
                raise ValueError(f"a signal of {self.of} needs {name}")
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError("range: the first number must be below the second")
        return self


DEFAULT_SIGNALS = {
    "prompts": Signal(of="prompt_embedding"),
    "clip_score": Signal(of="clip_score", direction="down"),
    "errors": Signal(of="errors", direction="up", tolerance=0.01),
    "latency": Signal(of="latency", direction="up", tolerance=0.02),
    "diversity": Signal(of="diversity", direction="up", tolerance=0.02, weight=0.5),
    "blank_images": Signal(of="blank_images", direction="up", tolerance=0.01, weight=0.5),
    "broken_images": Signal(of="broken_images", direction="up", tolerance=0.01, weight=0.5),
    "thumbs": Signal(of="thumbs", direction="down", tolerance=0.02),
}


class Monitoring(Section):
    """``requests_between_false_alarms``: over all signals of the service together."""

    requests_between_false_alarms: Positive = 50_000
    signals: dict[str, Signal] = DEFAULT_SIGNALS
    probes: tuple[str, ...] = ()  # prompts generated with fixed seeds to tell model from users
    # Between a finding and its diagnosis: a topic of 5 % of the requests is then seen five times.
    settle_requests: Annotated[int, Field(ge=0)] = 100
    scoring: Scoring = Scoring()
    feedback: Maturity = Maturity()
    # Whether findings, and what the monitors remember for them, hold prompts that records keep.
    show_prompts: bool = True

    @model_validator(mode="after")
    def _scores_exist(self) -> Monitoring:
        for name, signal in self.signals.items():
            if signal.score not in (None, "clip", *self.scoring.heads):
                known = ", ".join(["clip", *sorted(self.scoring.heads)])
                raise ValueError(
                    f"signals.{name}.score names the head {signal.score!r}; scoring.heads and the "
                    f"extractor give: {known}"
                )
        return self


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
