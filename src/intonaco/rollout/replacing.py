"""What a rollout that replaces workers asks for at its steps. Pure."""

from __future__ import annotations

from intonaco.rollout.capacity import can_take
from intonaco.types import Rollout, StepKind


def in_place(rollout: Rollout) -> bool:
    """Whether the challenger takes the champion's place without having been beside it."""
    return any(s.kind is StepKind.REPLACE for s in rollout.steps)


def asked_for(rollout: Rollout) -> bool:
    """Whether the challenger is to be loaded by now: in place it waits for its step."""
    taken = rollout.steps[: rollout.step + 1] if rollout.history else ()
    return not in_place(rollout) or any(s.kind is StepKind.REPLACE for s in taken)


def next_wave(rollout: Rollout, to: int) -> int:
    """Workers that step ``to`` asks for in a rolling rollout, if it is a wave after the first."""
    if rollout.capacity is None or to >= len(rollout.steps):
        return 0
    wanted = rollout.steps[to].replicas
    before = max((s.replicas for s in rollout.steps[:to]), default=0)
    return wanted if wanted > before > 0 else 0


def wave_begun(rollout: Rollout) -> bool:
    """Whether the next wave's workers are being started: from then on only they are waited for."""
    wanted = next_wave(rollout, rollout.step + 1)
    return rollout.capacity is not None and 0 < wanted <= rollout.capacity.challenger


def missing_workers(rollout: Rollout, to: int, ready: int) -> list[str]:
    """What lacks of the workers that answer for users' share at step ``to``."""
    cap = rollout.capacity
    wanted = rollout.steps[to].replicas if to < len(rollout.steps) else 0
    if cap is None or not wanted or can_take(cap, ready, wanted):
        return []
    needed = max(1, wanted - cap.unavailable)
    return [f"{ready} of {needed} workers of the challenger to be ready"]
