"""Workers of the equal slice: some of the champion's release that serve the baseline arm alone.

A challenger is new and has few users; how long its users wait can be compared only with as many
users at as many workers, as new, of the old release. So the champion's release is scaled up by as
many workers as the challenger has, as soon as those were started; the champion keeps its own.

Everything follows from the ledger, what the serving backend says is there, and the routing table
that the gateways confirmed: killed anywhere, the next look goes on. Before the release is scaled up
the URLs of the champion's own workers are written down, as once one has ended the backend's list
alone does not tell whose it was.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

from intonaco.codec import as_json, decode
from intonaco.errors import IntonacoError
from intonaco.executor import Parts
from intonaco.rollout import restarts
from intonaco.rollout.facts import EQUAL
from intonaco.rollout.strategies import staged_baseline
from intonaco.types import Phase, Rollout, RoutingTable, ServingStatus

log = logging.getLogger(__name__)

SETTING = "baseline"  # of the ledger: ``Extended``, while a release has more workers than its own
RESTARTS = "baseline:restarts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Extended:
    """A release that was scaled up. ``own``: URLs of the champion's workers when they were last all
    there."""

    release: str
    own: tuple[str, ...]


def extended(parts: Parts, release: str | None) -> Extended | None:
    """What is written down of that release."""
    kept = parts.ledger.setting(SETTING)
    found = decode(Extended, json.dumps(kept)) if kept else None
    return found if found is not None and found.release == release else None


def answers(parts: Parts, status: ServingStatus) -> bool:
    """Whether as many workers answer as the champion has of its own."""
    if status.ready or extended(parts, status.release) is None:
        return status.ready
    return status.attested == status.release and len(status.urls) >= parts.config.serving.replicas


def of_its_own(parts: Parts, status: ServingStatus) -> ServingStatus:
    """The status as that of the champion's own workers: ready if only the baseline's are missing,
    which keep nobody from anything."""
    if status.ready or not answers(parts, status):
        return status
    known = extended(parts, status.release)
    if known is None or not {*known.own} <= {*status.urls}:
        return status
    return replace(status, ready=True, error="")


def missing(parts: Parts, rollout: Rollout, status: ServingStatus | None) -> str:
    """What the equal slice lacks, in words; "" for nothing."""
    if not rollout.baseline or status is None:
        return ""
    ready = max(0, len(status.urls) - parts.config.serving.replicas)
    if ready >= rollout.baseline and extended(parts, status.release) is not None:
        return ""
    text = f"{ready} of {rollout.baseline} workers of the equal baseline to be ready"
    return f"{text} ({status.error.splitlines()[0]})" if status.error else text


def look(
    parts: Parts,
    rollout: Rollout | None,
    weights: Mapping[str, float],
    status: ServingStatus,
    confirmed: RoutingTable | None,
    fence: int,
    now: float,
) -> tuple[ServingStatus, tuple[str, ...]]:
    """One look at the release of ``status``: its workers for the equal slice are started, started
    again, or ended. The status with the URLs that are the champion's own, and those that are the
    baseline's: all that there should be, or none. ``confirmed``: the newest table if the gateways
    follow it; a worker that users are sent to is not ended."""
    total = parts.config.serving.replicas
    wanted = _wanted(parts, rollout, weights, status.release)
    known = extended(parts, status.release)
    if wanted and status.ready and status.replicas in (total, total + wanted):
        own = Extended(release=status.release, own=status.urls[:total])
        if known != own:
            _keep(parts, own, fence)
            known = own
    if known is None:
        return status, ()
    if not wanted:
        _end(parts, known, status, confirmed, fence)
    elif status.replicas < total + wanted:
        if answers(parts, status):
            _scale(parts, status.release, total + wanted)
    elif not status.ready and of_its_own(parts, status).ready:
        _start_again(parts, status, fence, now)
    own_status = replace(of_its_own(parts, status), urls=status.urls[:total])
    rest = status.urls[total:]
    whole = wanted > 0 and len(rest) == wanted and status.attested == status.release
    return own_status, rest if whole else ()


def _wanted(
    parts: Parts, rollout: Rollout | None, weights: Mapping[str, float], release: str
) -> int:
    """Workers of the equal slice that the release is to have now."""
    if rollout is not None:
        ours = rollout.champion == release and rollout.promoted_at is None
        return rollout.baseline if ours and weights.get("challenger", 0.0) <= EQUAL else 0
    if not parts.config.rollout.baseline:
        return 0
    for update in parts.ledger.active_updates():
        staged = update.phase in (Phase.STAGE, Phase.APPROVE) and update.chosen is not None
        if staged and update.champion == release and update.chosen != release:
            equal = staged_baseline(update, parts.config)
            # With the challenger, not before it: whether there is room for all is looked at first.
            if equal and parts.serving.status(str(update.chosen)).deployed:
                return equal
    return 0


def _end(
    parts: Parts,
    known: Extended,
    status: ServingStatus,
    confirmed: RoutingTable | None,
    fence: int,
) -> None:
    total = parts.config.serving.replicas
    if status.replicas > total:
        own = status.urls[:total]
        # Of a release with a worker missing the list alone does not say which ones are the last.
        sure = status.ready or {*known.own} <= {*own}
        if sure and confirmed is not None and _sent_to(confirmed, status.release) <= {*own}:
            _scale(parts, status.release, total)
        return
    with parts.ledger.begin(fence=fence) as tx:
        tx.set(SETTING, None)
        tx.set(RESTARTS, None)


def _start_again(parts: Parts, status: ServingStatus, fence: int, now: float) -> None:
    """As a champion is, after longer and longer; nobody is called for it: the rollout waits, and
    says for what."""
    kept = parts.ledger.setting(RESTARTS)
    stored = decode(restarts.Restarts, json.dumps(kept)) if kept else None
    decision = restarts.decide(stored, status, now)
    if decision.after != stored:
        with parts.ledger.begin(fence=fence) as tx:
            tx.set(RESTARTS, as_json(decision.after))
    if decision.start:
        try:
            parts.serving.deploy(parts.releases.get(status.release))
        except IntonacoError as error:
            log.warning("%s: %s", status.release[:10], error, extra={"action": "deploy"})


def _scale(parts: Parts, release: str, size: int) -> None:
    """Whatever is wrong with the equal slice must not keep anybody from going back."""
    try:
        parts.serving.scale(parts.releases.get(release), size)
    except IntonacoError as error:
        log.warning("%s: %s", release[:10], error, extra={"action": "scale"})


def _keep(parts: Parts, own: Extended, fence: int) -> None:
    with parts.ledger.begin(fence=fence) as tx:
        tx.set(SETTING, as_json(own))


def _sent_to(table: RoutingTable, release: str) -> set[str]:
    return {url for a in table.arms if a.release == release for url in a.urls}
