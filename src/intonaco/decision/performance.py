"""What is behind a degradation of performance: the release, machines, the queue, larger requests or
another's server. Pure.

Seconds are compared within a request class and batch size, so users who ask for larger images, and
batches that fill up, make nothing slow. The queue is looked at apart from the work: a queue that
grows while each request is as fast as ever is a matter of capacity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from intonaco.decision.evidence import DiagnosisContext, Load, Times, TrafficChange
from intonaco.types import Factor, Finding

SURE = 3.0  # standard errors
SLOWER = 1.1  # median seconds over the usual: less is not called slower
MORE_SLOW = 0.03  # rise of the share of slow requests that counts
ALL_SLOWER = 1.08  # the quickest quarter is slower by this: all machines are, not some of them
HEAVIER = 1.15  # mean work of a request over what it was
MORE_FAILED = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """``confirmed``: False if the records, held against those before, show no degradation."""

    factor: Factor | None
    reason: str
    excluded: dict[str, str]
    confirmed: bool = True


def judge_performance(findings: Sequence[Finding], context: DiagnosisContext) -> Judged:
    """The factor, what to say to a person on call, and why the other factors were excluded."""
    said = " ".join(f.text for f in findings)
    since = min(f.since_at for f in findings)
    traffic = context.performance
    excluded: dict[str, str] = {}
    changed = context.changed("release", since)
    if traffic is None:
        return _unmeasured(said, context, changed is not None, excluded)
    slower = traffic.times is not None and _slower(traffic.times)
    failing = _failing(traffic, kinds=("error", "timeout"))
    only_late = failing and not _failing(traffic, kinds=("error",))
    queued = traffic.load is not None and _queued(traffic.load)
    if queued and not slower and (not failing or only_late):
        assert traffic.load is not None
        excluded[Factor.RELEASE] = excluded[Factor.INFRASTRUCTURE] = (
            "each request is worked on as fast as before, it only waits longer"
        )
        return _waiting(said, traffic.load, excluded)
    if traffic.load is not None:
        excluded[Factor.QUEUEING] = (
            "the queue did not grow" if not queued else "the work itself got slower or fails"
        )
    if slower and traffic.times is not None and not failing and _some_machines(traffic.times):
        excluded[Factor.RELEASE] = "in every class a part is slow and the rest as fast as before"
        return Judged(
            factor=Factor.INFRASTRUCTURE,
            reason=(
                f"{said} {traffic.times.slow.share:.0%} of requests of every class are slow and "
                "the others as fast as before: some machines are slow, not all."
            ),
            excluded=excluded,
        )
    verdict = _other_release(traffic, slower=slower, failing=failing)
    if verdict == "same":
        excluded[Factor.RELEASE] = "the release before it does no better in the same minutes"
    elif changed is not None or (context.deploys is None and context.release_changed):
        fine = " In the same minutes the one before it is fine." if verdict == "worse" else ""
        return Judged(
            factor=Factor.RELEASE,
            reason=f"{said} It began after the release changed.{fine}",
            excluded=excluded,
        )
    elif context.deploys is not None:
        # The one before may be fine because it runs on other machines: that alone says nothing.
        excluded[Factor.RELEASE] = "no other release took over shortly before"
    if not slower and not failing:
        return Judged(
            factor=None,
            reason=(
                f"{said} Held against requests of the same class before, they show neither slower "
                "work, nor failures, nor a longer queue: what it is cannot be told."
            ),
            excluded=excluded,
            confirmed=False,
        )
    if context.served_elsewhere:
        return Judged(
            factor=Factor.UPSTREAM,
            reason=(
                f"{said} The model is another's server, which got worse under an unchanged release."
            ),
            excluded=excluded,
        )
    environment = context.changed("environment", since)
    why = f" {environment.text or 'Its environment changed'} shortly before." if environment else ""
    return Judged(
        factor=Factor.INFRASTRUCTURE,
        reason=(
            f"{said} The release is the same and demand did not outgrow it: look at machines, "
            f"drivers and neighbours.{why}"
        ),
        excluded=excluded,
    )


def _unmeasured(
    said: str, context: DiagnosisContext, changed: bool, excluded: dict[str, str]
) -> Judged:
    """Without records to compare, only what was deployed when can be said."""
    if changed or (context.deploys is None and context.release_changed):
        return Judged(
            factor=Factor.RELEASE,
            reason=f"{said} It began after the release changed.",
            excluded=excluded,
        )
    if context.deploys is not None:
        excluded[Factor.RELEASE] = "no other release took over shortly before"
    if context.served_elsewhere:
        return Judged(
            factor=Factor.UPSTREAM,
            reason=f"{said} The model is another's server.",
            excluded=excluded,
        )
    return Judged(
        factor=None,
        reason=(f"{said} Queue and work could not be told apart: too few requests were compared."),
        excluded=excluded,
    )


def _waiting(said: str, load: Load, excluded: dict[str, str]) -> Judged:
    wait = f"Requests wait {load.queue_now:.2g} s (before: {load.queue_before:.2g} s)"
    if load.refused_now.count:
        wait += f" and {load.refused_now.share:.0%} are turned away"
    heavier = load.work_now / load.work_before if load.work_before > 0 else 1.0
    more = 1.0
    if load.rate_before and load.rate_now:
        more = load.rate_now / load.rate_before
    if heavier >= HEAVIER and heavier > more:
        excluded[Factor.QUEUEING] = (
            f"there are {more:.1f} times as many requests, but each is larger"
        )
        return Judged(
            factor=Factor.REQUEST_MIX,
            reason=(
                f"{said} {wait}: users ask for larger images, {heavier:.1f} times the work each, "
                "and each is made as fast as ever. No regression; it needs more capacity or limits."
            ),
            excluded=excluded,
        )
    excluded[Factor.REQUEST_MIX] = f"a request is {heavier:.1f} times the work it was"
    rate = f", {more:.1f} times as many requests as before" if more > 1.05 else ""
    return Judged(
        factor=Factor.QUEUEING,
        reason=(
            f"{said} {wait}{rate}, while each is made as fast as ever: demand is above capacity. "
            "Scale or shed load."
        ),
        excluded=excluded,
    )


def _slower(times: Times) -> bool:
    """Whether requests take longer than others of their class did: all of them, or a part. In a
    batch size that never was they are compared with what it takes at most: that all take longer is
    seen by their median, before many are beyond what is rare."""
    rose = times.slow.share - times.slow_before.share
    if times.slow.exceeds(times.slow_before) >= SURE:
        return times.ratio >= SLOWER or rose >= MORE_SLOW
    return times.ratio >= SLOWER and times.above.exceeds(times.above_before) >= SURE


def _failing(traffic: TrafficChange, *, kinds: Sequence[str]) -> bool:
    for kind in kinds:
        now, before = traffic.failed_now.get(kind), traffic.failed_before.get(kind)
        if now is None or before is None or not now.total or not before.total:
            continue
        if now.share - before.share >= MORE_FAILED and now.exceeds(before) >= SURE:
            return True
    return False


def _queued(load: Load) -> bool:
    """Whether requests wait clearly longer than they did, or are turned away."""
    waits = load.queue_now > 2.0 * load.queue_before + 0.5 * max(load.service_before, 1e-9)
    refused = (
        load.refused_now.share - load.refused_before.share >= MORE_FAILED
        and load.refused_now.exceeds(load.refused_before) >= SURE
    )
    return waits or refused


def _some_machines(times: Times) -> bool:
    """Whether a part of every class is slow and the rest as fast as ever. A part of the classes
    would be a matter of what is asked."""
    if times.quick >= ALL_SLOWER or times.slow.share > 0.85:
        return False
    shares = [r.share for r in times.slow_by_class.values() if r.total >= 20]
    return len(shares) < 2 or min(shares) >= 0.3 * max(shares)


def _other_release(traffic: TrafficChange, *, slower: bool, failing: bool) -> str:
    """How the release before does in the same minutes: "worse" if the champion is, "same" if both
    are as bad, "" if that cannot be told."""
    own, other = traffic.champion, traffic.previous
    if own is None or other is None:
        return ""
    pairs = []
    if slower:
        pairs.append((own.slow, other.slow))
    if failing:
        pairs.append((own.failed, other.failed))
    if any(a.exceeds(b) >= SURE for a, b in pairs):
        return "worse"
    # "as bad" needs figures: the champion's share must be likely for the other one
    return (
        "same" if pairs and all(b.total >= 20 and b.share >= a.share / 2 for a, b in pairs) else ""
    )
