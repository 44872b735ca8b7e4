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

from collections.abc import Sequence
from dataclasses import replace

from intonaco.codec import digest
from intonaco.decision.evidence import DiagnosisContext
from intonaco.decision.performance import judge_performance
from intonaco.decision.picture import PERFORMANCE_KINDS, Judged, Picture, look, signal_kind
from intonaco.decision.quality import decline, drift, votes
from intonaco.types import Cause, Diagnosis, Factor, Finding

__all__ = [
    "ORDER",
    "PERFORMANCE_KINDS",
    "DiagnosisContext",
    "diagnose",
    "each_cause",
    "signal_kind",
]

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

# What is told as unknown where no cause explains it, also beside one that explains other findings.
UNEXPLAINED = (
    "other",
    "external",
    "pictures",
    "feedback",
    "response",
    "quality",
    "safety",
    "outputs",
    "format",
)


def diagnose(findings: Sequence[Finding], context: DiagnosisContext, now: float) -> Diagnosis:
    """The causes that explain the findings together, with the figures and with why their neighbours
    were excluded. The same cause for the same findings has the same id."""
    if any(signal_kind(f) == "probes" for f in findings):
        context = replace(context, probes_ok=False)
    picture = look(findings, context)
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


def _judge(p: Picture, context: DiagnosisContext) -> list[Judged]:
    judged: list[Judged] = []
    kinds = {signal_kind(f) for f in p.findings}
    performance = [f for f in p.findings if signal_kind(f) in PERFORMANCE_KINDS]
    if performance:
        seen = judge_performance(performance, context)
        # an alarm that the records do not bear out stays unexplained
        cause = Cause.PERFORMANCE_DEGRADATION if seen.confirmed else Cause.UNKNOWN
        judged.append(Judged(cause=cause, factor=seen.factor, reason=seen.reason))
        p.excluded.update(seen.excluded)
        if not seen.confirmed:
            p.excluded[Cause.PERFORMANCE_DEGRADATION] = "requests of the same class do as before"
    else:
        p.excluded[Cause.PERFORMANCE_DEGRADATION] = "neither errors, latency nor load alarmed"
    judged += decline(p, context)
    judged += drift(p, context, declined=bool(judged) and judged[-1].cause is Cause.QUALITY_DECLINE)
    judged += votes(p, context, judged)
    judged += _format(p, context)
    if "silence" in kinds:
        silent = [f.text.rstrip(".") for f in p.findings if signal_kind(f) == "silence"]
        said = "".join(f"{text}. " for text in silent).strip()
        judged.append(
            Judged(
                cause=Cause.UNKNOWN,
                factor=Factor.MONITORING,
                reason=f"{said} What watches failed: of the service itself nothing can be said "
                "from it, quiet signals included.",
            )
        )
    explained = bool(judged) or (bool(context.announced) and not p.findings)
    if not explained or (performance and len(judged) == 1):
        judged += _rest(p, context, alone=not judged)
    if performance and len(judged) == 1 and judged[0].cause is not Cause.UNKNOWN:
        prompts = context.quiet("prompts", "prompt_embedding")
        scores = context.quiet("scores", "clip_score", "score")
        said = f"{prompts[0].upper()}{prompts[1:]}, and {scores}: training would not help."
        if prompts.endswith("no alarm") and scores.endswith("no alarm"):
            said = (
                "Neither prompts nor quality raised an alarm, so the model is not to blame for "
                "what it draws and training would not help."
            )
        judged[0] = replace(judged[0], reason=f"{judged[0].reason} {said}")
    # What was announced explains no finding: nothing of it serves yet.
    judged += [
        Judged(cause=cause, reason=f"It was announced: {said}.")
        for cause, said in context.announced.items()
        if cause in ORDER
    ]
    return judged


def _format(p: Picture, context: DiagnosisContext) -> list[Judged]:
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
        Judged(
            cause=Cause.BROKEN_FORMAT,
            factor=Factor.CLIENTS if refused else None,
            reason=f"{said} What arrives is not what was agreed; the model is not to blame and "
            "must not learn it.",
        )
    ]


def _rest(p: Picture, context: DiagnosisContext, *, alone: bool) -> list[Judged]:
    """Findings that fit no row. Beside a known cause only what could be one of its own is told."""
    strange = [f for f in p.findings if signal_kind(f) in UNEXPLAINED]
    if not alone and not strange:
        return []
    said = " ".join(f.text for f in strange or p.findings) or "There are no findings."
    return [
        Judged(
            cause=Cause.UNKNOWN,
            reason=f"{said} This fits no known cause. (Least gap looked for: "
            f"{context.min_quality_gap:g}.)",
        )
    ]


def _probes(context: DiagnosisContext) -> str:
    if context.probes_ok is None:
        return "Probes were not measured, so a change of the model itself cannot be excluded."
    return "Probes are unchanged: the model draws what it always drew."
