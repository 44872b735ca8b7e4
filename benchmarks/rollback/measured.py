"""What the records of a rollback say: when the breaker could know, and who was still sent. Pure.

Times are seconds since the epoch. Gateway, controller and records share this machine's clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from intonaco.types import Attempt, Outcome, Record

HARD = (Outcome.ERROR, Outcome.TIMEOUT)
BREAKER = ("hard", "hard_controller_killed", "hard_in_bake")
PARTIAL = ("partial", "partial_controller_killed")
COMMAND = ("command", "command_controller_killed", "command_in_bake")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One rollback. ``since``: what it is counted from (the third hard failure, the decision, the
    command); ``last_at``: when the last try of a user's request at the release began; ``tries``:
    how many there were in all."""

    scenario: str
    since: float
    last_at: float
    tries: int

    @property
    def seconds(self) -> float:
        """For how long users were still sent there. 0: nobody was after ``since``."""
        return max(0.0, self.last_at - self.since)


def tries(records: Iterable[Record], release: str) -> list[Attempt]:
    """Tries of users' requests at a release, in the order in which they began. Not the breaker's
    probes, which are nobody's request."""
    found = [a for r in records if not r.probe for a in r.attempts if a.release == release]
    return sorted(found, key=lambda a: a.started_at)


def hard_failure(records: Iterable[Record], release: str, number: int) -> float | None:
    """When so manieth hard failure was over, users' and probes' alike; None if there were fewer.
    Whatever succeeds between them was begun before the release broke, and puts the breaker's own
    count back: counted so, the third is never later than the one that trips."""
    ended = sorted(
        a.started_at + a.seconds
        for r in records
        for a in r.attempts
        if a.release == release and a.outcome in HARD
    )
    return ended[number - 1] if len(ended) >= number else None


def first_failure(records: Iterable[Record], release: str) -> float | None:
    """When the first try that failed hard began."""
    found = [a.started_at for a in tries(records, release) if a.outcome in HARD]
    return found[0] if found else None


def figures(cases: Sequence[Case], statuses: Mapping[str, int]) -> dict[str, float]:
    """Names of the results to values. ``statuses``: answers that users got, 200 or else."""

    def worst(names: Iterable[str]) -> float:
        return max(c.seconds for c in cases if c.scenario in names)

    found = {
        "seconds": worst(BREAKER),
        "partial_seconds": worst(PARTIAL),
        "command_seconds": worst(COMMAND),
        "user_errors": float(sum(n for status, n in statuses.items() if status != "200")),
        "requests": float(sum(statuses.values())),
        "rollbacks": float(len(cases)),
    }
    for name in (*BREAKER, *PARTIAL, *COMMAND):
        of = [c for c in cases if c.scenario == name]
        found[f"{name}.worst_s"] = worst((name,))
        found[f"{name}.tries"] = float(max(c.tries for c in of))
        found[f"{name}.runs"] = float(len(of))
    return found
