"""What the machine says, in words. Pure."""

from __future__ import annotations

from intonaco.rollout.outcomes import CLIP_SCORE
from intonaco.types import MetricAssessment, RolloutStep, StepKind


def number(metric: str, value: float) -> str:
    """A difference in the metric's own unit."""
    return f"{value:+.3f}" if metric == CLIP_SCORE else f"{value:+.1%}"


def brief(a: MetricAssessment) -> str:
    """One metric in a few words: its interval and its margin."""
    if a.interval is None:
        return f"{a.metric} {a.assessment.replace('_', ' ')}"
    low, high = (number(a.metric, value) for value in a.interval)
    return f"{a.metric} {low} to {high} (margin {number(a.metric, a.margin).lstrip('+')})"


def describe(a: MetricAssessment) -> str:
    """One metric in words and figures."""
    if a.difference is None or a.interval is None:
        return f"{a.metric} {a.assessment.replace('_', ' ')}"
    low, high = a.interval
    pairs = f" and {a.shadow_pairs} shadow pairs, " if a.shadow_pairs else ", "
    return (
        f"{a.metric} {number(a.metric, a.difference)} [{number(a.metric, low)}, "
        f"{number(a.metric, high)}] from {a.units_challenger} challenger and "
        f"{a.units_champion} champion users{pairs}log evidence of harm {a.evidence_harm:.1f} of "
        f"{a.threshold:.1f}, margin {number(a.metric, a.margin).lstrip('+')}"
    )


def step_name(step: RolloutStep) -> str:
    """A step in a few words."""
    match step.kind:
        case StepKind.STAGE:
            return "stage, no traffic"
        case StepKind.SHADOW:
            return f"shadow, {step.weight:.0%} of requests copied"
        case StepKind.CANARY:
            return f"canary, {step.weight:.0%} of users"
        case StepKind.SPLIT:
            return f"split, {step.weight:.0%} of users with challengers, until one wins"
        case StepKind.PAUSE:
            held = f"{step.min_seconds:.0f} s" if step.min_seconds else "until somebody resumes"
            return f"pause, {held}"
        case StepKind.APPROVE:
            within = f" within {step.deadline_s:.0f} s" if step.deadline_s else ""
            return f"approve, a person's word{within}"
        case StepKind.ANALYSIS:
            return "analysis, until every guardrail is proven"
        case StepKind.PROMOTE:
            return "promote, champion for everybody"
        case StepKind.BAKE:
            kept = f", {step.weight:.0%} of users held back" if step.weight else ""
            return f"bake, {step.min_seconds or 0:.0f} s{kept}"
