"""How a rollout begins: with the steps of its strategy. Strategies differ in nothing else; one
machine runs them all. Pure."""

from __future__ import annotations

from dataclasses import replace

from intonaco.codec import digest
from intonaco.config import Config, RolloutConfig, Step, resolve_limits
from intonaco.rollout.capacity import waves
from intonaco.rollout.split import planned
from intonaco.types import (
    Action,
    Capacity,
    Rollout,
    RolloutStatus,
    RolloutStep,
    Split,
    StepKind,
    Update,
)

_BEFORE = (StepKind.STAGE, StepKind.SHADOW, StepKind.PAUSE, StepKind.APPROVE, StepKind.ANALYSIS)
_SWITCH = RolloutStep(kind=StepKind.CANARY, weight=1.0)  # everybody, but not champion yet
_ANALYSIS = RolloutStep(kind=StepKind.ANALYSIS)
_PROMOTE = RolloutStep(kind=StepKind.PROMOTE)
_REPLACE = RolloutStep(kind=StepKind.REPLACE, weight=1.0)


def begin(update: Update, config: Config, now: float) -> Rollout:
    """The rollout of an update's chosen release; alpha halves with each attempt. The first release,
    and one that has served, go straight to everybody."""
    rollout_id = f"{update.update_id}-{update.attempt}"
    alone = straight_to_everybody(update, config.rollout)
    capacity = None if alone else capacity_of(config)
    split = None
    if config.rollout.strategy == "ab" and not alone:
        split = planned(update.arms or {"challenger": str(update.chosen)}, config.rollout.ab)
    return Rollout(
        rollout_id=rollout_id,
        service_id=update.service_id,
        update_id=update.update_id,
        champion=None if alone else update.champion,
        challenger=split.arms[0].release if split else str(update.chosen),
        steps=straight(config.rollout) if alone else steps_for(config.rollout, capacity, split),
        status=RolloutStatus.RUNNING,
        started_at=now,
        step_since=now,
        salt=digest(["salt", rollout_id, now])[:16],
        alpha=config.rollout.alpha / 2 ** (update.attempt - 1),
        max_seconds=config.rollout.max_seconds,
        on_inconclusive=config.rollout.on_inconclusive,
        stuck_seconds=config.rollout.stuck_seconds,
        attempt=update.attempt,
        capacity=capacity,
        split=split,
        baseline=0 if alone else baseline_workers(config),
    )


def straight_to_everybody(update: Update, config: RolloutConfig) -> bool:
    """Whether there is nothing to compare with: the first release, and one that has served. In
    place, even that one has to wait until the champion's worker is gone."""
    back = update.plan.action is Action.ROLL_BACK and config.strategy != "in_place"
    return update.champion is None or back


def capacity_of(config: Config) -> Capacity | None:
    """Of a rolling rollout, before its first wave."""
    rollout, total = config.rollout, config.serving.replicas
    if rollout.strategy != "rolling":
        return None
    surge, unavailable = resolve_limits(total, rollout.max_surge, rollout.max_unavailable)
    first = Capacity(total=total, surge=surge, unavailable=unavailable, challenger=0)
    return replace(first, challenger=waves(first)[0])


def staged_replicas(update: Update, config: Config) -> int | None:
    """Workers of the challenger that are loaded beside the champion before its rollout begins.
    None: all of them; 0: there is no room for any."""
    if straight_to_everybody(update, config.rollout):
        return None
    if config.rollout.strategy == "in_place":
        return 0
    capacity = capacity_of(config)
    return None if capacity is None else min(capacity.surge, capacity.challenger)


def baseline_workers(config: Config) -> int:
    """Workers of the equal slice: as many as the challenger has."""
    return config.serving.replicas if config.rollout.baseline else 0


def staged_baseline(update: Update, config: Config) -> int:
    """Workers of the equal slice that are started with the challenger's."""
    return 0 if straight_to_everybody(update, config.rollout) else baseline_workers(config)


