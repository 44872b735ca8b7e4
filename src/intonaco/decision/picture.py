"""What findings say together, before anything is concluded from them. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from intonaco.decision.evidence import DiagnosisContext, TopicChange
from intonaco.types import Cause, ClusterMove, Factor, Finding

# What a signal is of, to what a finding of it is about. Every signal has its line.
KINDS = {
    "prompt_embedding": "prompts",
    "condition_embedding": "prompts",
    "clip_score": "quality",
    "score": "quality",
    "thumbs": "feedback",
    "stars": "feedback",
    "regenerate": "feedback",
    "download": "feedback",
    "response_rate": "response",  # who speaks, not what they say
    "diversity": "outputs",
    "blank_images": "outputs",
    "safety": "safety",
    "image_embedding": "pictures",
    "errors": "errors",
    "latency": "latency",
    "throughput": "load",
    "gpu_utilisation": "load",
    "gpu_memory": "load",
    "batch_fill": "load",
    "cost": "load",
    "refused": "format",
    "broken_images": "format",
    "dataset": "format",  # what a check of data found
    "promql": "external",  # nobody told what it means
    "python": "external",
    "probe": "probes",
    "scorer": "silence",
    "silence": "silence",
}
PERFORMANCE_KINDS = frozenset({"errors", "latency", "load"})
LEAST_RISE = 0.03  # of a group's share, for it to explain a fall when prompts raised no alarm
SURE = 3.0  # standard errors
FEWEST_VOTES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One cause that is at work, and what there is to say of it."""

    cause: Cause
    reason: str
    factor: Factor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """What the findings say together. ``excluded`` is filled while judging."""

    findings: tuple[Finding, ...]
    moved: tuple[ClusterMove, ...]
    share: float
    inside: float | None  # mean score where requests moved to
    outside: float | None  # and elsewhere
    before: float | None  # of the reference
    prompts: Finding | None
    fell: Finding | None
    feedback: Finding | None
    outputs: Finding | None
    unsafe: Finding | None
    pictures: Finding | None
    fall: (
        tuple[float, float] | None
    )  # of quality given the topic, where nothing moved, and its error
    excluded: dict[str, str] = field(default_factory=dict)

    @property
    def gap(self) -> float | None:
        return None if self.inside is None or self.outside is None else self.outside - self.inside

    @property
    def drop_elsewhere(self) -> float | None:
        """How far quality fell where nothing moved."""
        if self.fall is not None:
            return self.fall[0]
        return None if self.before is None or self.outside is None else self.before - self.outside


def signal_kind(finding: Finding) -> str:
    """What a finding is about: a value of ``KINDS`` or "other". Findings of an older version do not
    say what their signal is of: there unit, direction and name decide."""
    if finding.of:
        return KINDS.get(finding.of, "other")
    if finding.direction == "moved":
        return "prompts"
    if finding.unit == "cosine":
        return "quality"
    if finding.signal == "scorer" and finding.unit == "s":
        return "silence"
    for word in ("latency", "error"):
        if word in finding.signal:
            return "errors" if word == "error" else "latency"
    return "other"


def look(findings: Sequence[Finding], context: DiagnosisContext) -> Picture:
    def latest(kind: str, fallen: bool | None = None) -> Finding | None:
        return max(
            (
                f
                for f in findings
                if signal_kind(f) == kind
                and (fallen is None or (f.value_now < f.value_before) is fallen)
            ),
            key=lambda f: f.at,
            default=None,
        )

    prompts, fell = latest("prompts"), latest("quality", fallen=True)
    # A fall of quality comes with clusters too: if users moved, that shows there as well.
    source = next((f for f in (prompts, fell) if f and any(c.moved for c in f.clusters)), None)
    moved = tuple(c for c in source.clusters if c.moved) if source else ()
    fall = _fall(context.content.topics, moved) if context.content else None
    if source is not None and source is fell and not _explains(moved, fell, fall):
        moved = ()
    scored = [c for c in moved if c.quality_inside is not None]
    weight = sum(c.share_now for c in scored)
    inside = (
        sum((c.quality_inside or 0.0) * c.share_now for c in scored) / weight if weight else None
    )
    before = context.reference_quality
    if before is None and fell is not None:
        before = fell.value_before
    return Picture(
        findings=tuple(findings),
        moved=moved,
        share=sum(c.share_now for c in moved),
        inside=inside,
        outside=next((c.quality_outside for c in moved), None),
        before=before,
        prompts=prompts,
        fell=fell,
        feedback=_unhappy(findings),
        outputs=latest("outputs", fallen=False),  # more of them are alike, or show nothing
        unsafe=latest("safety", fallen=False),
        pictures=latest("pictures"),
        fall=fall,
    )


def _unhappy(findings: Sequence[Finding]) -> Finding | None:
    """The latest finding that people like the images less: votes and downloads fell, or they made
    images again more often."""
    found = [
        f
        for f in findings
        if signal_kind(f) == "feedback"
        and (
            (f.value_now > f.value_before) if f.of == "regenerate" else f.value_now < f.value_before
        )
    ]
    return max(found, key=lambda f: f.at, default=None)


def _fall(
    topics: Sequence[TopicChange], moved: Sequence[ClusterMove]
) -> tuple[float, float] | None:
    """How far quality fell within the topics that did not move, weighted by what is asked now, and
    its standard error. Another mix of topics does not change it (Simpson's paradox). A topic that
    grew by these counts moved too: a group of a few odd requests, drawn from what is new, can be
    the nearest to many of it."""
    there = {c.cluster for c in moved} | {t.cluster for t in topics if _grew(t, topics)}
    held = [
        (t.requests_now, t.score_before, t.score_now)
        for t in topics
        if t.cluster not in there and t.score_before is not None and t.score_now is not None
    ]
    total = sum(n for n, _, _ in held)
    if total < FEWEST_VOTES:
        return None
    fall = sum(n * (b[0] - a[0]) for n, b, a in held) / total
    variance = sum((n / total) ** 2 * (b[1] ** 2 + a[1] ** 2) for n, b, a in held)
    return fall, math.sqrt(variance)


def _grew(topic: TopicChange, topics: Sequence[TopicChange]) -> bool:
    """Whether a topic's share of the requests rose (pooled two-proportion z)."""
    m, n = sum(t.requests_before for t in topics), sum(t.requests_now for t in topics)
    if not m or not n:
        return False
    rise = topic.requests_now / n - topic.requests_before / m
    pooled = (topic.requests_before + topic.requests_now) / (m + n)
    error = math.sqrt(pooled * (1 - pooled) * (1 / m + 1 / n))
    return rise >= LEAST_RISE and rise >= SURE * error


def _explains(
    moved: Sequence[ClusterMove], fell: Finding, fall: tuple[float, float] | None
) -> bool:
    """Whether new demand, and not the model, made the mean score fall. Of many groups one seems to
    move by chance, so when prompts raised no alarm the move has to account for the fall."""
    total = fell.value_before - fell.value_now
    if fall is not None and fall[0] - fall[1] >= total / 2:
        return False  # within topics that did not move, quality fell about as much
    rise = sum(c.share_now - c.share_before for c in moved)
    if rise < LEAST_RISE:
        return False
    known = [c for c in moved if c.quality_inside is not None and c.quality_outside is not None]
    explained = sum(
        (c.share_now - c.share_before) * ((c.quality_outside or 0.0) - (c.quality_inside or 0.0))
        for c in known
    )
    return not known or explained >= total / 2
