"""What was told against what happened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from intonaco.testing.incidents.play import Outcome
from intonaco.types import Cause

Matrix = Mapping[str, Mapping[str, int]]  # incident -> told causes -> runs


def confusion(outcomes: Sequence[Outcome]) -> Matrix:
    """Runs per incident and told causes ("nothing" where there was no finding)."""
    found: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        found.setdefault(outcome.incident, Counter())[_told(outcome)] += 1
    return found


def accuracy(outcomes: Sequence[Outcome], *, factors: bool = False) -> float:
    """Share of runs in which exactly the causes at work were told; with ``factors`` what is behind
    them as well, where the incident has one."""
    right = sum(o.right if factors else o.right_cause for o in outcomes)
    return right / len(outcomes) if outcomes else 0.0


def render(matrix: Matrix) -> str:
    """The matrix as text, one line an incident, the most told first."""
    lines = []
    width = max((len(name) for name in matrix), default=0)
    for name, row in matrix.items():
        said = ", ".join(f"{told} {n}" for told, n in Counter(row).most_common())
        lines.append(f"{name:<{width}}  {sum(row.values()):>4} runs: {said}")
    return "\n".join(lines)


def _told(outcome: Outcome) -> str:
    return " + ".join(sorted(_SHORT[c] for c in outcome.told)) or "nothing"


_SHORT = {cause: str(cause).replace("_", " ") for cause in Cause}
