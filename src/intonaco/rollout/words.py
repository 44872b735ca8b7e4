"""What the machine says, in words. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from intonaco.rollout.outcomes import BOUNDED, CLIP_SCORE, COST, END_TO_END, LATENCY
from intonaco.stats.latency import NEEDED
from intonaco.types import Assessment, MetricAssessment, RolloutStep, StepKind


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
        if a.evidence_harm >= a.threshold:
            said += f", log evidence of harm {a.evidence_harm:.1f} of {a.threshold:.1f}"
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


def stands(a: MetricAssessment, *, over: bool = False) -> str:
    """How far the proof of one metric is, without its name; ``over``: nothing more will come."""
    yet = "" if over else " yet"
    if a.difference is None and a.interval is None:
        return f"nothing was measured{yet}, and no data is no proof"
    shown = {
        Assessment.SUPERIOR: "shown to be better",
        Assessment.NON_INFERIOR: "shown to be no worse",
        Assessment.HARMFUL: "shown to be worse",
        Assessment.UNDECIDED: f"not shown{yet}",
        Assessment.NO_DATA: f"not shown{yet}, for want of data",
    }[a.assessment]
    margin = _amount(a, a.margin)
    if a.interval is None:
        difference = number(a.metric, a.difference or 0.0)
        so_far = "" if over else " as yet"
        return f"{shown}: the difference is {difference}{so_far}, and the margin is {margin}"
    # The ends, from the best that it may be to the worst. A score is better the higher it is.
    best, worst = sorted(-end if a.metric == CLIP_SCORE else end for end in a.interval)
    match a.assessment:
        case Assessment.SUPERIOR:
            return f"{shown}, by {_amount(a, worst)} at least" if worst < 0 else shown
        case Assessment.HARMFUL:
            return f"{shown}, by {_amount(a, best)} at least" if best > 0 else shown
        case Assessment.NON_INFERIOR if worst > 0:
            return f"{shown} than by {_amount(a, worst)}; the margin is {margin}"
        case Assessment.NON_INFERIOR:
            return f"{shown}; the margin would be {margin}"
    if worst <= 0:
        return f"{shown}, though it looks no worse; the margin is {margin}"
    return f"{shown}: it may be worse by {_amount(a, worst)}, and the margin is {margin}"


def _amount(a: MetricAssessment, value: float) -> str:
    return number(a.metric, abs(value)).lstrip("+")


def no_data(metric: str, units: Sequence[int], pairs: bool) -> str:
    """What is missing of a metric without data. ``units``: the champion's and the challenger's
    users; ``pairs``: whether there are shadow pairs."""
    if pairs and metric not in BOUNDED and not units[1]:
        return "no user has reached the challenger; shadow copies say nothing of this"
    if not (pairs and metric in BOUNDED):
        if not units[1]:
            return "no request has reached the challenger"
        if not units[0] and metric == END_TO_END:
            return "no request of a user of the baseline"
        if not units[0]:
            return "no request of a user who stayed with the champion"
    if metric == CLIP_SCORE:
        return "no scores from the scorer"
    if metric == LATENCY:
        return f"too few of the champion's times in the classes asked for ({NEEDED} in each)"
    if metric == END_TO_END:
        return f"too few of the baseline's times in the classes asked for ({NEEDED} in each)"
    if metric == COST:
        return "too few of the champion's images in the same classes and batch sizes"
    return "no answers on both sides that can be compared"


def silent(images: int, votes: int, needed: int) -> str:
    """That hardly anybody says anything."""
    return f"votes: {votes} of at least {needed}, on {images} images; silence is no proof"


def to_mature(waiting: int, after: str, ahead: int | None = None) -> str:
    """That images of so many users are waited for until they are ``after`` old, and of ``ahead``
    users in all."""
    time = f"to have had {after} for feedback"
    if ahead is not None and ahead > waiting:
        more = expected("", ahead, False)
        return f"{more}, {waiting} of whom wait for their images {time}"
    return f"waiting for {waiting} users' images {time}"


def span(seconds: float) -> str:
    """A duration in its own unit."""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


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
            with_workers = f" with {step.replicas} workers" if step.replicas else ""
            return f"canary, {step.weight:.0%} of users{with_workers}"
        case StepKind.REPLACE:
            return "replace, the champion ends and the challenger is loaded in its place"
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


def asks_for(step: RolloutStep) -> str:
    """What a step that waits for a person wants of one."""
    if step.kind is not StepKind.APPROVE:
        return "it pauses until somebody resumes: `intonaco rollout resume`"
    then = {"abort": "is rolled back", "hold": "waits on"}[step.on_timeout]
    within = f" within {step.deadline_s:.0f} s, or it {then}" if step.deadline_s else ""
    return f"a person's approval{within}: `intonaco rollout approve`, or `abort`"
