"""Findings to a cause, by the table of causes. Pure.

=======================  =========================================  ==================
cause                    fires on                                   must stay quiet
=======================  =========================================  ==================
performance degradation  errors, latency                            quality
data drift               prompts moved, quality holds where they    quality
                         moved
concept drift            prompts moved *and* quality is lower       probes, quality of
                         where they moved                           what did not move
quality decline          quality fell on what did not move, or      –
                         probes changed
=======================  =========================================  ==================

What was not measured never counts as quiet: the reason says so, or the cause stays unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from intonaco.codec import digest
from intonaco.types import Cause, ClusterMove, Diagnosis, Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class DiagnosisContext:
    """``probes_ok``: the champion draws what it drew when it was new; None: not measured.
    ``reference_quality``: mean score of the reference; None: not known. ``release_changed``: the
    release or its environment changed shortly before the findings."""

    probes_ok: bool | None
    rollout_active: bool
    min_quality_gap: float
    reference_quality: float | None = None
    release_changed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Picture:
    """What the findings say together."""

    moved: tuple[ClusterMove, ...]
    share: float
    inside: float | None  # mean score where requests moved to
    outside: float | None  # and elsewhere
    before: float | None  # of the reference
    fell: Finding | None
    slow: Finding | None
    failing: Finding | None
    prompts: Finding | None

    @property
    def gap(self) -> float | None:
        return None if self.inside is None or self.outside is None else self.outside - self.inside

    @property
    def drop_elsewhere(self) -> float | None:
        """How far quality fell where nothing moved."""
        return None if self.before is None or self.outside is None else self.before - self.outside


def diagnose(findings: Sequence[Finding], context: DiagnosisContext, now: float) -> Diagnosis:
    """The cause that explains the findings together, with the figures and with why its neighbours
    were excluded. The same cause for the same findings has the same id."""
    picture = _look(findings, context)
    cause, reason = _cause(picture, findings, context)
    if context.rollout_active:
        reason += " A rollout is under way, which may itself be the cause."
    if context.release_changed:
        reason += " The release or its environment changed shortly before."
    service = findings[0].service_id if findings else ""
    return Diagnosis(
        diagnosis_id=digest([service, cause, [f.finding_id for f in findings]])[:16],
        service_id=service,
        at=now,
        cause=cause,
        reason=reason,
        findings=tuple(findings),
        moved_share=picture.share,
        quality_gap=picture.gap or 0.0,
    )


def signal_kind(finding: Finding) -> str:
    """What a finding is about: "prompts", "quality", "errors", "latency" or "other". The name of a
    signal is free, so unit and direction decide where they can."""
    if finding.of == "silence":  # of whichever signal: nothing was measured
        return "other"
    if finding.direction == "moved":
        return "prompts"
    if finding.unit == "cosine":
        return "quality"
    for word in ("latency", "error"):
        if word in finding.signal:
            return "errors" if word == "error" else "latency"
    return "other"


def _look(findings: Sequence[Finding], context: DiagnosisContext) -> _Picture:
    def latest(kind: str) -> Finding | None:
        return max(
            (f for f in findings if signal_kind(f) == kind), key=lambda f: f.at, default=None
        )

    prompts, fell = latest("prompts"), latest("quality")
    if fell is not None and fell.value_now >= fell.value_before:
        fell = None  # quality rose: nothing to mend
    # A fall of quality comes with clusters too: if users moved, that shows there as well.
    source = next((f for f in (prompts, fell) if f and any(c.moved for c in f.clusters)), None)
    moved = tuple(c for c in source.clusters if c.moved) if source else ()
    scored = [c for c in moved if c.quality_inside is not None]
    weight = sum(c.share_now for c in scored)
    inside = (
        sum((c.quality_inside or 0.0) * c.share_now for c in scored) / weight if weight else None
    )
    before = context.reference_quality
    if before is None and fell is not None:
        before = fell.value_before
    return _Picture(
        moved=moved,
        share=sum(c.share_now for c in moved),
        inside=inside,
        outside=next((c.quality_outside for c in moved), None),
        before=before,
        fell=fell,
        slow=latest("latency"),
        failing=latest("errors"),
        prompts=prompts,
    )


def _cause(
    p: _Picture, findings: Sequence[Finding], context: DiagnosisContext
) -> tuple[Cause, str]:
    gap = context.min_quality_gap
    if context.probes_ok is False:
        return (
            Cause.QUALITY_DECLINE,
            "Probes with fixed prompts and seeds give other images than when the release was new: "
            "the model or its environment changed, whatever users ask for." + _also(p),
        )
    if p.moved:
        return _moved(p, context)
    if p.fell is not None:
        return (
            Cause.QUALITY_DECLINE,
            f"Quality fell from {p.fell.value_before:.2f} to {p.fell.value_now:.2f} and no group "
            "of requests grew: not drift, users ask for the same and get worse images. "
            f"{_probes(context)}",
        )
    if p.prompts is not None:
        return (
            Cause.UNKNOWN,
            "Requests moved, but no group of them explains it, so nobody can say whether quality "
            f"holds there. {_probes(context)}",
        )
    if p.slow is not None or p.failing is not None:
        said = " ".join(f.text for f in (p.failing, p.slow) if f is not None)
        return (
            Cause.PERFORMANCE_DEGRADATION,
            f"{said} Neither prompts nor quality raised an alarm, so the model is not to blame "
            f"for what it draws and training would not help. {_probes(context)}",
        )
    said = " ".join(f.text for f in findings) or "There are no findings."
    return Cause.UNKNOWN, f"{said} This fits no known cause. (Least gap looked for: {gap:g}.)"


def _moved(p: _Picture, context: DiagnosisContext) -> tuple[Cause, str]:
    least = context.min_quality_gap
    was = sum(c.share_before for c in p.moved)
    prompts = ", ".join(f"'{c.sample_prompts[0]}'" for c in p.moved[:3] if c.sample_prompts)
    opening = f"{p.share:.0%} of requests (before: {was:.0%}) now ask for "
    opening += f"things like {prompts}." if prompts else "something else."
    if p.inside is None or p.outside is None:
        return (
            Cause.UNKNOWN,
            f"{opening} Quality there could not be compared, because too few images were scored: "
            f"neither data drift nor concept drift can be excluded. {_probes(context)}",
        )
    figures = f"CLIP score there {p.inside:.2f}, elsewhere {p.outside:.2f}"
    fell = p.drop_elsewhere or 0.0
    if fell >= least and fell >= (p.outside - p.inside) / 2:
        return (
            Cause.QUALITY_DECLINE,
            f"{opening} {figures}, but what did not move got worse too (reference: "
            f"{p.before:.2f}), by {fell:.2f}: new demand alone does not explain it. "
            f"{_probes(context)}",
        )
    if p.before is None:
        held = "the reference quality elsewhere was not measured"
    elif fell >= least:
        held = f"quality elsewhere fell far less (reference: {p.before:.2f})"
    else:
        held = f"quality elsewhere holds (reference: {p.before:.2f})"
    if p.outside - p.inside >= least:
        return (
            Cause.CONCEPT_DRIFT,
            f"{opening} {figures}: {p.outside - p.inside:.2f} lower, at least {least:g}. Not mere "
            f"data drift, because quality is lower there; not a general decline: {held}. "
            f"{_probes(context)}{_performance(p)}",
        )
    return (
        Cause.DATA_DRIFT,
        f"{opening} {figures}: the model can do it, the gap is below {least:g}. Not concept "
        f"drift, because quality holds there; {held}. {_probes(context)}{_performance(p)}",
    )


def _probes(context: DiagnosisContext) -> str:
    if context.probes_ok is None:
        return "Probes were not measured, so a change of the model itself cannot be excluded."
    return "Probes are unchanged: the model draws what it always drew."


def _performance(p: _Picture) -> str:
    said = " ".join(f.text for f in (p.failing, p.slow) if f is not None)
    return f" Besides: {said}" if said else ""


def _also(p: _Picture) -> str:
    parts = []
    if p.fell is not None:
        parts.append(f"quality fell from {p.fell.value_before:.2f} to {p.fell.value_now:.2f}")
    if p.moved:
        parts.append(f"{p.share:.0%} of requests moved")
    return f" Besides: {'; '.join(parts)}." if parts else ""
