"""``rollout``, ``approval`` and what stands around them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from intonaco.config.base import Positive, Section
from intonaco.types import StepKind

_READ = {  # by kind
    StepKind.STAGE: {"min_seconds"},
    StepKind.SHADOW: {"weight", "min_seconds", "min_units"},
    StepKind.CANARY: {"weight", "min_seconds", "min_units"},
    StepKind.REPLACE: set(),
    StepKind.PAUSE: {"min_seconds"},
    StepKind.APPROVE: {"deadline_s", "on_timeout"},
    StepKind.ANALYSIS: set(),
    StepKind.PROMOTE: set(),
    StepKind.BAKE: {"weight", "min_seconds"},
}
_WEIGHED = (StepKind.SHADOW, StepKind.CANARY)
Amount = Annotated[int, Field(ge=0)] | Annotated[str, Field(pattern=r"^(100|\d{1,2})%$")]


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


# What live users can be compared by.
ONLINE_METRICS = ("errors", "latency", "clip_score", "slow", "cost", "feedback", "end_to_end")


class RolloutMargins(Section):
    """Online, per user: how much worse is no worse. ``errors``: share of users whose request
    failed. ``latency``: service time, relative, at the median and at the 0.9 quantile of the
    request's class. ``clip_score``: cosine. ``slow``: share whose request took longer than
    ``slower_than`` times the champion's median in its class. ``cost``: money for an image,
    relative. ``feedback``: share whose image was spoken ill of. ``end_to_end``: time as the user
    waits, queues included, beside an equal slice of the champion (``baseline``); relative, at the
    same quantiles as ``latency``."""

    errors: Positive = 0.01
    latency: Positive = 0.10
    clip_score: Positive = 0.02
    slow: Positive = 0.05
    cost: Positive = 0.10
    feedback: Positive = 0.05
    end_to_end: Positive = 0.10


class HarmTolerances(Section):
    """How much worse is not yet harm, in the units of the margins. None: ``harm_tolerance``.
    ``errors`` of 0 lets the ratio of error rates speak too, which sees a rare error sooner."""

    errors: Annotated[float, Field(ge=0)] | None = None
    latency: Annotated[float, Field(ge=0)] = 0.05
    clip_score: Annotated[float, Field(ge=0)] | None = None
    slow: Annotated[float, Field(ge=0)] | None = None
    cost: Annotated[float, Field(ge=0)] = 0.05
    feedback: Annotated[float, Field(ge=0)] | None = None
    end_to_end: Annotated[float, Field(ge=0)] = 0.05


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
    """``steps``: what a strategy makes of them is told in docs/concepts/rollouts.md.

    ``max_surge``, ``max_unavailable``: of ``rolling``, workers beyond ``serving.replicas`` and
    short of them, a count or a percentage of it; as in Kubernetes the first is rounded up, the
    second down. ``force``: that ``in_place`` may leave users without an answer while it loads, and
    promote what was compared with nothing. ``ab``: of the strategy of that name.

    ``baseline``: while at most half of the users have the challenger, as many others are served by
    workers of the champion's release of their own, as many as the challenger has and started with
    them. Needed by ``end_to_end``; takes ``serving.replicas`` more workers meanwhile."""

    strategy: Literal["canary", "blue_green", "shadow_only", "rolling", "in_place", "ab"] = "canary"
    steps: Annotated[tuple[Step, ...], Field(min_length=1)] = DEFAULT_STEPS
    ab: SplitConfig = SplitConfig()
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    # Guardrails: each may send everybody back, and all are proven before everybody gets it.
    metrics: Annotated[tuple[str, ...], Field(min_length=1)] = ("errors", "latency", "clip_score")
    margins: RolloutMargins = RolloutMargins()
    harm_tolerance: Annotated[float, Field(ge=0)] = 0.0  # of errors, slow, clip_score and feedback
    harm_tolerances: HarmTolerances = HarmTolerances()
    # Cosines are clamped into this range; one that fits the usual scores decides sooner.
    score_range: tuple[float, float] = (-1.0, 1.0)
    slower_than: Positive = 2.0
    max_seconds: Positive = 86_400.0
    on_inconclusive: Literal["abort", "hold", "ask"] = "abort"  # at max_seconds
    stuck_seconds: Annotated[float, Field(ge=0)] = 600.0  # not ready or not followed; 0: for ever
    bake_seconds: Annotated[float, Field(ge=0)] = 3600.0  # as champion, the previous one kept warm
    holdback: Annotated[float, Field(ge=0, le=0.5)] = 0.0  # users kept on the previous one then
    drain_seconds: Positive = 660.0  # longer than the longest request
    max_surge: Amount = 1
    max_unavailable: Amount = 0
    force: bool = False
    baseline: bool = False

    @field_validator("metrics")
    @classmethod
    def _known(cls, metrics: tuple[str, ...]) -> tuple[str, ...]:
        for name in metrics:
            if name not in ONLINE_METRICS:
                raise ValueError(f"no metric {name!r}; there are: {', '.join(ONLINE_METRICS)}")
        if len(set(metrics)) < len(metrics):
            raise ValueError("a metric is named twice")
        if "errors" not in metrics:
            raise ValueError("errors cannot be left out: they are what is watched at 100 %")
        return metrics

    def tolerance(self, metric: str) -> float:
        """How much worse is not yet harm, in the unit of the metric's margin."""
        own: float | None = getattr(self.harm_tolerances, metric)
        return self.harm_tolerance if own is None else own

    @property
    def randomised(self) -> bool:
        """Whether some users, not all, reach the challenger before it is proven."""
        if self.strategy in ("blue_green", "shadow_only"):
            return False
        return self.strategy != "canary" or any(
            s.kind is StepKind.CANARY and s.weight < 1 for s in self.steps
        )

    @property
    def guardrails(self) -> tuple[str, ...]:
        """The metrics that are judged: those that are named. Copies wait behind users, so where
        there are only copies, the default has ``slow`` for ``latency``."""
        if self.randomised or "metrics" in self.model_fields_set:
            return self.metrics
        return tuple("slow" if name == "latency" else name for name in self.metrics)

    @model_validator(mode="after")
    def _can_be_measured(self) -> RolloutConfig:
        for name in ("latency", "cost", "feedback"):
            if name in self.guardrails and not self.randomised:
                raise ValueError(
                    f"metrics: {name} needs a step that gives some users the challenger, and here "
                    "requests are only copied: leave it out, or add a canary step"
                )
        return self

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
        if StepKind.REPLACE in kinds:
            raise ValueError("replace is the step of strategy in_place, which adds it itself")
        return steps

    @model_validator(mode="after")
    def _strategy_has_what_it_reads(self) -> RolloutConfig:
        read = {"max_surge": "rolling", "max_unavailable": "rolling", "force": "in_place"}
        for name, strategy in read.items():
            default = RolloutConfig.model_fields[name].default
            if self.strategy != strategy and getattr(self, name) != default:
                raise ValueError(f"{name} is read by strategy {strategy} only; leave it out")
        if self.strategy == "in_place" and not self.force:
            raise ValueError(
                "strategy in_place ends the champion's worker before the challenger is loaded: "
                "users wait, and nothing is compared. Say force: true if that is meant"
            )
        kept = [s.weight for s in self.steps if s.kind is StepKind.BAKE and s.weight > 0]
        if self.strategy in ("rolling", "in_place") and (self.holdback > 0 or kept):
            raise ValueError(
                f"holdback: {self.strategy} leaves the previous one no workers to keep users on"
            )
        return self

    @model_validator(mode="after")
    def _has_an_equal_slice(self) -> RolloutConfig:
        if not self.baseline:
            if "end_to_end" in self.metrics:
                raise ValueError(
                    "metrics: end_to_end is compared with an equal slice of the champion only. Set "
                    "baseline: true, which takes as many more workers as the challenger has, or "
                    "leave end_to_end out"
                )
            return self
        if self.strategy != "canary":
            raise ValueError(
                f"baseline: strategy {self.strategy} gives no share of users for which the champion"
                " could have an equal slice: take canary, or leave baseline out"
            )
        if not any(s.kind is StepKind.CANARY and s.weight <= 0.5 for s in self.steps):
            raise ValueError(
                "baseline: no canary step has a weight of 0.5 or less, and above that no slice of "
                "the champion is as large as the challenger's: add one, or leave baseline out"
            )
        return self

    @model_validator(mode="after")
    def _splits_as_told(self) -> RolloutConfig:
        if self.strategy != "ab":
            if self.ab != SplitConfig():
                raise ValueError(f"ab: not read by strategy {self.strategy!r}; leave it out")
            return self
        if self.ab.metric not in self.metrics:
            raise ValueError(f"ab.metric: {self.ab.metric} is not one of metrics; add it there")
        return self


