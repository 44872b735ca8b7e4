"""What the ledger's rows are outside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.engine import RowMapping

from intonaco.types import (
    DatasetVersion,
    Diagnosis,
    Finding,
    Json,
    Plan,
    ProbeRound,
    Release,
    Review,
    Rollout,
    TrafficWindow,
    Update,
)

KINDS: Mapping[str, type[Any]] = {
    "release": Release,
    "dataset": DatasetVersion,
    "finding": Finding,
    "diagnosis": Diagnosis,
    "plan": Plan,
    "probe_round": ProbeRound,
    "update": Update,
    "rollout": Rollout,
    "review": Review,
    "window": TrafficWindow,
}
KIND_OF = {cls: kind for kind, cls in KINDS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """An action that a state asks for. The same key is done once."""

    key: str
    kind: str
    subject: str
    payload: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectStatus:
    """How far an effect has come: "wanted", "done" or "failed"."""

    effect: Effect
    status: str
    result: Mapping[str, Json]
    error: str
    attempts: int
    updated_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """Something a person asked for."""

    command_id: int
    at: float
    actor: str
    kind: str
    arguments: Mapping[str, Json]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenure:
    """A release's time as champion."""

    release_id: str
    since: float
    until: float | None
    reason: str


def effect_of(row: RowMapping) -> EffectStatus:
    return EffectStatus(
        effect=Effect(
            key=row["key"],
            kind=row["kind"],
            subject=row["subject"],
            payload=json.loads(row["payload"]),
        ),
        status=row["status"],
        result=json.loads(row["result"]),
        error=row["error"],
        attempts=row["attempts"],
        updated_at=row["updated_at"],
    )


def command_of(row: RowMapping) -> Command:
    return Command(
        command_id=row["command_id"],
        at=row["at"],
        actor=row["actor"],
        kind=row["kind"],
        arguments=json.loads(row["arguments"]),
    )
