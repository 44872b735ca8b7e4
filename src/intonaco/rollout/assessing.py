"""What evidence of a metric amounts to, and the interval that is shown with it. Pure."""

from __future__ import annotations

from dataclasses import replace

from intonaco.rollout.evidence import Evidence
from intonaco.rollout.outcomes import CLIP_SCORE
from intonaco.types import Assessment, MetricAssessment


def assessed(
    worst: float,
    proof: Evidence,
    *,
    harmful_at: float,
    proven_at: float,
    has_data: bool,
    doubtful: bool = False,
) -> Assessment:
    """``worst``: the highest log evidence of harm; ``proof``: what non-inferiority rests on;
    ``harmful_at``, ``proven_at``: log thresholds; ``doubtful``: stays undecided whatever was seen.

    Harm is for good, as soon as it was proven at any look.
    """
    if worst >= harmful_at:
        return Assessment.HARMFUL
    if not has_data:
        return Assessment.NO_DATA
    if doubtful:
        return Assessment.UNDECIDED
    if _proven(proof.better, proven_at):
        return Assessment.SUPERIOR
    if _proven(proof.within, proven_at):
        return Assessment.NON_INFERIOR
    return Assessment.UNDECIDED


def _proven(evidence: tuple[float, float], threshold: float) -> bool:
    """Proven once is proven, at every look (Ville): records that trickle in afterwards do not undo
    it by a hair. It is given up only when the evidence has turned to the other side."""
    now, highest = evidence
    return highest >= threshold and now > 0


def narrowed(a: MetricAssessment, tolerance: float) -> MetricAssessment:
    """With its interval cut where the proof ends it, if that leaves anything.

    Non-inferior rules out what is worse than the margin, superior what is worse than no difference,
    harmful what is better than the tolerance. The bets that prove it are sharper than the interval
    and may settle what it has not closed on, of times above all: there it is one quantile's, from
    sketches, and the proof compares ranks. Each holds at every look at a level of its own, so both
    do with the sum of their errors (Bonferroni). For people: a decision that has its level from the
    interval alone takes it as it was.
    """
    if a.interval is None:
        return a
    worse = -1.0 if a.metric == CLIP_SCORE else 1.0
    low, high = sorted(end * worse for end in a.interval)  # up is worse
    match a.assessment:
        case Assessment.NON_INFERIOR:
            high = min(high, a.margin)
        case Assessment.SUPERIOR:
            high = min(high, 0.0)
        case Assessment.HARMFUL:
            low = max(low, tolerance)
    if low > high:
        return a
    low, high = sorted((low * worse, high * worse))
    return replace(a, interval=(low, high))
