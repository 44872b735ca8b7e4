"""What ``loop`` looks at and what it says: an update's facts, its next step, and the effects that
it asks for in between. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from intonaco.config import Config
from intonaco.ledger import Effect, EffectStatus
from intonaco.types import Json, Phase, Rollout, Update


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """Somebody's word on an update."""

    approved: bool
    actor: str
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known when an update is looked at."""

    config: Config
    effects: Mapping[str, EffectStatus] = field(default_factory=dict)
    rollout: Rollout | None = None
    approval: Approval | None = None
    earlier: int = 0  # candidates that the gate judged for the same trigger before this update
    quarantined: Mapping[str, str] = field(default_factory=dict)  # why, by release
    passed: frozenset[str] = frozenset()  # releases that the gate ever let through


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """An update's next state, with what has to happen for it."""

    update: Update
    effects: tuple[Effect, ...] = ()
    rollout: Rollout | None = None  # to begin now
    note: str = ""


def effect(update: Update, kind: str, name: str, **payload: Json) -> Effect:
    """Of an update's attempt, kind and name there is one; only the first payload counts."""
    key = f"{update.service_id}:{update.update_id}:{kind}:{name}:{update.attempt}"
    return Effect(key=key, kind=kind, subject=update.update_id, payload={"name": name, **payload})


def status_of(facts: Facts, effect: Effect) -> str:
    """``wanted``, ``done``, ``failed`` or ``unasked``."""
    known = facts.effects.get(effect.key)
    return known.status if known else "unasked"


def look(
    facts: Facts, effects: Iterable[Effect]
) -> tuple[dict[str, Mapping[str, Json]], str, bool]:
    """(results by key, the first error or "", whether any is not at its end)."""
    results: dict[str, Mapping[str, Json]] = {}
    waiting = False
    error = ""
    for effect in effects:
        known = facts.effects.get(effect.key)
        if known is None or known.status == "wanted":
            waiting = True
        elif known.status == "failed":
            error = error or known.error
        else:
            results[effect.key] = known.result
    return results, error, waiting and not error


def to(update: Update, phase: Phase, now: float, note: str) -> Step:
    """The update in another phase; of a final one the note is its reason."""
    reason = note if phase.final else update.reason
    return Step(update=replace(update, phase=phase, phase_since=now, reason=reason), note=note)
