"""What the demo's story is like with each strategy: its rollout, and what must have happened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

BREAKS = (
    "breaker",
    "errors",
    "worker is gone",
    "worker ended",
)  # of the first drill, whichever sees it first
SLOWS = ("slow", "no answer within", "breaker")


@dataclass(frozen=True, slots=True, kw_only=True)
class Telling:
    """``settings``: of the ``rollout`` section. ``steps``: kinds and weights, the shadow's left
    out. ``promotes``: whether anybody becomes champion by it. ``drills``: how often the faulty
    release is tried. ``users_hurt``: whether users see its faults, having nobody to step in.
    ``fault_after``: requests that each worker of it answers well, at its first deployment."""

    steps: tuple[tuple[str, float], ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    replicas: int = 1
    bake_seconds: float = 1
    promotes: bool = True
    drills: int = 2
    users_hurt: bool = False
    fault_after: int | None = None


_END = (("promote", 0.0), ("bake", 0.0))
TELLINGS: Mapping[str, Telling] = {
    "canary": Telling(
        steps=(("canary", 0.05), ("canary", 0.25), ("canary", 0.5), ("canary", 1.0), *_END)
    ),
    "blue_green": Telling(steps=(("analysis", 0.0), ("canary", 1.0), *_END), fault_after=25),
    "rolling": Telling(
        steps=(("canary", 0.5), ("canary", 1.0), *_END),
        settings={"max_surge": 1, "max_unavailable": 0},
        replicas=2,
    ),
    "ab": Telling(
        steps=(("split", 0.5), ("canary", 1.0), *_END),
        settings={"ab": {"metric": "clip_score", "min_seconds": 5, "min_units": 40}},
        fault_after=30,
    ),
    "shadow_only": Telling(steps=(("analysis", 0.0),), promotes=False, fault_after=15),
    "in_place": Telling(
        steps=(("replace", 1.0), *_END),
        settings={"force": True},
        bake_seconds=20,
        drills=1,
        users_hurt=True,
        fault_after=40,
    ),
}


def checks(summary: Mapping[str, Any]) -> list[tuple[bool, str]]:
    """(whether it holds, what did not happen) of the rollout and of the drills."""
    told = TELLINGS[summary["strategy"]]
    rollout, rollbacks = summary["rollout"], summary["rollbacks"]
    steps = [
        (str(step["kind"]), round(step["weight"], 2))
        for step in rollout["steps"]
        if step["kind"] not in ("shadow", "stage")
    ]
    wanted = "promoted" if told.promotes else "observed"
    found = [
        (tuple(steps) == told.steps, f"the rollout's steps were {steps}"),
        (
            rollout.get("status") == wanted,
            f"the fine-tuned release was not {wanted} but {rollout.get('status')}",
        ),
        (len(rollbacks) == told.drills, f"{len(rollbacks)} rollbacks instead of {told.drills}"),
    ]
    for name, words, back in zip(("first", "second"), (BREAKS, SLOWS), rollbacks, strict=False):
        why = f"the {name} rollback was for another reason: {back['reason']}"
        found.append((any(word in back["reason"] for word in words), why))
    if told.promotes:
        champion = next(
            (r["release_id"] for r in summary["releases"] if r["role"] == "champion"), ""
        )
        text = "the champion at the end is not the fine-tuned release"
        found.append((champion == rollout.get("challenger"), text))
    else:
        text = "somebody became champion by a rollout that only watches"
        found.append((len(summary.get("tenures", ())) == 1, text))
    failed = summary["requests"]["failed_elsewhere" if told.users_hurt else "failed"]
    where = " that the faulty release had no part in" if told.users_hurt else ""
    found.append((failed == 0, f"{failed} requests failed{where}"))
    return found
