"""Live traffic under a rollout whose users say what they think: sticky, a few of them far more
often than others, at rates that drift; and a challenger that is liked as it is told to be."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from intonaco.rollout.analysis import RolloutAnalysis
from intonaco.types import Attempt, Feedback, Outcome, Record, ScoredRecord

CHALLENGER = "challenger:r1"


def record(
    number: int, *, unit: str, challenger: bool, weight: float, at: float, failed: bool = False
) -> ScoredRecord:
    arm = CHALLENGER if challenger else "champion"
    attempt = Attempt(
        arm=arm,
        release="B" if challenger else "A",
        outcome=Outcome.ERROR if failed else Outcome.OK,
        started_at=at,
        seconds=0.3,
        service_seconds=0.3,
    )
    return ScoredRecord(
        record=Record(
            gateway="g",
            gateway_epoch=1,
            seq=number,
            service_id="s",
            request_id=f"q{number}",
            at=at,
            unit=unit,
            assigned_arm=arm,
            probability=weight if challenger else 1 - weight,
            routing_epoch=3,
            salt="salt",
            attempts=(attempt,),
            served_by=None if failed else attempt.release,
            served_arm=None if failed else arm,
            status=502 if failed else 200,
            seconds=0.3,
            prompt=f"prompt {number % 7}",
            seed=number,
            steps=10,
            guidance_scale=3.0,
            width=32,
            height=32,
        ),
        prompt_embedding=(),
        scores={},
        extractor="e",
    )


def said(item: ScoredRecord, after: float, vote: str | None, kind: str = "explicit") -> Feedback:
    """What the record's user said of its image, so many seconds after it was asked for."""
    r = item.record
    return Feedback(
        gateway="g",
        gateway_epoch=1,
        seq=r.seq,
        service_id="s",
        at=r.at + after,
        request_id=r.request_id,
        made_at=float(int(r.at)),
        assigned_arm=r.assigned_arm,
        release=r.served_by or "",
        unit="digest",
        kind=kind,
        vote=vote,
    )


@dataclass(slots=True, kw_only=True)
class Voters:
    """A request a second. ``users`` come back, everybody is new where it is 0; ``grumblers`` of
    them ask for a third of the images and speak ill of most. ``ill``: the chance that an image of
    the champion's is spoken ill of, which ``drift`` moves, and by ``worse`` more one of the
    challenger's; ``well``: of champion's and challenger's to be praised. Votes come within
    ``mature`` seconds, a share ``late`` of them after that."""

    rng: np.random.Generator
    requests: int
    users: int = 0
    grumblers: int = 0
    weights: Sequence[float] = (0.01, 0.05, 0.2, 0.5)
    ill: float = 0.05
    worse: float = 0.0
    well: tuple[float, float] = (0.1, 0.1)
    drift: float = 0.0
    mature: float = 100.0
    late: float = 0.0
    first: int = 0
    _waiting: list[tuple[float, int, Feedback]] = field(default_factory=list)

    def items(self) -> Iterator[ScoredRecord | Feedback]:
        """Records and votes in the order in which they are written."""
        luck = self.rng.random(max(self.users, self.requests))
        for n in range(self.requests):
            weight = self.weights[min(n * len(self.weights) // self.requests, 99)]
            user = self._who(n)
            challenger = bool(luck[user] < weight)
            number = self.first + n
            item = record(
                number, unit=f"u{user}", challenger=challenger, weight=weight, at=float(number)
            )
            yield from self._spoken(float(number))
            yield item
            self._speak(item, user, challenger, n)
        yield from self._spoken(math.inf)

    def _who(self, n: int) -> int:
        if not self.users:
            return n
        grumbles = self.grumblers and self.rng.random() < 0.33
        return int(self.rng.integers(self.grumblers if grumbles else self.users))

    def _speak(self, item: ScoredRecord, user: int, challenger: bool, n: int) -> None:
        grumbles = user < self.grumblers
        ill = 0.7 if grumbles else self.ill * (1 + self.drift * math.sin(n / 70))
        ill += self.worse if challenger else 0.0
        dice = self.rng.random()
        if dice >= ill + self.well[challenger]:
            return
        vote = ("down", "1", "2") if dice < ill else ("up", "4", "5")
        after = float(self.rng.uniform(1.0, self.mature - 1.0))
        if self.late and self.rng.random() < self.late:
            after += self.mature
        feedback = said(item, after, vote[int(self.rng.integers(3))])
        heapq.heappush(self._waiting, (feedback.at, item.record.seq, feedback))

    def _spoken(self, now: float) -> Iterator[Feedback]:
        while self._waiting and self._waiting[0][0] <= now:
            yield heapq.heappop(self._waiting)[2]


def play(
    voters: Voters, analysis: RolloutAnalysis, look: Callable[[], None] | None = None
) -> RolloutAnalysis:
    """Feed it all, and wait until the last image is mature."""
    last = 0.0
    for item in voters.items():
        if isinstance(item, Feedback):
            analysis.hear(item)
        else:
            last = item.record.at
            analysis.observe(item)
        if look is not None:
            look()
    analysis.advance(last + 2 * voters.mature + 1000.0)
    return analysis


def at(item: ScoredRecord, when: float) -> ScoredRecord:
    """The same, asked for at another time."""
    one = replace(item.record.attempts[0], started_at=when)
    return replace(item, record=replace(item.record, at=when, attempts=(one,)))