def steps_for(
    config: RolloutConfig, capacity: Capacity | None = None, split: Split | None = None
) -> tuple[RolloutStep, ...]:
    """The steps that the configuration asks for.

    ``canary`` takes them as they are. ``blue_green`` leaves out the shares of users: it copies
    requests, proves, and switches everybody at once; ``shadow_only`` ends before the switch. Both
    copy all requests, for as long and for as many pairs as the first step asks, where no shadow
    step is configured. ``rolling`` (``capacity``) gives each wave of workers the users that go with
    it, for as long and as many as the first canary step asks; where there is one wave only, it
    proves on copies as blue/green does. ``in_place`` can do nothing but wait for people and
    replace. ``ab`` has one step with the fixed split, after the pauses and approvals that are
    listed, and nothing after it where a winner is only told. Whoever promotes gives everybody the
    challenger first, makes it champion once the gateways follow, and bakes.
    """
    given = tuple(_step(s) for s in config.steps)
    if config.strategy == "in_place":
        waits = tuple(s for s in given if s.kind in (StepKind.PAUSE, StepKind.APPROVE))
        return (*waits, _REPLACE, *_to_champion(config, (*waits, _SWITCH), given))
    if capacity is not None and len(waves(capacity)) > 1:
        before = tuple(s for s in given if s.kind in _BEFORE)
        rolled = (*before, *_rolling(capacity, given))
        return (*rolled, *_to_champion(config, rolled, given))
    before = tuple(s for s in given if s.kind in (*_BEFORE, StepKind.CANARY))
    if split is not None:
        kept = (StepKind.STAGE, StepKind.PAUSE, StepKind.APPROVE)
        compared = RolloutStep(
            kind=StepKind.SPLIT,
            weight=sum(arm.share for arm in split.arms),
            min_seconds=config.ab.min_seconds,
            min_units=config.ab.min_units,
        )
        before = (*(s for s in before if s.kind in kept), compared)
        return before if split.then == "none" else (*before, *_to_champion(config, before, given))
    if config.strategy != "canary":
        before = tuple(s for s in before if s.kind in _BEFORE)
        if not any(s.kind is StepKind.SHADOW for s in before):
            copied = config.steps[0]
            shadow = RolloutStep(
                kind=StepKind.SHADOW,
                weight=1.0,
                min_seconds=copied.min_seconds or 0.0,
                min_units=copied.min_units,
            )
            staged = sum(s.kind is StepKind.STAGE for s in before)
            before = (*before[:staged], shadow, *before[staged:])
        if before[-1].kind is not StepKind.ANALYSIS:
            before = (*before, _ANALYSIS)
    if config.strategy == "shadow_only":
        return before
    return (*before, *_to_champion(config, before, given))


def _rolling(capacity: Capacity, given: tuple[RolloutStep, ...]) -> tuple[RolloutStep, ...]:
    usual = RolloutStep(kind=StepKind.CANARY, min_seconds=600.0, min_units=100)
    asked = next((s for s in given if s.kind is StepKind.CANARY), usual)
    return tuple(
        replace(asked, weight=replicas / capacity.total, replicas=replicas)
        for replicas in waves(capacity)
    )


def foreseen(config: Config) -> tuple[RolloutStep, ...]:
    """The steps of the next rollout with one challenger, for planning: a split is told as the share
    that the challenger has of its users and the champion's."""
    rollout = config.rollout
    if rollout.strategy != "ab":
        return steps_for(rollout, capacity_of(config))
    split = planned({"challenger": ""}, rollout.ab)
    share = split.arms[0].share / (split.arms[0].share + split.champion_share)
    return tuple(
        replace(s, kind=StepKind.CANARY, weight=share) if s.kind is StepKind.SPLIT else s
        for s in steps_for(rollout, split=split)
    )


def straight(config: RolloutConfig) -> tuple[RolloutStep, ...]:
    """Of a release with nothing to be compared with: the first one, and one that has served."""
    return _to_champion(config, (), ())


def _to_champion(
    config: RolloutConfig, before: tuple[RolloutStep, ...], given: tuple[RolloutStep, ...]
) -> tuple[RolloutStep, ...]:
    shares = [s.weight for s in before if s.kind is StepKind.CANARY]
    switch = () if shares and shares[-1] >= 1.0 else (_SWITCH,)
    baked = tuple(s for s in given if s.kind is StepKind.BAKE)
    if not any(s.kind is StepKind.PROMOTE for s in given) and config.bake_seconds > 0:
        bake = RolloutStep(
            kind=StepKind.BAKE, weight=config.holdback, min_seconds=config.bake_seconds
        )
        baked = (bake,)
    return (*switch, _PROMOTE, *baked)


def _step(step: Step) -> RolloutStep:
    """Fields that a kind does not read have no effect on it."""
    timed = step.kind in (StepKind.SHADOW, StepKind.CANARY, StepKind.BAKE, StepKind.PAUSE)
    if step.kind is StepKind.STAGE:
        timed = "min_seconds" in step.model_fields_set
    counted = step.kind in (StepKind.SHADOW, StepKind.CANARY)
    return RolloutStep(
        kind=step.kind,
        weight=step.weight,
        min_seconds=step.min_seconds if timed else 0.0,
        min_units=step.min_units if counted else 0,
        deadline_s=step.deadline_s,
        on_timeout=step.on_timeout,
    )
