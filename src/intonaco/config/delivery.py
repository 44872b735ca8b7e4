"""``rollout``, ``approval`` and what stands around them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from intonaco.config.base import Positive, Section, Share
from intonaco.types import StepKind


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
    """``uri``: of MLflow's server, else the workspace's own database. ``project``: of wandb, else
    the service's name."""

    type: str = "mlflow"
    uri: str | None = None
    project: str | None = None

    @model_validator(mode="after")
    def _has_what_it_reads(self) -> TrackerConfig:
        unread = {"mlflow": ("project",), "wandb": ("uri",), "none": ("uri", "project")}
        for name in unread.get(self.type, ()):
            if getattr(self, name) is not None:
                raise ValueError(f"{name} is not read by type {self.type!r}; leave it out")
        return self


class Person(Section):
    """Who may ask for something over HTTP. ``role``: "trigger" may call the webhook, "curate" say
    what of live traffic may be learnt from, "reviewer" vote in reviews, "lead" see their results.
    Only the token's digest is held: ``sha256`` of it in hex, or ``token: env:NAME``."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]{0,62}$")]
    role: Literal["viewer", "trigger", "curate", "reviewer", "lead"] = "viewer"
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    token: Annotated[str, Field(pattern=r"^env:[A-Za-z_]\w*$")] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Person:
        if (self.sha256 is None) == (self.token is None):
            raise ValueError("give either sha256 or token: env:NAME")
        return self


class Console(Section):
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8322
    people: tuple[Person, ...] = ()
