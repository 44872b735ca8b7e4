"""``extractor`` and ``monitoring``: what is noticed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from intonaco.config.base import Positive, Section


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
