"""Which findings belong together. Pure.

An incident is one change of the world; detectors notice it one after the other. A finding that is
dated before the diagnosis of an incident is taken for a part of it, whenever it fires; so is what
follows from it later: slow work fills the queue and then fails, bad images are voted down.
"""

from __future__ import annotations

from collections.abc import Sequence

from intonaco.decision.picture import PERFORMANCE_KINDS, signal_kind
from intonaco.types import Action, Diagnosis, Factor, Finding, Plan

# Going back to another release mends none of these.
NOT_THE_RELEASE = frozenset(
    {
        Factor.QUEUEING,
        Factor.REQUEST_MIX,
        Factor.INFRASTRUCTURE,
        Factor.UPSTREAM,
        Factor.CLIENTS,
        Factor.MONITORING,
    }
)

HEADLINE = "incident"  # status of a diagnosis; the other causes of an incident have none
CONSEQUENCE_SECONDS = 3600.0  # what may follow from an incident does so within this time
FORGET_SECONDS = 6 * 3600.0  # what fires this long after the diagnosis is an incident of its own
REPEAT_SECONDS = 1800.0  # the same told again within this time is no news


def belongs(finding: Finding, diagnosis: Diagnosis) -> bool:
    """Whether ``finding`` is one more sign of what was diagnosed, under the same release: what it
    dates began before that diagnosis, or is what such a thing leads to."""
    if finding.release not in {f.release for f in diagnosis.findings}:
        return False
    later = finding.at - diagnosis.at
    if finding.since_at <= diagnosis.at:
        return later <= FORGET_SECONDS
    kind, known = signal_kind(finding), {signal_kind(f) for f in diagnosis.findings}
    follows = kind in PERFORMANCE_KINDS and bool(known & PERFORMANCE_KINDS)
    follows |= kind == "feedback" and bool(known & {"quality", "outputs", "prompts"})
    return follows and later <= CONSEQUENCE_SECONDS


def says_the_same(new: Diagnosis, old: Diagnosis) -> bool:
    """Whether a diagnosis adds nothing that would be answered otherwise: the same causes with the
    same factors."""
    return (
        new.cause is old.cause
        and new.factor is old.factor
        and set(new.also) == set(old.also)
        and dict(new.factors) == dict(old.factors)
    )


def repeats(new: Diagnosis, old: Diagnosis) -> bool:
    """Whether it is the old one come back: the same causes of the same signals under the same
    release, shortly after. Signals that flap are told once."""
    return (
        says_the_same(new, old)
        and {(f.signal, f.release) for f in new.findings}
        <= {(f.signal, f.release) for f in old.findings}
        and new.at - old.at <= REPEAT_SECONDS
    )


def may_be_the_release(diagnosis: Diagnosis, changed: bool) -> bool:
    """Whether a release that changed shortly before could be behind it. ``changed``: one did."""
    return changed and diagnosis.factor not in NOT_THE_RELEASE


def is_news(plan: Plan, earlier: Sequence[Plan]) -> bool:
    """Whether a plan is to be told and begun, given the incident's earlier ones for its cause. What
    was begun is not begun again, and what was said is not said again; more findings may make more
    of what was only watched."""
    if any(p.action.makes_update or p.action is Action.ROLL_BACK for p in earlier):
        return False
    return not earlier or plan.action is not earlier[-1].action
