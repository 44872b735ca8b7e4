"""What a gateway knows: the table it follows, what is in flight, what tripped.

The last accepted table and the trips lie on disk (``run/routing.json``, ``run/trips.json``), so
that a restarted gateway serves at once, with nobody's help, what it served before.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from intonaco.codec import decode, encode
from intonaco.errors import Conflict, NotFound, StorageError
from intonaco.releases import ReleaseStore
from intonaco.serving.gateway.breaker import Breaker
from intonaco.serving.gateway.routing import check_table, effective_weights
from intonaco.types import BreakerTrip, Json, Observed, RoutingTable
from intonaco.workspace import Workspace, write_atomic

log = logging.getLogger(__name__)


@dataclass(slots=True)
class GatewayState:
    """Belongs to one event loop."""

    workspace: Workspace
    breaker_failures: int
    table: RoutingTable | None = None
    requests: int = 0
    failed: int = 0
    _breakers: dict[str, Breaker] = field(default_factory=dict)
    _generation: dict[str, Mapping[str, Json]] = field(default_factory=dict)
    _in_flight: Counter[str] = field(default_factory=Counter)

    # ------------------------------------------------------------------ table

    def load(self) -> None:
        """Follow the table that was last accepted, if there is one."""
        try:
            self.table = decode(RoutingTable, (self.workspace.run / "routing.json").read_bytes())
            check_table(self.table)
            trips = decode(
                tuple[BreakerTrip, ...], (self.workspace.run / "trips.json").read_bytes()
            )
            for trip in trips:
                self.breaker(trip.release).trip = trip
        except FileNotFoundError:
            pass

    def apply(self, table: RoutingTable) -> None:
        """Follow a table. The same table again changes nothing. Raises Conflict for an older epoch
        or another table of the same epoch, ConfigError for a table that cannot be followed."""
        check_table(table)
        if self.table is not None:
            if table.epoch < self.table.epoch:
                raise Conflict(f"epoch {table.epoch} is older than {self.table.epoch}")
            if table.epoch == self.table.epoch:
                if table == self.table:
                    return
                raise Conflict(f"epoch {table.epoch} was given to another table already")
        for release in table.untrip:
            if release in self._breakers:
                self._breakers[release].reset()
        # On disk first: what is followed survives a kill.
        write_atomic(self.workspace.run / "routing.json", encode(table))
        self._write_trips()
        self.table = table
        log.info(
            "follows epoch %d: %s",
            table.epoch,
            ", ".join(f"{a.name}={a.weight:g}" for a in table.arms),
            extra={"action": "gateway.table", "epoch": table.epoch},
        )

    def generation(self, release: str) -> Mapping[str, Json]:
        """Generation defaults of a release, empty where its manifest is not here."""
        if release not in self._generation:
            try:
                manifest = ReleaseStore(self.workspace, "").get(release)
            except (NotFound, StorageError):
                return {}
            self._generation[release] = manifest.serving.generation
        return self._generation[release]

    # ------------------------------------------------------------------ breakers

    def breaker(self, release: str) -> Breaker:
        return self._breakers.setdefault(release, Breaker(release, self.breaker_failures))

    def tripped(self) -> Collection[str]:
        return {r for r, b in self._breakers.items() if b.trip}

    def trips(self) -> tuple[BreakerTrip, ...]:
        return tuple(b.trip for b in self._breakers.values() if b.trip)

    def hard_failure(self, release: str, at: float, *, unit: str, prompt: str, reason: str) -> None:
        """Count a failure; a trip is in force when this returns."""
        trip = self.breaker(release).failure(at, unit=unit, prompt=prompt, reason=reason)
        if trip is None:
            return
        log.error(
            "breaker of %s tripped: %s",
            release[:10],
            trip.reason,
            extra={"action": "gateway.trip", "release": release},
        )
        try:
            self._write_trips()
        except OSError:
            log.exception("the trip is not on disk", extra={"action": "gateway.storage"})

    def _write_trips(self) -> None:
        text = "[" + ",".join(encode(t) for t in self.trips()) + "]"
        write_atomic(self.workspace.run / "trips.json", text)

    # ------------------------------------------------------------------ in flight

    @contextmanager
    def flight(self, release: str) -> Iterator[None]:
        self._in_flight[release] += 1
        try:
            yield
        finally:
            self._in_flight[release] -= 1
            if not self._in_flight[release]:
                del self._in_flight[release]

    def observed(self) -> Observed:
        """Epoch 0 and no weights before the first table."""
        table = self.table
        return Observed(
            epoch=table.epoch if table else 0,
            salt=table.salt if table else "",
            weights=effective_weights(table, self.tripped()) if table else {},
            in_flight=dict(self._in_flight),
            trips=self.trips(),
            requests=self.requests,
            failed=self.failed,
        )
