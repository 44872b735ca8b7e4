"""Findings to causes, by the table of causes (``docs/concepts/causes.md``). Pure.

=======================  =========================================  ==================
cause                    fires on                                   must stay quiet
=======================  =========================================  ==================
performance degradation  errors, latency within a class, load       quality
data drift               prompts moved, quality holds where they    quality given the
                         moved                                      topic
concept drift            prompts moved *and* quality is lower       probes, quality of
                         where they moved; or votes fell on a       what did not move
                         topic whose images are what they were
quality decline          quality fell on what did not move, or      –
                         probes changed, or outputs collapsed
broken format            refused requests, unreadable images        –
=======================  =========================================  ==================

Each cause is judged by itself, so that two at once are both found: the first of ``ORDER`` is the
diagnosis's cause, the others are in ``also``. What was not measured never counts as quiet: the
reason says so, or the cause stays unknown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from intonaco.codec import digest
from intonaco.decision.evidence import DiagnosisContext, TopicChange
from intonaco.decision.performance import judge_performance
from intonaco.types import Cause, ClusterMove, Diagnosis, Factor, Finding

__all__ = ["ORDER", "DiagnosisContext", "diagnose", "each_cause", "signal_kind"]

# Which cause is the headline when there are several: what the model needs before what its machines
# need, because `also` gets a plan of its own and none waits for the other.
ORDER = (
    Cause.QUALITY_DECLINE,
    Cause.CONCEPT_DRIFT,
    Cause.PERFORMANCE_DEGRADATION,
    Cause.BROKEN_FORMAT,
    Cause.DATA_DRIFT,
    Cause.NEW_DATA,
    Cause.NEW_TECHNIQUE,
    Cause.CODE_CHANGE,
    Cause.UNKNOWN,
)

# What a signal is of, to what a finding of it is about.
KINDS = {
    "prompt_embedding": "prompts",
    "condition_embedding": "prompts",
    "clip_score": "quality",
    "score": "quality",
    "thumbs": "feedback",
    "stars": "feedback",
    "regenerate": "feedback",
    "download": "feedback",
    "diversity": "outputs",
    "blank_images": "outputs",
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
    "scorer": "silence",
    "silence": "silence",
}
PERFORMANCE_KINDS = frozenset({"errors", "latency", "load"})
LEAST_RISE = 0.03  # of a group's share, for it to explain a fall when prompts raised no alarm
SURE = 3.0  # standard errors
FEWEST_VOTES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """One cause that is at work, and what there is to say of it."""

    cause: Cause
    reason: str
    factor: Factor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Picture:
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


def diagnose(findings: Sequence[Finding], context: DiagnosisContext, now: float) -> Diagnosis:
    """The causes that explain the findings together, with the figures and with why their neighbours
    were excluded. The same cause for the same findings has the same id."""
    picture = _look(findings, context)
    judged = sorted(_judge(picture, context), key=lambda j: ORDER.index(j.cause))
    first, others = judged[0], judged[1:]
    causes = tuple(dict.fromkeys(j.cause for j in others if j.cause is not first.cause))
    reason = first.reason
    if others:
        reason += " At the same time: " + " ".join(j.reason for j in others)
    if context.probes_ok is not False:
        reason += f" {_probes(context)}"
    if context.rollout_active:
        reason += " A rollout is under way, which may itself be the cause."
    if context.release_changed:
        reason += " The release or its environment changed shortly before."
    service = findings[0].service_id if findings else ""
    found = {first.cause, *causes}
    return Diagnosis(
        diagnosis_id=digest([service, first.cause, [f.finding_id for f in findings]])[:16],
        service_id=service,
        at=now,
        cause=first.cause,
        reason=reason,
        findings=tuple(findings),
        moved_share=picture.share,
        quality_gap=picture.gap or 0.0,
        factor=first.factor,
        also=causes,
        factors={j.cause: j.factor for j in others if j.factor is not None},
        excluded={name: why for name, why in picture.excluded.items() if name not in found},
    )


def each_cause(diagnosis: Diagnosis) -> tuple[Diagnosis, ...]:
    """The diagnosis once per cause, the headline first, so that each cause gets a plan of its own:
    latency is not answered by training because something else calls for it, and does not keep that
    waiting."""
    parts = [diagnosis]
    for cause in diagnosis.also:
        others = tuple(c for c in (diagnosis.cause, *diagnosis.also) if c is not cause)
        parts.append(
            replace(
                diagnosis,
                diagnosis_id=digest([diagnosis.diagnosis_id, cause])[:16],
                cause=cause,
                factor=diagnosis.factors.get(cause),
                also=others,
            )
        )
    return tuple(parts)


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


# ------------------------------------------------------------------------------------ what is seen


def _look(findings: Sequence[Finding], context: DiagnosisContext) -> _Picture:
    def latest(kind: str, fallen: bool | None = None) -> Finding | None:
        return max(
            (
                f
                for f in findings
                if signal_kind(f) == kind
                and f.of != "blank_images"
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
    return _Picture(
        findings=tuple(findings),
        moved=moved,
        share=sum(c.share_now for c in moved),
        inside=inside,
        outside=next((c.quality_outside for c in moved), None),
        before=before,
        prompts=prompts,
        fell=fell,
        feedback=_unhappy(findings),
        outputs=latest("outputs", fallen=True) or _blank(findings),
        pictures=latest("pictures"),
        fall=fall,
    )


def _blank(findings: Sequence[Finding]) -> Finding | None:
    """The latest finding that more images show nothing."""
    found = [f for f in findings if f.of == "blank_images" and f.value_now > f.value_before]
    return max(found, key=lambda f: f.at, default=None)


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
    its standard error. Another mix of topics does not change it (Simpson's paradox)."""
    there = {c.cluster for c in moved}
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


