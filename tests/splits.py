"""Made-up traffic of a split: users dealt by the gateway's function, records as it writes them."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from intonaco.serving.gateway.routing import assign
from intonaco.types import ArmRole, Attempt, Outcome, Record, RoutingTable, ScoredRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """Of a release: share of requests that fail, mean and spread of the clip score, share that is
    slow."""

    errors: float = 0.0
    clip: float = 0.3
    spread: float = 0.05
    slow: float = 0.0


@dataclass
class SplitTraffic:
    """Users of a service. ``of``: behaviour by release; who is not named behaves as the default."""

    of: Mapping[str, Behaviour] = field(default_factory=dict)
    seed: int = 1
    users: int = 0
    requests: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def new_users(
        self, table: RoutingTable, count: int, at: float, tripped: Collection[str] = ()
    ) -> Iterator[ScoredRecord]:
        """One request of each of ``count`` users who were never seen before."""
        for _ in range(count):
            self.users += 1
            yield self.request(table, f"user-{self.users}", at, tripped)

    def request(
        self, table: RoutingTable, user: str, at: float, tripped: Collection[str] = ()
    ) -> ScoredRecord:
        """What the gateway and the scorer write of one request."""
        self.requests += 1
        dealt = assign(table, user, tripped)
        arm, stable = dealt.arm, table.stable()
        attempts: tuple[Attempt, ...] = ()
        if arm.role is not ArmRole.RETURNED:
            attempts = (self._try(arm.name, arm.release, at),)
        if not attempts or attempts[0].outcome is not Outcome.OK:  # the champion, the shield
            attempts = (*attempts, self._try(stable.name, stable.release, at, may_fail=False))
        last = attempts[-1]
        behaviour = self._of(last.release)
        number = self.requests
        record = Record(
            gateway="g",
            gateway_epoch=1,
            seq=number,
            service_id="svc",
            request_id=f"q{number}",
            at=at,
            unit=user,
            assigned_arm=arm.name,
            probability=dealt.probability,
            routing_epoch=table.epoch,
            salt=table.salt,
            attempts=attempts,
            served_by=last.release,
            served_arm=last.arm,
            status=200,
            seconds=sum(a.seconds for a in attempts),
            prompt=f"prompt {number % 7}",
            seed=number,
            steps=10,
            guidance_scale=3.0,
            width=32,
            height=32,
        )
        score = min(max(self.random.gauss(behaviour.clip, behaviour.spread), -1.0), 1.0)
        return ScoredRecord(
            record=record, prompt_embedding=(1.0, 0.0), scores={"clip": score}, extractor="e"
        )

    def _of(self, release: str) -> Behaviour:
        return self.of.get(release, Behaviour())

    def _try(self, arm: str, release: str, at: float, *, may_fail: bool = True) -> Attempt:
        behaviour = self._of(release)
        fails = may_fail and self.random.random() < behaviour.errors
        seconds = 0.9 if self.random.random() < behaviour.slow else 0.3
        return Attempt(
            arm=arm,
            release=release,
            outcome=Outcome.ERROR if fails else Outcome.OK,
            started_at=at,
            seconds=seconds,
            service_seconds=0.0 if fails else seconds,
        )
