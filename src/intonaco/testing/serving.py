"""Twins and conformance checks of the ServingBackend and TrafficRouter seams."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from intonaco.errors import BackendError, Conflict
from intonaco.messages import table_digest
from intonaco.protocols import ServingBackend, TrafficRouter
from intonaco.testing import require
from intonaco.types import (
    Arm,
    ArmRole,
    BreakerTrip,
    Observed,
    Release,
    RoutingTable,
    ServingStatus,
)


@dataclass(slots=True)
class MemoryServingBackend:
    """``status`` says ready after ``polls_until_ready`` calls, of each worker by itself.
    ``failing`` maps a release id to the error its worker ends with, ``attests`` to the id it
    attests instead of its own. ``replicas``: workers of a release that was not scaled. ``most``:
    the most that were there of all releases at once."""

    polls_until_ready: int = 0
    replicas: int = 1
    most: int = 0
    failing: dict[str, str] = field(default_factory=dict)
    attests: dict[str, str] = field(default_factory=dict)
    deployments: dict[str, int] = field(default_factory=dict)  # from nothing, per release id
    draining: set[str] = field(default_factory=set)
    calls: list[tuple[str, str]] = field(default_factory=list)  # (method, release id)
    _polls: dict[str, list[int]] = field(default_factory=dict)  # of each worker

    def deploy(self, release: Release) -> None:
        rid = release.release_id
        self.calls.append(("deploy", rid))
        if rid not in self._polls:
            self._start(rid, self.replicas)
        self.draining.discard(rid)

    def scale(self, release: Release, replicas: int) -> None:
        rid = release.release_id
        if replicas < 1:
            raise BackendError("at least one", backend="memory", retriable=False)
        self.calls.append((f"scale {replicas}", rid))
        self._start(rid, replicas)
        del self._polls[rid][replicas:]

    def _start(self, rid: str, replicas: int) -> None:
        if rid not in self._polls:
            self._polls[rid] = []
            self.deployments[rid] = self.deployments.get(rid, 0) + 1
        workers = self._polls[rid]
        workers.extend([0] * (replicas - len(workers)))
        self.most = max(self.most, sum(len(w) for w in self._polls.values()))

    def status(self, release_id: str) -> ServingStatus:
        if release_id not in self._polls:
            return ServingStatus(
                release=release_id, ready=False, error="not deployed", deployed=False
            )
        workers = self._polls[release_id]
        if error := self.failing.get(release_id):
            return ServingStatus(
                release=release_id, ready=False, error=error, replicas=len(workers)
            )
        workers[:] = [polls + 1 for polls in workers]
        up = [k for k, polls in enumerate(workers) if polls > self.polls_until_ready]
        if not up or release_id in self.draining:
            return ServingStatus(release=release_id, ready=False, replicas=len(workers))
        attested = self.attests.get(release_id, release_id)
        wrong = attested != release_id
        return ServingStatus(
            release=release_id,
            ready=not wrong and len(up) == len(workers),
            urls=tuple(f"memory://{release_id[:10]}" + (f"-{k}" if k else "") for k in up),
            attested=attested,
            error=f"attests {attested[:10]}" if wrong else "",
            replicas=len(workers),
        )

    def drain(self, release_id: str) -> None:
        self.calls.append(("drain", release_id))
        if release_id in self._polls:
            self.draining.add(release_id)

    def retire(self, release_id: str) -> None:
        self.calls.append(("retire", release_id))
        self._polls.pop(release_id, None)
        self.draining.discard(release_id)

    def die(self, release_id: str) -> None:
        """The worker ends by itself."""
        self._polls.pop(release_id, None)


@dataclass(slots=True)
class MemoryRouter:
    """Follows tables as a gateway does; what it saw is set by hand."""

    table: RoutingTable | None = None
    applied: list[RoutingTable] = field(default_factory=list)
    in_flight: dict[str, int] = field(default_factory=dict)
    trips: dict[str, BreakerTrip] = field(default_factory=dict)
    requests: int = 0
    failed: int = 0
    probe_png: bytes = b"\x89PNG"

    def apply(self, table: RoutingTable) -> None:
        if self.table is not None:
            if table.epoch < self.table.epoch:
                raise Conflict(f"epoch {table.epoch} is older than {self.table.epoch}")
            if table.epoch == self.table.epoch:
                if table == self.table:
                    return
                raise Conflict(f"epoch {table.epoch} was given to another table already")
        for release in table.untrip:
            self.trips.pop(release, None)
        self.table = table
        self.applied.append(table)

    def observed(self) -> Observed:
        table = self.table
        weights: dict[str, float] = {}
        stable = table.stable() if table else None
        for arm in table.arms if table else ():
            off = arm.release in self.trips and arm != stable
            weights[arm.name] = 0.0 if off else arm.weight
        if table and stable and self.trips:
            live = [a for a in table.arms if a.role is not ArmRole.SHADOW]
            lost = sum(a.weight - weights[a.name] for a in live)
            weights[stable.name] += lost
        return Observed(
            epoch=table.epoch if table else 0,
            salt=table.salt if table else "",
            weights=weights,
            in_flight=dict(self.in_flight),
            trips=tuple(self.trips.values()),
            requests=self.requests,
            failed=self.failed,
            table=table_digest(table) if table else "",
        )

    def probe(self, release_id: str, prompt: str, seed: int) -> bytes:
        return self.probe_png

    def trip(self, release: str, at: float, reason: str = "by hand") -> None:
        """The breaker of a release trips."""
        self.trips[release] = BreakerTrip(
            release=release, at=at, first_failure_at=at, failures=3, reason=reason
        )


def sample_table(epoch: int, *, challenger_weight: float = 0.25) -> RoutingTable:
    """A table of made-up releases: champion, equal baseline, challenger."""
    w = challenger_weight
    return RoutingTable(
        service_id="sample",
        epoch=epoch,
        salt="salt",
        arms=(
            Arm(
                name="champion",
                role=ArmRole.CHAMPION,
                release="a" * 64,
                urls=("http://127.0.0.1:9",),
                weight=1 - 2 * w,
            ),
            Arm(
                name="baseline",
                role=ArmRole.BASELINE,
                release="a" * 64,
                urls=("http://127.0.0.1:9",),
                weight=w,
            ),
            Arm(
                name="challenger:new",
                role=ArmRole.CHALLENGER,
                release="b" * 64,
                urls=("http://127.0.0.1:9",),
                weight=w,
            ),
        ),
    )


def check_serving_backend(
    backend: ServingBackend,
    release: Release,
    *,
    timeout_s: float = 120.0,
    poll_s: float = 0.2,
) -> None:
    """Run one release through a backend's whole life. Raises AssertionError."""
    rid = release.release_id
    before = backend.status(rid)
    require(not before.ready, "a release that was never deployed must not be ready")
    backend.deploy(release)
    backend.deploy(release)  # the same again adopts
    first = _until(lambda: backend.status(rid), lambda s: s.ready, timeout_s, poll_s)
    require(first.ready, f"not ready after {timeout_s} s: {first.error}")
    require(first.release == rid, "status must name the release it was asked about")
    require(first.attested == rid, "a ready worker attests the id of the release")
    require(len(first.urls) > 0, "a ready release has a URL")
    require(len(set(first.urls)) == len(first.urls), "URLs are given once")
    backend.deploy(release)
    again = backend.status(rid)
    require(again.ready, "deploying a release that runs must not disturb it")
    require(again.urls == first.urls, "deploying a release that runs must adopt its workers")
    backend.drain(rid)
    drained = _until(lambda: backend.status(rid), lambda s: not s.ready, timeout_s, poll_s)
    require(not drained.ready, "a draining release is not ready")
    backend.drain(rid)
    backend.deploy(release)
    back = _until(lambda: backend.status(rid), lambda s: s.ready, timeout_s, poll_s)
    require(back.ready, "deploying a draining release brings it back")
    backend.retire(rid)
    require(not backend.status(rid).ready, "a retired release is not ready")
    require(not backend.status(rid).urls, "a retired release has no URL")
    backend.retire(rid)