# -------------------------------------------------------------------------------- what is concluded


def _judge(p: _Picture, context: DiagnosisContext) -> list[_Judged]:
    judged: list[_Judged] = []
    kinds = {signal_kind(f) for f in p.findings}
    performance = [f for f in p.findings if signal_kind(f) in PERFORMANCE_KINDS]
    if performance:
        seen = judge_performance(performance, context)
        # an alarm that the records do not bear out stays unexplained
        cause = Cause.PERFORMANCE_DEGRADATION if seen.confirmed else Cause.UNKNOWN
        judged.append(_Judged(cause=cause, factor=seen.factor, reason=seen.reason))
        p.excluded.update(seen.excluded)
        if not seen.confirmed:
            p.excluded[Cause.PERFORMANCE_DEGRADATION] = "requests of the same class do as before"
    else:
        p.excluded[Cause.PERFORMANCE_DEGRADATION] = "neither errors, latency nor load alarmed"
    judged += _decline(p, context)
    judged += _drift(
        p, context, declined=bool(judged) and judged[-1].cause is Cause.QUALITY_DECLINE
    )
    judged += _votes(p, context, judged)
    judged += _format(p, context)
    if "silence" in kinds:
        said = " ".join(f.text for f in p.findings if signal_kind(f) == "silence")
        judged.append(
            _Judged(
                cause=Cause.UNKNOWN,
                factor=Factor.MONITORING,
                reason=f"{said} What watches failed: of the service itself nothing can be said "
                "from it, quiet signals included.",
            )
        )
    judged += [
        _Judged(cause=cause, reason=f"It was announced: {said}.")
        for cause, said in context.announced.items()
        if cause in ORDER
    ]
    if judged == [] or (performance and len(judged) == 1):
        judged += _rest(p, context, alone=not judged)
    if performance and len(judged) == 1 and judged[0].cause is not Cause.UNKNOWN:
        judged[0] = replace(
            judged[0],
            reason=f"{judged[0].reason} Neither prompts nor quality raised an alarm, so the model "
            "is not to blame for what it draws and training would not help.",
        )
    return judged


