"""``monitoring.signals``: what is watched, and with what."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from intonaco.config.base import Positive, Section

SignalKind = Literal[
    "prompt_embedding",
    "clip_score",
    "errors",
    "latency",
    # of traffic and workers
    "refused",
    "throughput",
    "batch_fill",
    "cost",
    "gpu_utilisation",
    "gpu_memory",
    # from elsewhere
    "promql",
    "python",
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
    "part": ("latency",),
    "reading": ("latency",),
    "kinds": ("errors", "refused"),
    "every_s": ("throughput", "gpu_utilisation", "gpu_memory", "promql", "python"),
    "timeout_s": ("gpu_utilisation", "gpu_memory", "promql"),
    "url": ("promql",),
    "query": ("promql",),
    "token": ("promql",),
    "call": ("python",),
    "range": ("promql", "python", "score"),
    "score": ("score", "safety"),
    "unsafe_above": ("safety",),
}
REQUIRED_OF_KINDS: dict[str, tuple[str, ...]] = {
    "promql": ("url", "query", "range"),
    "python": ("call", "range"),
    "score": ("score",),
    "safety": ("score",),
}
ERROR_KINDS = ("error", "timeout", "rejected")
# Kinds that are judged within each topic unless the signal says otherwise.
GIVEN_TOPIC = (
    "diversity",  # some topics' pictures look more alike than others'
    "clip_score",
    "score",
    "safety",
    "thumbs",
    "stars",
    "regenerate",
    "download",
    "response_rate",
)


class DetectorChoice(Section):
    """A detector with options in its own words, as in
    ``{name: river:ADWIN, options: {delta: 0.001}}``."""

    name: str
    options: dict[str, bool | int | float | str] = Field(default_factory=dict)


class Signal(Section):
    """``of``: what is watched. ``weight``: share of the false-alarm budget. ``given_topic``: judged
    within each topic, so that a move of the traffic is not taken for a change of quality. The
    fields from ``slower_than`` on belong to some kinds only (``FIELDS_OF_KINDS``); see
    docs/concepts/signals.md and docs/concepts/content-signals.md."""

    of: SignalKind
    # built-in, entry point, river:CLASS, evidently:METHOD or module:attribute
    detector: str | DetectorChoice = "auto"
    weight: Positive = 1.0
    reference: Annotated[int, Field(ge=50)] = 2000  # requests that say what is normal
    tolerance: Annotated[float, Field(ge=0)] = 0.0  # a move this small is nothing to tell
    direction: Literal["up", "down", "both"] = "both"
    given_topic: bool | None = None  # none: scores and feedback are, and detector: stratified
    silent_after_s: Positive | None = None  # without data for so long: a finding of its own

    slower_than: Positive = 3.0  # slow is this many times the reference median
    part: Literal["service", "queue", "encode", "denoise", "decode", "total"] = "service"
    # slow: 1 for a slow request, else 0. ratio: times the usual of its class, for detectors of
    # positive numbers.
    reading: Literal["slow", "ratio"] = "slow"
    # errors: of the outcomes error, timeout, rejected. refused: codes of the gateway's refusals.
    kinds: tuple[str, ...] = ()
    every_s: Positive = 10.0  # asked or reckoned so often
    timeout_s: Positive = 5.0  # for an answer
    url: str | None = None  # of a Prometheus server, without /api/v1
    query: str | None = None  # PromQL that gives one number
    token: Annotated[str, Field(pattern=r"^env:[A-Za-z_]\w*$")] | None = None  # bearer
    call: Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")] | None = None  # module:attribute
    # what values can be; others are cut off there. A score without it: learned from the first ones
    range: tuple[float, float] | None = None
    score: str | None = None  # "clip" or one of scoring.heads
    unsafe_above: float = 0.5  # a picture with a higher number is unsafe

    @property
    def judged_given_topic(self) -> bool:
        if self.given_topic is not None:
            return self.given_topic
        chosen = self.detector if isinstance(self.detector, str) else self.detector.name
        return self.of in GIVEN_TOPIC or chosen == "stratified"

    @model_validator(mode="after")
    def _fields_fit(self) -> Signal:
        for name, kinds in FIELDS_OF_KINDS.items():
            given = getattr(self, name) != Signal.model_fields[name].default
            if given and self.of not in kinds:
                raise ValueError(f"{name} is of signals of {' or '.join(kinds)}, not of {self.of}")
        for name in REQUIRED_OF_KINDS.get(self.of, ()):
            if getattr(self, name) is None:
                raise ValueError(f"a signal of {self.of} needs {name}")
        return self

    @model_validator(mode="after")
    def _values_fit(self) -> Signal:
        if self.of == "errors" and (unknown := set(self.kinds) - set(ERROR_KINDS)):
            raise ValueError(f"kinds: {min(unknown)!r} is none of {', '.join(ERROR_KINDS)}")
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError("range: the first number must be below the second")
        if self.reading == "ratio" and self.detector == "e-mean":
            raise ValueError("reading: ratio is over 1, and e-mean takes numbers from 0 to 1")
        if self.url is not None:
            parts = urlsplit(self.url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError("url: not http://HOST:PORT or https://HOST")
            if parts.username is not None:
                raise ValueError("url: credentials do not belong in here; use token: env:NAME")
        return self


DEFAULT_SIGNALS = {
    "prompts": Signal(of="prompt_embedding"),
    "clip_score": Signal(of="clip_score", direction="down"),
    "errors": Signal(of="errors", direction="up", tolerance=0.01),
    "latency": Signal(of="latency", direction="up", tolerance=0.02),
    "diversity": Signal(of="diversity", direction="up", tolerance=0.02, weight=0.5, reference=1200),
    "blank_images": Signal(of="blank_images", direction="up", tolerance=0.01, weight=0.5),
    "broken_images": Signal(of="broken_images", direction="up", tolerance=0.01, weight=0.5),
    "thumbs": Signal(of="thumbs", direction="down", tolerance=0.02),
}
