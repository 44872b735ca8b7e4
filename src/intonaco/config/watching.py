"""``extractor``, ``monitoring`` and ``decision``: what is noticed, and when an update pays."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from intonaco.config.base import Count, Positive, Section


class Extractor(Section):
    """The pinned model that embeds prompts and images. Never part of a release."""

    type: str = "clip"
    path: str
    digest: str | None = None  # sha256; refuse anything else


SignalKind = Literal[
    "prompt_embedding",
    "clip_score",
    "errors",
    "latency",
    "refused",
    "throughput",
    "batch_fill",
    "cost",
    "gpu_utilisation",
    "gpu_memory",
    "promql",
    "python",
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
    "range": ("promql", "python"),
}
REQUIRED_OF_KINDS: dict[str, tuple[str, ...]] = {
    "promql": ("url", "query", "range"),
    "python": ("call", "range"),
}
ERROR_KINDS = ("error", "timeout", "rejected")


class Signal(Section):
    """``of``: what is watched. ``weight``: share of the false-alarm budget. The fields from
    ``slower_than`` on belong to some kinds only (``FIELDS_OF_KINDS``); see
    docs/concepts/signals.md."""

    of: SignalKind
    detector: str = "auto"  # built-in, entry point or module:attribute
    weight: Positive = 1.0
    reference: Annotated[int, Field(ge=50)] = 2000  # requests that say what is normal
    tolerance: Annotated[float, Field(ge=0)] = 0.0  # a move this small is nothing to tell
    direction: Literal["up", "down", "both"] = "both"
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
    range: tuple[float, float] | None = None  # what values can be; others are cut off there

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
}


class Monitoring(Section):
    """``requests_between_false_alarms``, or ``false_alarms_per_week`` in its place: over all
    signals of the service together."""

    requests_between_false_alarms: Positive = 50_000
    false_alarms_per_week: Positive | None = None
    signals: dict[str, Signal] = DEFAULT_SIGNALS
    probes: tuple[str, ...] = ()  # prompts generated with fixed seeds to tell model from users
    # Between a finding and its diagnosis: a topic of 5 % of the requests is then seen five times.
    settle_requests: Annotated[int, Field(ge=0)] = 100
    # Requests are answered and no record of them comes, or records wait and none is scored.
    silent_after_s: Positive = 60.0

    @model_validator(mode="after")
    def _one_budget(self) -> Monitoring:
        both = {"requests_between_false_alarms", "false_alarms_per_week"} <= self.model_fields_set
        if both and self.false_alarms_per_week is not None:
            raise ValueError(
                "give requests_between_false_alarms or false_alarms_per_week, not both"
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