def _decline(p: _Picture, context: DiagnosisContext) -> list[_Judged]:
    """Did quality fall where nothing moved?"""
    if context.probes_ok is False:
        deploy = context.changed("environment", min((f.since_at for f in p.findings), default=0.0))
        named = f" {deploy.text or 'Its environment was changed'} shortly before." if deploy else ""
        p.excluded[Factor.RELEASE] = "probes are compared with what this very release drew"
        return [
            _Judged(
                cause=Cause.QUALITY_DECLINE,
                factor=Factor.ENVIRONMENT,
                reason="Probes with fixed prompts and seeds give other images than when the "
                "release was new: the model or its environment changed, whatever users ask for."
                f"{named}{_also(p)}",
            )
        ]
    least, fall = context.min_quality_gap, p.drop_elsewhere
    if p.outputs is not None:
        factor, why = _behind_decline(p, p.outputs, context)
        return [
            _Judged(
                cause=Cause.QUALITY_DECLINE,
                factor=factor,
                reason=f"{p.outputs.text} Different prompts get images that are alike, or show "
                f"nothing: the model collapsed, which no demand explains.{why}",
            )
        ]
    if p.fell is not None and not p.moved:
        factor, why = _behind_decline(p, p.fell, context)
        given = ""
        if p.fall is not None:
            given = f" Within the same topics it fell by {p.fall[0]:.2f}."
        p.excluded[Cause.CONCEPT_DRIFT] = "no group of requests grew that explains the fall"
        p.excluded[Cause.DATA_DRIFT] = "quality fell"
        return [
            _Judged(
                cause=Cause.QUALITY_DECLINE,
                factor=factor,
                reason=f"Quality fell from {p.fell.value_before:.2f} to {p.fell.value_now:.2f} and "
                "no group of requests grew: not drift, users ask for the same and get worse "
                f"images.{given}{why}",
            )
        ]
    if not p.moved or fall is None or fall < least:
        if p.moved and fall is not None:
            p.excluded[Cause.QUALITY_DECLINE] = f"what did not move fell by {fall:.2f} only"
        elif p.moved:
            p.excluded[Cause.QUALITY_DECLINE] = "not measured elsewhere: cannot be excluded"
        elif context.probes_ok:
            p.excluded[Cause.QUALITY_DECLINE] = "scores raised no alarm and probes are unchanged"
        else:
            p.excluded[Cause.QUALITY_DECLINE] = "scores raised no alarm; probes were not measured"
        return []
    certain = p.fall is not None and p.fall[0] >= SURE * p.fall[1]
    if not certain and (p.fall is not None or fall < (p.gap or 0.0) / 2):
        p.excluded[Cause.QUALITY_DECLINE] = f"what did not move fell far less, by {fall:.2f}"
        return []
    factor, why = _behind_decline(p, p.fell or p.findings[0], context)
    was = f" (reference: {p.before:.2f})" if p.before is not None else ""
    now = f" to {p.outside:.2f}" if p.outside is not None else ""
    return [
        _Judged(
            cause=Cause.QUALITY_DECLINE,
            factor=factor,
            reason=f"Requests moved, but what did not move got worse too{was}, by {fall:.2f}{now}: "
            f"new demand alone does not explain it.{why}",
        )
    ]


def _behind_decline(
    p: _Picture, finding: Finding, context: DiagnosisContext
) -> tuple[Factor | None, str]:
    """What a fall of quality under unchanged demand came with."""
    traffic = context.content
    if traffic is not None and traffic.champion and traffic.previous:
        own, other = traffic.champion.score, traffic.previous.score
        if own is not None and other is not None:
            difference, error = other[0] - own[0], math.hypot(own[1], other[1])
            if difference >= SURE * error and difference > 0:
                return (
                    Factor.RELEASE,
                    f" In the same minutes the release before it scores {other[0]:.2f} against "
                    f"{own[0]:.2f}: it came with the release.",
                )
            if abs(difference) + 2 * error < (finding.value_before - finding.value_now) / 2:
                p.excluded[Factor.RELEASE] = "the release before it fell as much, at the same time"
    if Factor.RELEASE not in p.excluded:
        deploy = context.changed("release", finding.since_at)
        if deploy is not None or (context.deploys is None and context.release_changed):
            return Factor.RELEASE, " It began after the release changed."
        if context.deploys is not None:
            p.excluded[Factor.RELEASE] = "no other release took over shortly before"
    deploy = context.changed("environment", finding.since_at)
    if deploy is not None:
        return Factor.ENVIRONMENT, " It began after the environment changed."
    if context.served_elsewhere:
        return Factor.UPSTREAM, " The model is served elsewhere and may have been exchanged there."
    return None, ""


