"""What the machine says, in words. Pure."""

from __future__ import annotations

from intonaco.rollout.outcomes import CLIP_SCORE
from intonaco.types import MetricAssessment, RolloutStep, StepKind


def number(metric: str, value: float) -> str:
    """A difference in the metric's own unit."""
    return f"{value:+.3f}" if metric == CLIP_SCORE else f"{value:+.1%}"


def brief(a: MetricAssessment) -> str:
    """One metric in a few words: its interval, or its difference, and its margin."""
    margin = f"(margin {number(a.metric, a.margin).lstrip('+')})"
    if a.interval is not None:
        low, high = (number(a.metric, value) for value in a.interval)
        return f"{a.metric} {low} to {high} {margin}"
    if a.difference is not None:
        return f"{a.metric} {number(a.metric, a.difference)} {margin}"
    return f"{a.metric} {a.assessment.replace('_', ' ')}"


def describe(a: MetricAssessment) -> str:
    """One metric in words and figures."""
    if a.difference is None:
        said = f"{a.metric} {a.assessment.replace('_', ' ')}"
        return f"{said}: {a.missing}" if a.missing else said
    interval = ""
    if a.interval is not None:
        low, high = (number(a.metric, value) for value in a.interval)
        interval = f" [{low}, {high}]"
    pairs = f" and {a.shadow_pairs} shadow pairs, " if a.shadow_pairs else ", "
    return (
        f"{a.metric} {number(a.metric, a.difference)}{interval} from {a.units_challenger} "
        f"challenger and {a.units_champion} champion users{pairs}log evidence of harm "
        f"{a.evidence_harm:.1f} of {a.threshold:.1f}, margin "
        f"{number(a.metric, a.margin).lstrip('+')}"
    )


def expected(missing: str, units: int | None, pairs: bool) -> str:
    """What a metric that is not proven yet waits for; ``units``: of ``MetricAssessment``."""
    if missing:
        return missing
    if not units:
        return ""
    return f"about {rounded(units)} more {'pairs' if pairs else 'users'}, if it is no different"


def still(a: MetricAssessment) -> str:
    """What a metric waits for, in words; empty if for nothing, or if that cannot be told."""
    return expected(a.missing, a.units_ahead, bool(a.shadow_pairs) and not a.units_challenger)


def rounded(units: float) -> str:
    """Two digits of an expectation, with spaces between thousands."""
    digits = max(0, len(str(int(units))) - 2)
    whole = int(-(-units // 10**digits) * 10**digits)
    return f"{whole:,}".replace(",", " ")


def step_name(step: RolloutStep) -> str:
    """A step in a few words."""
    match step.kind:
        case StepKind.STAGE:
            return "stage, no traffic"
        case StepKind.SHADOW:
            return f"shadow, {step.weight:.0%} of requests copied"
        case StepKind.CANARY:
            return f"canary, {step.weight:.0%} of users"
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
