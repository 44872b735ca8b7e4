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


class Signal(Section):
    """``of``: what is watched. ``weight``: share of the false-alarm budget. ``given_topic``: judged
    within each topic, so that a move of the traffic is not taken for a change of quality; by
    default scores and feedback are."""

    of: Literal[
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
    detector: str = "auto"  # built-in, entry point or module:attribute
    weight: Positive = 1.0
    reference: Annotated[int, Field(ge=50)] = 2000  # requests that say what is normal
    tolerance: Annotated[float, Field(ge=0)] = 0.0  # a move this small is nothing to tell
    direction: Literal["up", "down", "both"] = "both"
    slower_than: Positive = 3.0  # latency: slow is this many times the reference median
    # score: its name, "clip" or one of scoring.heads; safety: the head whose number is looked at
    score: str | None = None
    # score: what its values lie between; none: learned from the first of them
    bounds: tuple[float, float] | None = None
    unsafe_above: float = 0.5  # safety: a picture with a higher number is unsafe
    given_topic: bool | None = None

    @property
    def judged_given_topic(self) -> bool:
        if self.given_topic is not None:
            return self.given_topic
        return self.of in GIVEN_TOPIC

    @model_validator(mode="after")
    def _score_is_named(self) -> Signal:
        if self.of in ("score", "safety"):
            if self.score is None:
                raise ValueError(f"of: {self.of} needs score, the name of a head")
        elif self.score is not None:
            raise ValueError(f"score is for of: score and of: safety, not for {self.of}")
        if self.bounds is not None and not self.bounds[0] < self.bounds[1]:
            raise ValueError(f"bounds must rise, and are {self.bounds}")
        return self


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