def _drift(p: _Picture, context: DiagnosisContext, *, declined: bool) -> list[_Judged]:
    """Did demand move, and is it served well where it moved to?"""
    if not p.moved:
        if p.prompts is None:
            p.excluded.setdefault(Cause.DATA_DRIFT, "prompts raised no alarm")
            p.excluded.setdefault(Cause.CONCEPT_DRIFT, "prompts raised no alarm")
            return []
        if declined:
            return []
        return [
            _Judged(
                cause=Cause.UNKNOWN,
                reason="Requests moved, but no group of them explains it, so nobody can say "
                "whether quality holds there.",
            )
        ]
    least = context.min_quality_gap
    was = sum(c.share_before for c in p.moved)
    prompts = ", ".join(f"'{c.sample_prompts[0]}'" for c in p.moved[:3] if c.sample_prompts)
    opening = f"{p.share:.0%} of requests (before: {was:.0%}) now ask for "
    opening += f"things like {prompts}." if prompts else "something else."
    if p.inside is None or p.outside is None:
        return [
            _Judged(
                cause=Cause.UNKNOWN,
                reason=f"{opening} Quality there could not be compared, because too few images "
                "were scored: neither data drift nor concept drift can be excluded.",
            )
        ]
    figures = f"CLIP score there {p.inside:.2f}, elsewhere {p.outside:.2f}"
    held = _held(p, least, declined=declined)
    disliked = _disliked(p, context.content.topics) if context.content else ""
    if p.outside - p.inside >= least or disliked:
        p.excluded[Cause.DATA_DRIFT] = "quality is lower where requests moved to"
        return [
            _Judged(
                cause=Cause.CONCEPT_DRIFT,
                reason=f"{opening} {figures}: {p.outside - p.inside:.2f} lower, at least "
                f"{least:g}.{disliked} Not mere data drift, because quality is lower there; {held}."
                if p.outside - p.inside >= least
                else f"{opening} {figures}, but{disliked} Not mere data drift; {held}.",
            )
        ]
    p.excluded[Cause.CONCEPT_DRIFT] = f"quality holds where requests moved to ({figures})"
    return [
        _Judged(
            cause=Cause.DATA_DRIFT,
            reason=f"{opening} {figures}: the model can do it, the gap is below {least:g}. Not "
            f"concept drift, because quality holds there; {held}.",
        )
    ]


def _held(p: _Picture, least: float, *, declined: bool) -> str:
    if declined:
        return "quality elsewhere fell as well"
    if p.drop_elsewhere is None or p.before is None:
        return "the reference quality elsewhere was not measured"
    if p.drop_elsewhere >= least:
        return f"not a general decline: quality elsewhere fell far less (reference: {p.before:.2f})"
    return f"not a general decline: quality elsewhere holds (reference: {p.before:.2f})"


def _disliked(p: _Picture, topics: Sequence[TopicChange]) -> str:
    """What to say if people vote worse for what moved than for the rest."""
    there = {c.cluster for c in p.moved}
    inside = [t.liked_now for t in topics if t.cluster in there]
    outside = [t.liked_now for t in topics if t.cluster not in there]
    a, n = sum(r.count for r in inside), sum(r.total for r in inside)
    b, m = sum(r.count for r in outside), sum(r.total for r in outside)
    if n < FEWEST_VOTES or m < FEWEST_VOTES or _score(b, m, a, n) < SURE:
        return ""
    return f" {a / n:.0%} of the votes there are up, {b / m:.0%} elsewhere."


