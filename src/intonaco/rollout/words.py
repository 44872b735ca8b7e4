"""What the machine says, in words. Pure."""

from __future__ import annotations

from intonaco.rollout.outcomes import CLIP_SCORE
from intonaco.types import Assessment, MetricAssessment, RolloutStep, StepKind


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


def stands(a: MetricAssessment) -> str:
    """How far the proof of one metric is, without its name."""
    if a.difference is None and a.interval is None:
        return "nothing was measured yet, and no data is no proof"
    shown = {
        Assessment.SUPERIOR: "shown to be better",
        Assessment.NON_INFERIOR: "shown to be no worse",
        Assessment.HARMFUL: "shown to be worse",
        Assessment.UNDECIDED: "not shown yet",
        Assessment.NO_DATA: "not shown yet, for want of data",
    }[a.assessment]
    margin = _amount(a, a.margin)
    if a.interval is None:
        difference = number(a.metric, a.difference or 0.0)
        return f"{shown}: the difference is {difference} as yet, and the margin is {margin}"
    # The ends, from the best that it may be to the worst. A score is better the higher it is.
    up_is_better = a.metric == CLIP_SCORE
    better, worse = a.interval[::-1] if up_is_better else a.interval
    is_worse = worse < 0 if up_is_better else worse > 0
    match a.assessment:
        case Assessment.SUPERIOR:
            return f"{shown}, by {_amount(a, worse)} at least"
        case Assessment.HARMFUL:
            return f"{shown}, by {_amount(a, better)} at least"
        case Assessment.NON_INFERIOR if is_worse:
            return f"{shown} than by {_amount(a, worse)}; the margin is {margin}"
        case Assessment.NON_INFERIOR:
            return f"{shown}; the margin would be {margin}"
    if not is_worse:
        return f"{shown}, though it looks no worse; the margin is {margin}"
    return f"{shown}: it may be worse by {_amount(a, worse)}, and the margin is {margin}"


def _amount(a: MetricAssessment, value: float) -> str:
    return number(a.metric, abs(value)).lstrip("+")


def step_name(step: RolloutStep) -> str:
    """A step in a few words."""
    match step.kind:
        case StepKind.STAGE:
            return "stage, no traffic"
        case StepKind.SHADOW:
            return f"shadow, {step.weight:.0%} of requests copied"
        case StepKind.CANARY:
            with_workers = f" with {step.replicas} workers" if step.replicas else ""
            return f"canary, {step.weight:.0%} of users{with_workers}"
        case StepKind.REPLACE:
            return "replace, the champion ends and the challenger is loaded in its place"
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


def asks_for(step: RolloutStep) -> str:
    """What a step that waits for a person wants of one."""
    if step.kind is not StepKind.APPROVE:
        return "it pauses until somebody resumes: `intonaco rollout resume`"
    then = {"abort": "is rolled back", "hold": "waits on"}[step.on_timeout]
    within = f" within {step.deadline_s:.0f} s, or it {then}" if step.deadline_s else ""
    return f"a person's approval{within}: `intonaco rollout approve`, or `abort`"