def check_scaling(
    backend: ServingBackend,
    release: Release,
    *,
    timeout_s: float = 120.0,
    poll_s: float = 0.2,
) -> None:
    """Scale one release up and down, from nothing to nothing. Raises AssertionError; BackendError
    where the backend cannot scale."""
    rid = release.release_id

    def settled(replicas: int) -> ServingStatus:
        return _until(
            lambda: backend.status(rid),
            lambda s: s.ready and s.replicas == replicas and len(s.urls) == replicas,
            timeout_s,
            poll_s,
        )

    require(not backend.status(rid).deployed, "what nobody asked for is not deployed")
    backend.scale(release, 1)
    one = settled(1)
    require(one.ready and len(one.urls) == 1, f"not one worker: {one.error or one.urls}")
    backend.scale(release, 2)
    started = backend.status(rid)
    require(started.replicas == 2, f"2 workers were asked for, {started.replicas} were started")
    require(one.urls[0] in started.urls, "scaling up must not disturb those that run")
    two = settled(2)
    require(len(set(two.urls)) == 2, f"not two workers: {two.error or two.urls}")
    require(two.urls[0] == one.urls[0], "the workers that were there come first")
    backend.scale(release, 2)
    require(settled(2).urls == two.urls, "the same number again changes nothing")
    backend.scale(release, 1)
    left = settled(1)
    require(left.urls == one.urls, "scaling down ends the last ones and keeps the others")
    backend.deploy(release)
    require(settled(1).urls == one.urls, "deploying again keeps the size")
    try:
        backend.scale(release, 0)
    except BackendError:
        pass
    else:
        require(False, "no worker at all is what retire is for")
    backend.retire(rid)
    require(not backend.status(rid).deployed, "a retired release is not deployed")
    require(not backend.status(rid).replicas, "a retired release has no workers")