def _score(a: int, n: int, b: int, m: int) -> float:
    """By how many standard errors a/n exceeds b/m (pooled two-proportion z)."""
    pooled = (a + b) / (n + m)
    error = math.sqrt(max(pooled * (1 - pooled), 1e-9) * (1 / n + 1 / m))
    return (a / n - b / m) / error


def _votes(p: _Picture, context: DiagnosisContext, judged: Sequence[_Judged]) -> list[_Judged]:
    """Did people's votes fall on what is drawn as ever?"""
    if p.feedback is None:
        return []
    causes = {j.cause for j in judged}
    if causes & {Cause.CONCEPT_DRIFT, Cause.QUALITY_DECLINE}:
        return []  # they say the same, later
    topics = context.content.topics if context.content else ()
    fallen = [
        t
        for t in topics
        if t.liked_before.total >= FEWEST_VOTES
        and t.liked_now.total >= FEWEST_VOTES // 2
        and _score(t.liked_before.count, t.liked_before.total, t.liked_now.count, t.liked_now.total)
        >= SURE
    ]
    if Cause.PERFORMANCE_DEGRADATION in causes and (not fallen or len(fallen) > len(topics) / 2):
        p.excluded[Cause.CONCEPT_DRIFT] = (
            "votes fell too, but on all topics: slow or failing answers explain it"
        )
        return []
    p.excluded.pop(Cause.CONCEPT_DRIFT, None)
    where = ""
    if fallen:
        share = sum(t.requests_now for t in fallen) / max(1, sum(t.requests_now for t in topics))
        where = f" The fall is on {len(fallen)} of {len(topics)} topics, {share:.0%} of requests."
    elif topics:
        where = " No single topic explains it."
    return [
        _Judged(
            cause=Cause.CONCEPT_DRIFT,
            reason=f"{p.feedback.text} Scores of the images raised no alarm and nobody asks for "
            f"other things: what people want of the same prompts changed.{where} Not a general "
            "decline of quality, as far as it was measured.",
        )
    ]


def _format(p: _Picture, context: DiagnosisContext) -> list[_Judged]:
    found = [f for f in p.findings if signal_kind(f) == "format" and f.value_now > f.value_before]
    if not found and context.dataset_problems is None:
        return []
    said = " ".join(f.text for f in found)
    refused = any(f.of == "refused" for f in found)
    codes = [str(f.facts["code"]) for f in found if f.facts.get("code")]
    if codes:
        said += f" Mostly: {', '.join(dict.fromkeys(codes))}."
    if context.dataset_problems is not None:
        said = f"{said} The data at hand fails its checks: {context.dataset_problems}.".strip()
    return [
        _Judged(
            cause=Cause.BROKEN_FORMAT,
            factor=Factor.CLIENTS if refused else None,
            reason=f"{said} What arrives is not what was agreed; the model is not to blame and "
            "must not learn it.",
        )
    ]


def _rest(p: _Picture, context: DiagnosisContext, *, alone: bool) -> list[_Judged]:
    """Findings that fit no row. Beside a known cause only what could be one of its own is told."""
    strange = [
        f
        for f in p.findings
        if signal_kind(f) in ("other", "pictures", "feedback", "quality", "outputs", "format")
    ]
    if not alone and not strange:
        return []
    said = " ".join(f.text for f in strange or p.findings) or "There are no findings."
    return [
        _Judged(
            cause=Cause.UNKNOWN,
            reason=f"{said} This fits no known cause. (Least gap looked for: "
            f"{context.min_quality_gap:g}.)",
        )
    ]


def _probes(context: DiagnosisContext) -> str:
    if context.probes_ok is None:
        return "Probes were not measured, so a change of the model itself cannot be excluded."
    return "Probes are unchanged: the model draws what it always drew."


def _also(p: _Picture) -> str:
    parts = []
    if p.fell is not None:
        parts.append(f"quality fell from {p.fell.value_before:.2f} to {p.fell.value_now:.2f}")
    if p.moved:
        parts.append(f"{p.share:.0%} of requests moved")
    return f" Besides: {'; '.join(parts)}." if parts else ""
