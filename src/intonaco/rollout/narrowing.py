"""An interval, and what is proven besides it. Pure.

A proof and an interval are two procedures. The bets that prove a margin, or harm, are sharper than
the interval and may settle a question on which it has not closed: of times especially, where the
interval is that of one quantile from sketches and the proof compares ranks within classes.
"""

from __future__ import annotations

from dataclasses import replace

from intonaco.rollout.outcomes import CLIP_SCORE
from intonaco.types import Assessment, MetricAssessment


def narrowed(a: MetricAssessment, tolerance: float) -> MetricAssessment:
    """With its interval cut where the proof ends it, if that leaves anything.

    Non-inferior rules out what is worse than the margin, superior what is worse than no difference,
    harmful what is better than the tolerance. Interval and proof each hold at every look at a level
    of their own, so both do with the sum of their errors (Bonferroni). For people: a decision that
    has its level from the interval alone takes it as it was.
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
