"""How often is the cause of an incident told, and never answered by the wrong cure?

Made-up incidents (``intonaco.testing.incidents``), single and mixed, ``WORLDS`` of each with
parameters drawn from wide ranges, through the real monitor, diagnosis and policy.
"""

from __future__ import annotations

from time import process_time

from intonaco.testing.incidents import accuracy, confusion, play, possible, render
from intonaco.types import Cause

WORLDS = 8  # of each incident


def figures(worlds: int = WORLDS, first_seed: int = 0) -> tuple[dict[str, float], str]:
    """Figures by their full name, and the confusion matrix as text."""
    began = process_time()
    seeds = range(first_seed, first_seed + worlds)
    outcomes = [play(name, seed) for name in possible() for seed in seeds]
    seconds = process_time() - began
    slow = {Cause.PERFORMANCE_DEGRADATION}
    trained = sum(
        Cause.PERFORMANCE_DEGRADATION in o.trains_for
        or (o.truth == slow and any(action.trains for action in o.actions))
        for o in outcomes
    )
    found = {
        "diagnosis.accuracy": accuracy(outcomes),
        "diagnosis.accuracy_with_factor": accuracy(outcomes, factors=True),
        "diagnosis.worlds": float(len(outcomes)),
        "diagnosis.latency_incidents_answered_by_training": float(trained),
        "diagnosis.cpu_seconds_per_world": seconds / len(outcomes),
    }
    return found, render(confusion(outcomes))


if __name__ == "__main__":
    values, matrix = figures()
    print(matrix)
    for name, value in values.items():
        print(f"{name}  {value:.4g}")