def _last(kinds: list[StepKind], kind: StepKind) -> int:
    return len(kinds) - 1 - kinds[::-1].index(kind)


def resolve_limits(replicas: int, surge: Amount, unavailable: Amount) -> tuple[int, int]:
    """(workers beyond, workers short of) ``replicas``. Percentages of it: the first is rounded up,
    the second down, as ``maxSurge`` and ``maxUnavailable`` of a Kubernetes Deployment are
    (https://kubernetes.io/docs/concepts/workloads/controllers/deployment/)."""

    def of(amount: Amount, up: bool) -> int:
        if isinstance(amount, int):
            return amount
        share = replicas * int(amount.removesuffix("%"))
        return -(-share // 100) if up else share // 100

    return of(surge, True), of(unavailable, False)


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
    what of live traffic may be learnt from, "reviewer" vote in reviews, "lead" see their results,
    "operator" steer rollouts, approve updates, roll back and freeze. Only the token's digest is
    held: ``sha256`` of it in hex, or ``token: env:NAME``."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]{0,62}$")]
    role: Literal["viewer", "trigger", "curate", "reviewer", "lead", "operator"] = "viewer"
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


# What whoever is on call wants to hear of: what needs a person, what went wrong, what users get.
ON_CALL = (
    "finding",
    "finding.again",
    "plan.tell",
    "plan.collect_data",
    "plan.held",
    "budget.used_up",
    "curation.proposed",
    "update.phase.review",
    "update.asked",
    "update.phase.promoted",
    "update.phase.rejected",
    "update.phase.rolled_back",
    "update.phase.cancelled",
    "update.phase.failed",
    "rollout.asked",
    "rollout.overdue",
    "rollout.returning",
    "rollout.rolled_back",
    "rollout.inconclusive",
    "champion",
    "champion.*",
    "command.freeze",
    "command.unfreeze",
    "brake.*",
    "notify.*",
)
_NAME = r"^[a-z0-9][a-z0-9-]{0,31}$"
_WEBHOOK = ("url", "secret", "timeout_s", "give_up_s")


