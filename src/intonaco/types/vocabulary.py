"""The words of which there is a fixed list: verdicts, causes, phases, outcomes."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

Json = Any  # JSON value as ``json.loads`` returns it


class Verdict(StrEnum):
    """Of a gate or a rollout. Missing data is never ``PASS``."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    ERROR = "error"


class Assessment(StrEnum):
    """Of one metric, challenger against champion."""

    HARMFUL = "harmful"
    NON_INFERIOR = "non_inferior"
    SUPERIOR = "superior"
    UNDECIDED = "undecided"
    NO_DATA = "no_data"


class Cause(StrEnum):
    """Why a finding happened (the table in ``docs/concepts/causes.md``)."""

    PERFORMANCE_DEGRADATION = "performance_degradation"
    DATA_DRIFT = "data_drift"
    CONCEPT_DRIFT = "concept_drift"
    QUALITY_DECLINE = "quality_decline"
    NEW_DATA = "new_data"
    NEW_TECHNIQUE = "new_technique"
    CODE_CHANGE = "code_change"
    BROKEN_FORMAT = "broken_format"
    FIRST_RELEASE = "first_release"
    REQUESTED = "requested"
    UNKNOWN = "unknown"


class Factor(StrEnum):
    """What is behind a cause, where that could be told (``docs/concepts/causes.md``)."""

    RELEASE = "release"  # the model in service: came with it, and the one before is better
    ENVIRONMENT = "environment"  # under the release: library versions, drivers, a scheduler
    INFRASTRUCTURE = "infrastructure"  # machines: some replicas or all of them
    QUEUEING = "queueing"  # more requests than there is capacity for
    REQUEST_MIX = "request_mix"  # larger requests than before; each is as fast as it was
    UPSTREAM = "upstream"  # another's image server
    CLIENTS = "clients"  # what is sent
    MONITORING = "monitoring"  # what watches, not what is watched


class Action(StrEnum):
    """What a plan does."""

    FINE_TUNE = "fine_tune"
    FULL_RETRAIN = "full_retrain"
    ASSEMBLE = "assemble"  # a release from existing weights: new sampler, new library versions
    ROLL_BACK = "roll_back"
    WATCH = "watch"
    COLLECT_DATA = "collect_data"
    TELL = "tell"  # escalate to a person

    @property
    def trains(self) -> bool:
        return self in (Action.FINE_TUNE, Action.FULL_RETRAIN)

    @property
    def makes_update(self) -> bool:
        return self.trains or self is Action.ASSEMBLE


class Phase(StrEnum):
    """Where an update is. The last five are final."""

    DATASET = "dataset"
    TRAIN = "train"
    EVALUATE = "evaluate"
    REVIEW = "review"
    GATE = "gate"
    REGISTER = "register"
    STAGE = "stage"
    APPROVE = "approve"
    ROLLOUT = "rollout"
    BAKE = "bake"
    PROMOTED = "promoted"
    REJECTED = "rejected"
    ROLLED_BACK = "rolled_back"
    CANCELLED = "cancelled"
    FAILED = "failed"

    @property
    def final(self) -> bool:
        return self in _FINAL_PHASES


_FINAL_PHASES = frozenset(
    {Phase.PROMOTED, Phase.REJECTED, Phase.ROLLED_BACK, Phase.CANCELLED, Phase.FAILED}
)


class RolloutStatus(StrEnum):
    """Where a rollout is. The last four are final."""

    RUNNING = "running"
    PAUSED = "paused"
    PROMOTED = "promoted"
    OBSERVED = "observed"  # at the end of a list of steps that promotes nobody
    ROLLED_BACK = "rolled_back"
    INCONCLUSIVE = "inconclusive"

    @property
    def final(self) -> bool:
        return self not in (RolloutStatus.RUNNING, RolloutStatus.PAUSED)


class StepKind(StrEnum):
    """What a step of a rollout does, and what it waits for."""

    STAGE = "stage"  # loaded and ready, without traffic
    SHADOW = "shadow"  # copies of requests, answers compared and thrown away
    CANARY = "canary"  # a share of users
    REPLACE = "replace"  # the champion's worker ends, then the challenger is loaded in its place
    SPLIT = "split"  # a fixed share of users for each of several challengers, until one wins
    PAUSE = "pause"  # a time, or until somebody resumes
    APPROVE = "approve"  # a person's word
    ANALYSIS = "analysis"  # every guardrail proven
    PROMOTE = "promote"  # everybody; the challenger is champion
    BAKE = "bake"  # watched as champion, the previous one warm


class JobState(StrEnum):
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        return self is not JobState.RUNNING


class ArmRole(StrEnum):
    CHAMPION = "champion"
    CHALLENGER = "challenger"
    BASELINE = "baseline"
    HOLDBACK = "holdback"
    SHADOW = "shadow"
    RETURNED = "returned"  # whose challenger was taken out of a split: the champion answers


class Outcome(StrEnum):
    """Of one attempt at one worker."""

    OK = "ok"
    ERROR = "error"  # the worker answered with a server error or broke the connection
    TIMEOUT = "timeout"
    REJECTED = "rejected"  # the worker was full (429) or draining (503)
    INVALID = "invalid"  # the request itself is wrong (4xx): nobody's fault but the client's
    CANCELLED = "cancelled"
