"""Releases that were rolled back and are not tried again by themselves. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from intonaco.types import Rollout, RolloutStatus, Verdict


def quarantined(rollouts: Iterable[Rollout]) -> Mapping[str, str]:
    """Why each was rolled back, by release; ``rollouts`` in the order in which they began.

    A verdict that was about the release puts it there, a person who aborted it too; a split that
    was not the logged one says nothing of it. A later promotion ends it.
    """
    found: dict[str, str] = {}
    for rollout in rollouts:
        if rollout.status is RolloutStatus.ROLLED_BACK and rollout.verdict is Verdict.FAIL:
            found[rollout.challenger] = rollout.reason
        elif rollout.status is RolloutStatus.PROMOTED:
            found.pop(rollout.challenger, None)
    return found
