"""``rollout``, ``approval`` and what stands around them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from intonaco.config.base import Positive, Section
from intonaco.types import StepKind

_READ = {  # by kind
    StepKind.STAGE: {"min_seconds"},
    StepKind.SHADOW: {"weight", "min_seconds", "min_units"},
    StepKind.CANARY: {"weight", "min_seconds", "min_units"},
    StepKind.PAUSE: {"min_seconds"},
    StepKind.APPROVE: {"deadline_s", "on_timeout"},
    StepKind.ANALYSIS: set(),
    StepKind.PROMOTE: set(),
    StepKind.BAKE: {"weight", "min_seconds"},
}
_FOR_SPLITS = {StepKind.STAGE, StepKind.PAUSE, StepKind.APPROVE, StepKind.PROMOTE, StepKind.BAKE}
_WEIGHED = (StepKind.SHADOW, StepKind.CANARY)


class Step(Section):
    """``weight``: share of users (canary), of requests copied (shadow), of users kept on the
    previous champion (bake). ``min_seconds`` of a pause: null waits until somebody resumes.
    ``deadline_s``: of an approval, null for none."""

    kind: StepKind = StepKind.CANARY
    weight: Annotated[float, Field(ge=0, le=1)] = 0.0
    min_seconds: Annotated[float, Field(ge=0)] | None = 600.0
    min_units: Annotated[int, Field(ge=0)] = 100
    deadline_s: Positive | None = None
    on_timeout: Literal["abort", "hold"] = "abort"

    @model_validator(mode="after")
    def _has_what_it_reads(self) -> Step:
        if self.kind is StepKind.SPLIT:
            raise ValueError("kind: a split is not listed; strategy ab has one, as rollout.ab says")
        for name in sorted(self.model_fields_set - _READ[self.kind] - {"kind"}):
            if getattr(self, name) != Step.model_fields[name].default:
                raise ValueError(f"{name} is not read by a {self.kind} step; leave it out")
        if self.kind in _WEIGHED and self.weight <= 0:
            raise ValueError(f"weight: a {self.kind} step needs one above 0")
        if self.kind is StepKind.BAKE and self.weight > 0.5:
            raise ValueError("weight: of a bake is what stays on the previous one, at most 0.5")
        if self.min_seconds is None and self.kind is not StepKind.PAUSE:
            raise ValueError("min_seconds: only a pause may wait without an end")
        return self


DEFAULT_STEPS = (
    Step(kind=StepKind.SHADOW, weight=0.1),
    Step(weight=0.01, min_units=20),
    Step(weight=0.05, min_units=50),
    Step(weight=0.2),
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


Share = Annotated[float, Field(gt=0, lt=1)]
MOST_ARMS = 5  # beside the champion; every pair of them is compared


class SplitConfig(Section):
    """A fixed split between the champion and every challenger there is.

    ``metric``: of ``margins``, decides. ``split``: "equal", or shares that sum to 1: of
    ``champion``, of arms by name (a recipe's or technique's, or one of ``arms``), and as
    ``challenger`` of all others together. ``arms``: releases beside the update's own, by name; they
    must have passed the gate. ``min_seconds``, ``min_units``: nobody wins sooner, the latter being
    users judged on each challenger. ``winner``: becomes champion, or is asked about, or only told
    ("none")."""

    metric: str = "clip_score"
    split: Literal["equal"] | Mapping[str, Share] = "equal"
    arms: Annotated[
        Mapping[
            Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]{0,62}$")],
            Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")],
        ],
        Field(max_length=MOST_ARMS),
    ] = {}
    min_seconds: Annotated[float, Field(ge=0)] = 600.0
    min_units: Annotated[int, Field(ge=0)] = 100
    winner: Literal["promote", "ask", "none"] = "promote"

    @model_validator(mode="after")
    def _adds_up(self) -> SplitConfig:
        if self.metric not in RolloutMargins.model_fields:
            known = ", ".join(RolloutMargins.model_fields)
            raise ValueError(f"metric: {self.metric!r} is not one of {known}")
        if {"champion", "challenger"} & set(self.arms):
            raise ValueError("arms: champion and challenger are no names for arms")
        if self.split == "equal":
            return self
        if "champion" not in self.split or len(self.split) < 2:
            raise ValueError("split: name the share of the champion and of a challenger at least")
        total = sum(self.split.values())
        if abs(total - 1) > 1e-9:
            raise ValueError(f"split: the shares sum to {total:g}, not 1")
        missing = set(self.arms) - set(self.split)
        if missing and "challenger" not in self.split:
            raise ValueError(f"split: no share for {', '.join(sorted(missing))}")
        return self


class RolloutConfig(Section):
    """``steps``: what a strategy makes of them is told in docs/concepts/rollouts.md. ``ab``: of the
    strategy of that name."""

    strategy: Literal["canary", "blue_green", "shadow_only", "ab"] = "canary"
    steps: Annotated[tuple[Step, ...], Field(min_length=1)] = DEFAULT_STEPS
    ab: SplitConfig = SplitConfig()
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    margins: RolloutMargins = RolloutMargins()
    harm_tolerance: Annotated[float, Field(ge=0)] = 0.0
    # Cosines are clamped into this range; one that fits the usual scores decides sooner.
    score_range: tuple[float, float] = (-1.0, 1.0)
    slower_than: Positive = 2.0
    max_seconds: Positive = 86_400.0
    on_inconclusive: Literal["abort", "hold"] = "abort"  # at max_seconds
    stuck_seconds: Annotated[float, Field(ge=0)] = 600.0  # not ready or not followed; 0: for ever
    bake_seconds: Annotated[float, Field(ge=0)] = 3600.0  # as champion, the previous one kept warm
    holdback: Annotated[float, Field(ge=0, le=0.5)] = 0.0  # users kept on the previous one then
    drain_seconds: Positive = 660.0  # longer than the longest request

    @field_validator("steps")
    @classmethod
    def _in_order(cls, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        kinds = [s.kind for s in steps]
        canary = [s.weight for s in steps if s.kind is StepKind.CANARY]
        if canary != sorted(canary):
            raise ValueError("canary weights must not fall")
        if StepKind.STAGE in kinds[1:]:
            raise ValueError("stage can only be the first step")
        if StepKind.SHADOW in kinds and StepKind.CANARY in kinds[: _last(kinds, StepKind.SHADOW)]:
            raise ValueError("a shadow step after a canary step: users see its answers already")
        if StepKind.PROMOTE in kinds:
            after = kinds[kinds.index(StepKind.PROMOTE) + 1 :]
            if set(after) - {StepKind.BAKE}:
                raise ValueError("after promote there can only be bake")
        elif StepKind.BAKE in kinds:
            raise ValueError("a bake comes after promote")
        return steps

    @model_validator(mode="after")
    def _splits_as_told(self) -> RolloutConfig:
        if self.strategy != "ab":
            if self.ab != SplitConfig():
                raise ValueError(f"ab: not read by strategy {self.strategy!r}; leave it out")
            return self
        if self.steps != DEFAULT_STEPS:
            for kind in sorted({s.kind for s in self.steps} - _FOR_SPLITS):
                raise ValueError(f"steps: strategy ab has no {kind} step; leave it out")
        return self


def _last(kinds: list[StepKind], kind: StepKind) -> int:
    return len(kinds) - 1 - kinds[::-1].index(kind)


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
