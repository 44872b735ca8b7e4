"""Releases that were rolled back and are not tried again by themselves. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from intonaco.types import Candidate, Rollout, RolloutStatus, Verdict


def quarantined(rollouts: Iterable[Rollout]) -> Mapping[str, str]:
    """Why each was rolled back, by release; ``rollouts`` in the order in which they began.

    A verdict that was about the release puts it there, a person who aborted it too; a split that
    was not the logged one says nothing of it. An arm that was taken out of a split is there too,
    whatever became of the others. A later promotion ends it.
    """
    found: dict[str, str] = {}
    for rollout in rollouts:
        for arm in rollout.split.arms if rollout.split else ():
            if arm.removed_at is not None:
                found[arm.release] = arm.reason
        if rollout.status is RolloutStatus.ROLLED_BACK and rollout.verdict is Verdict.FAIL:
            for release in rollout.challengers:
                found[release] = rollout.reason
        elif rollout.status is RolloutStatus.PROMOTED:
            found.pop(rollout.challenger, None)
    return found


def not_again(candidate: Candidate, quarantined: Mapping[str, str]) -> Candidate:
    """The candidate, failed if its release is in quarantine, whatever was measured."""
    why = quarantined.get(candidate.release_id or "")
    if why is None:
        return candidate
    reason = f"in quarantine, rolled back before: {why} (`intonaco rollout retry` tries it again)"
    return replace(candidate, verdict=Verdict.FAIL, reasons=(reason, *candidate.reasons))