def check_router(router: TrafficRouter, table: RoutingTable) -> None:
    """Run a router through tables newer than ``table``, which must be newer than what it follows.
    Leaves it at ``table.epoch + 2``. Raises AssertionError."""
    router.apply(table)
    seen = router.observed()
    require(seen.epoch == table.epoch, "observed() shows the epoch that was applied")
    require(seen.salt == table.salt, "observed() shows the salt that was applied")
    for arm in table.arms:
        require(
            abs(seen.weights.get(arm.name, -1) - arm.weight) < 1e-9,
            f"observed() shows the weight of {arm.name}",
        )
    router.apply(table)
    require(router.observed().epoch == table.epoch, "the same table again changes nothing")
    newer = replace(table, epoch=table.epoch + 2, salt=table.salt + "2")
    router.apply(newer)
    follows = router.observed().table
    require(follows in ("", table_digest(newer)), "it names another table than it was given")
    for epoch in (table.epoch, table.epoch + 1):
        try:
            router.apply(replace(table, epoch=epoch))
        except Conflict:
            pass
        else:
            require(False, f"epoch {epoch} is older than {newer.epoch} and must be refused")
    require(router.observed().epoch == newer.epoch, "a refused table changes nothing")
    try:
        router.apply(replace(newer, salt="another"))
    except Conflict:
        pass
    else:
        require(False, "one epoch must not be given to two tables")


def _until(
    look: Callable[[], ServingStatus],
    good: Callable[[ServingStatus], bool],
    timeout_s: float,
    poll_s: float,
) -> ServingStatus:
    end = time.monotonic() + timeout_s
    while True:
        status = look()
        if good(status) or time.monotonic() > end:
            return status
        time.sleep(poll_s)
