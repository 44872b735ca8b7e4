"""Is quality lower, where, and what is behind it: decline, drift and votes. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from intonaco.decision.evidence import DiagnosisContext, TopicChange
from intonaco.decision.picture import FEWEST_VOTES, SURE, Judged, Picture
from intonaco.types import Cause, Factor, Finding


def decline(p: Picture, context: DiagnosisContext) -> list[Judged]:
    """Did quality fall where nothing moved?"""
    if context.probes_ok is False:
        deploy = context.changed("environment", min((f.since_at for f in p.findings), default=0.0))
        named = f" {deploy.text or 'Its environment was changed'} shortly before." if deploy else ""
        p.excluded[Factor.RELEASE] = "probes are compared with what this very release drew"
        return [
            Judged(
                cause=Cause.QUALITY_DECLINE,
                factor=Factor.ENVIRONMENT,
                reason="Probes with fixed prompts and seeds give other images than when the "
                "release was new: the model or its environment changed, whatever users ask for."
                f"{named}{_also(p)}",
            )
        ]
    least, fall = context.min_quality_gap, p.drop_elsewhere
    if p.outputs is not None and not _asked_for(p, p.outputs, least):
        factor, why = _behind_decline(p, p.outputs, context)
        return [
            Judged(
                cause=Cause.QUALITY_DECLINE,
                factor=factor,
                reason=f"{p.outputs.text} Different prompts get images that are alike, or show "
                f"nothing: the model collapsed, which no demand explains.{why}",
            )
        ]
    if p.unsafe is not None:
        factor, why = _behind_decline(p, p.unsafe, context)
        return [
            Judged(
                cause=Cause.QUALITY_DECLINE,
                factor=factor,
                reason=f"{p.unsafe.text} The model or its filter lets through what it did not, or "
                f"people ask for it in words that were harmless.{why}",
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
            Judged(
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
        else:
            scores = context.quiet("scores", "clip_score", "score")
            probes = (
                " and probes are unchanged" if context.probes_ok else "; probes were not measured"
            )
            p.excluded[Cause.QUALITY_DECLINE] = scores + probes
        return []
    certain = p.fall is not None and p.fall[0] >= SURE * p.fall[1]
    if not certain and (p.fall is not None or fall < (p.gap or 0.0) / 2):
        p.excluded[Cause.QUALITY_DECLINE] = f"what did not move fell far less, by {fall:.2f}"
        return []
    factor, why = _behind_decline(p, p.fell or p.findings[0], context)
    was = f" (reference: {p.before:.2f})" if p.before is not None else ""
    now = f" to {p.outside:.2f}" if p.outside is not None else ""
    return [
        Judged(
            cause=Cause.QUALITY_DECLINE,
            factor=factor,
            reason=f"Requests moved, but what did not move got worse too{was}, by {fall:.2f}{now}: "
            f"new demand alone does not explain it.{why}",
        )
    ]


def _asked_for(p: Picture, outputs: Finding, least: float) -> bool:
    """Whether new demand accounts for pictures that are alike, or show nothing: a collapse spares
    no topic, and one picture cannot match many prompts. So quality holds on what did not move;
    where that was not measured, there are no more such pictures than requests that moved."""
    if not p.moved:
        return False
    if p.drop_elsewhere is not None:
        return p.drop_elsewhere < least
    return outputs.value_now - outputs.value_before <= p.share


def _behind_decline(
    p: Picture, finding: Finding, context: DiagnosisContext
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


def drift(p: Picture, context: DiagnosisContext, *, declined: bool) -> list[Judged]:
    """Did demand move, and is it served well where it moved to?"""
    if not p.moved:
        if p.prompts is None:
            prompts = context.quiet("prompts", "prompt_embedding")
            p.excluded.setdefault(Cause.DATA_DRIFT, prompts)
            p.excluded.setdefault(Cause.CONCEPT_DRIFT, prompts)
            return []
        if declined:
            return []
        return [
            Judged(
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
            Judged(
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
            Judged(
                cause=Cause.CONCEPT_DRIFT,
                reason=f"{opening} {figures}: {p.outside - p.inside:.2f} lower, at least "
                f"{least:g}.{disliked} Not mere data drift, because quality is lower there; {held}."
                if p.outside - p.inside >= least
                else f"{opening} {figures}, but{disliked} Not mere data drift; {held}.",
            )
        ]
    p.excluded[Cause.CONCEPT_DRIFT] = f"quality holds where requests moved to ({figures})"
    return [
        Judged(
            cause=Cause.DATA_DRIFT,
            reason=f"{opening} {figures}: the model can do it, the gap is below {least:g}. Not "
            f"concept drift, because quality holds there; {held}.",
        )
    ]


def _held(p: Picture, least: float, *, declined: bool) -> str:
    if declined:
        return "quality elsewhere fell as well"
    if p.drop_elsewhere is None or p.before is None:
        return "the reference quality elsewhere was not measured"
    if p.drop_elsewhere >= least:
        return f"not a general decline: quality elsewhere fell far less (reference: {p.before:.2f})"
    return f"not a general decline: quality elsewhere holds (reference: {p.before:.2f})"


def _disliked(p: Picture, topics: Sequence[TopicChange]) -> str:
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


def votes(p: Picture, context: DiagnosisContext, judged: Sequence[Judged]) -> list[Judged]:
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
    if any(f.of == "response_rate" for f in p.findings):
        where += " How many vote changed too: it may be other people who speak."
    return [
        Judged(
            cause=Cause.CONCEPT_DRIFT,
            reason=f"{p.feedback.text} Scores of the images raised no alarm and nobody asks for "
            f"other things: what people want of the same prompts changed.{where} Not a general "
            "decline of quality, as far as it was measured.",
        )
    ]


def _also(p: Picture) -> str:
    parts = []
    if p.fell is not None:
        parts.append(f"quality fell from {p.fell.value_before:.2f} to {p.fell.value_now:.2f}")
    if p.moved:
        parts.append(f"{p.share:.0%} of requests moved")
    return f" Besides: {'; '.join(parts)}." if parts else ""
