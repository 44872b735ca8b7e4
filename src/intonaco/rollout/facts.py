"""What the machine of a rollout decides on, and what it answers. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from intonaco.rollout import split
from intonaco.rollout.outcomes import BOUNDED
from intonaco.types import (
    BreakerTrip,
    MetricAssessment,
    PairComparison,
    Rollout,
    RolloutStatus,
    StepKind,
)

EQUAL = 0.5  # the largest share beside which the champion can have an equal slice
COMMANDS = ("pause", "resume", "abort", "promote", "skip", "approve")


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutFacts:
    """What the machine decides on. ``units_at_step``: distinct challenger users judged since the
    step began. ``trips``: the challenger's, of this rollout. ``guardrails``: metrics that must be
    proven; one that is not assessed has no data. ``champion_ready``: it could take everybody now
    (the previous one, once the challenger is champion). ``dead``: the challenger cannot answer.
    ``challenger_replicas``, ``champion_replicas``: workers that answer, read in a rolling rollout.
    While a split is undecided, ``arms`` and ``pairs`` tell of its challengers instead; ``arm``: the
    one that a command names."""

    assessments: tuple[MetricAssessment, ...] = ()
    units_at_step: int = 0
    shadow_pairs: int = 0
    trips: tuple[BreakerTrip, ...] = ()
    challenger_ready: bool = False
    champion_ready: bool = True
    observed_epoch_applied: bool = False
    sample_ratio_ok: bool = True
    sample_ratio_text: str = ""
    guardrails: tuple[str, ...] = BOUNDED
    command: str | None = None
    actor: str = "somebody"
    why: str = ""  # that the actor gave
    asked_at: float | None = None  # when the command was given, None: now
    frozen: bool = False
    blind: str = ""  # why nobody sees just now what the challenger does: nothing advances
    unjudged_at: float | None = None  # time of the oldest request that no evidence is of yet
    dead: bool = False
    challenger_replicas: int = 0
    champion_replicas: int = 0
    arms: tuple[split.ArmFacts, ...] = ()
    pairs: tuple[PairComparison, ...] = ()
    arm: str | None = None
    baseline: str = ""  # what its equal slice still lacks

    @property
    def by(self) -> str:
        """Who asked, and why."""
        return self.actor + (f": {self.why}" if self.why else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutDecision:
    """The rollout as it is now, the shares that traffic should have, and what happened.

    ``weights``: {"challenger": share of users, "shadow": share of requests copied}. ``events``:
    (kind, sentence), kinds being begun, step, asked, scaling, waiting, overdue, asking, accepted,
    paused, resumed, refused, removed, crowned, returning, promoted, observed, rolled_back,
    inconclusive. ``by_command``: it is what the command asked for; a command always has an event,
    "refused" if it was not done."""

    rollout: Rollout
    weights: Mapping[str, float]
    events: tuple[tuple[str, str], ...] = field(default=())
    by_command: bool = False


def weights_of(rollout: Rollout) -> Mapping[str, float]:
    """Shares that the rollout's state asks for. Steps that move no traffic keep that of the last
    one that did."""
    nothing = {"challenger": 0.0, "shadow": 0.0}
    if rollout.status is RolloutStatus.PROMOTED:
        return nothing | {"challenger": 1.0}
    if rollout.status.final or not rollout.history:
        return nothing
    taken = rollout.steps[: rollout.step + 1]
    cap = rollout.capacity
    most = cap.challenger / cap.total if cap is not None and rollout.returning else 1.0
    if rollout.promoted_at is not None:
        held = taken[-1].weight if taken[-1].kind is StepKind.BAKE else 0.0
        return nothing | {"challenger": min(1.0 - held, most)}
    for step in reversed(taken):
        if step.kind in (StepKind.CANARY, StepKind.REPLACE):
            return nothing | {"challenger": min(step.weight, most)}
        if step.kind is StepKind.SPLIT and rollout.split is not None:
            return nothing | {"challenger": sum(a.share for a in rollout.split.live)}
        if step.kind is StepKind.SHADOW:
            return nothing | {"shadow": step.weight}
    return nothing


def equal_share(rollout: Rollout, weights: Mapping[str, float]) -> float:
    """Share of users of the baseline, if its workers answer: the challenger's, or none."""
    share = weights.get("challenger", 0.0)
    compared = rollout.baseline > 0 and rollout.promoted_at is None and not rollout.status.final
    return share if compared and 0 < share <= EQUAL else 0.0


def decided(rollout: Rollout, *events: tuple[str, str]) -> RolloutDecision:
    return RolloutDecision(rollout=rollout, weights=weights_of(rollout), events=events)
