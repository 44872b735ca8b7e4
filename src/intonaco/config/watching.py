"""``extractor``, ``monitoring`` and ``decision``: what is noticed, and when an update pays."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from intonaco.config.base import Count, Positive, Section


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
    probe_every_s: Annotated[float, Field(ge=0)] = 3600.0  # 0: only at findings and new champions
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