class NotifierConfig(Section):
    """Who is told. ``events``: names, or patterns with ``*``; by default all for "log", ``ON_CALL``
    for "webhook" (docs/guides/notifications.md has the names). ``url`` and ``secret`` of a webhook
    may be ``env:NAME``, the latter must. ``timeout_s``: for each wait of one attempt;
    ``give_up_s``: how long a receiver may fail before an event is given up."""

    type: Literal["log", "webhook"]
    name: Annotated[str, Field(pattern=_NAME)] = ""
    url: Annotated[str, Field(pattern=r"^(https?://[^\s/]\S*|env:[A-Za-z_]\w*)$")] | None = None
    secret: Annotated[str, Field(pattern=r"^env:[A-Za-z_]\w*$")] | None = None
    events: tuple[Annotated[str, Field(pattern=r"^[a-z_.*]{1,64}$")], ...] | None = None
    timeout_s: Annotated[float, Field(gt=0, le=60)] = 10.0
    give_up_s: Annotated[float, Field(ge=60)] = 86_400.0

    @model_validator(mode="before")
    @classmethod
    def _has_a_name(cls, given: Any) -> Any:
        if isinstance(given, dict) and "name" not in given and isinstance(given.get("type"), str):
            return {**given, "name": given["type"]}
        return given

    @model_validator(mode="after")
    def _has_what_it_reads(self) -> NotifierConfig:
        if self.type == "webhook" and self.url is None:
            raise ValueError("url: a webhook needs one, http(s)://… or env:NAME")
        if self.type == "log":
            for name in _WEBHOOK:
                if getattr(self, name) != NotifierConfig.model_fields[name].default:
                    raise ValueError(f"{name} is not read by type 'log'; leave it out")
        return self

    @property
    def patterns(self) -> tuple[str, ...]:
        """What it is told of."""
        if self.events is not None:
            return self.events
        return ("*",) if self.type == "log" else ON_CALL
