"""How often one trigger has been tried at the gate, and at which alpha the next one is judged.

Candidates for one trigger that are judged on the same prompts, one after the other until one
passes, would find one that passes by luck. So the first is judged at alpha, and each further one at
half the alpha of the one before: all together let a bad one pass with less than twice alpha,
however many there are. After a fixed number nobody is judged any more (Blum & Hardt 2015 say why: a
test set that is asked often enough is learnt). Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from intonaco.types import Diagnosis, Plan, Update


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """Which candidate for its trigger one is, from 1, and the alpha that it is judged at."""

    alpha: float
    number: int = 1


def attempt(number: int, alpha: float) -> Attempt:
    """The ``number``-th candidate for a trigger, from 1; the first is judged at ``alpha``."""
    return Attempt(number=number, alpha=alpha / 2 ** (number - 1))


def attempts(names: Sequence[str], earlier: int, alpha: float) -> dict[str, Attempt]:
    """Of the candidates of an update, in the order of its recipes; ``earlier`` were judged for the
    same trigger before.

    >>> [a.alpha for a in attempts(["with-replay", "without-replay"], 1, 0.05).values()]
    [0.025, 0.0125]
    """
    return {name: attempt(number, alpha) for number, name in enumerate(names, earlier + 1)}


def trigger(plan: Plan, diagnoses: Mapping[str, Diagnosis]) -> str:
    """What set a plan off: its incident, or what was announced from outside. What a person asks for
    is a trigger of its own each time. ``diagnoses`` by their ids."""
    if plan.diagnosis_id is not None:
        found = diagnoses.get(plan.diagnosis_id)
        return f"incident:{(found.incident if found else '') or plan.diagnosis_id}"
    return f"trigger:{plan.trigger}" if plan.trigger else f"plan:{plan.plan_id}"


def earlier(update: Update, updates: Iterable[Update], diagnoses: Mapping[str, Diagnosis]) -> int:
    """Candidates that the gate has judged for the same trigger against the same champion before
    this update: a new champion is a new question. Those that broke in training were not judged."""
    mine = trigger(update.plan, diagnoses)
    return sum(
        candidate.attempt > 0
        for other in updates
        if other.update_id != update.update_id
        and other.created_at <= update.created_at
        and other.champion == update.champion
        and trigger(other.plan, diagnoses) == mine
        for candidate in other.candidates
    )
