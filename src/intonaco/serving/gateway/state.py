"""What a gateway knows: the table it follows, what is in flight, what tripped.

Table and trips lie on disk (``run/routing.json``, ``run/trips.json``) and belong to all gateways
of the workspace. Each looks at the files every ``LOOK_S`` and before it changes them, under a lock,
so a trip in one gateway takes the release's traffic away in all, a table that reached one reaches
all, and one that was restarted serves at once, with nobody's help, what the others serve. What is
counted towards a trip is each gateway's own: N gateways may let through N times as many failures,
less what the probes after a first failure find.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from intonaco.codec import decode, encode
from intonaco.errors import ConfigError, Conflict, NotFound, StorageError
from intonaco.messages import table_digest
from intonaco.releases import ReleaseStore
from intonaco.serving.gateway.breaker import Breaker
from intonaco.serving.gateway.routing import check_table, effective_weights
from intonaco.types import BreakerTrip, Json, Observed, RoutingTable
from intonaco.workspace import Workspace, write_atomic

log = logging.getLogger(__name__)

LOOK_S = 0.1
LOCK_S = 0.5  # a sibling holds the lock for one small write; who holds it longer hangs

_Stamp = tuple[int, int, int] | None  # of a file; None: there is none


@dataclass(frozen=True, slots=True, kw_only=True)
class Trips:
    """``run/trips.json``. ``epoch``: the newest table whose ``untrip`` is in it."""

    epoch: int
    trips: tuple[BreakerTrip, ...]


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
    _trips_epoch: int = 0  # epoch of the trips on disk
    _seen: tuple[_Stamp, _Stamp] = (None, None)
    _unsaved: dict[str, BreakerTrip] = field(default_factory=dict)  # the disk failed

    # ------------------------------------------------------------------ table

    def load(self) -> None:
        """Follow what the gateways of this workspace followed last, if there is anything. Raises
        StorageError, ConfigError."""
        self._look()

    def apply(self, table: RoutingTable) -> None:
        """Follow a table. The same table again changes nothing. Raises Conflict for an older epoch
        or another table of the same epoch, ConfigError for a table that cannot be followed."""
        check_table(table)
        with self._locked():
            self.look()
            if self.table is not None:
                if table.epoch < self.table.epoch:
                    raise Conflict(f"epoch {table.epoch} is older than {self.table.epoch}")
                if table.epoch == self.table.epoch:
                    if table == self.table:
                        return
                    raise Conflict(f"epoch {table.epoch} was given to another table already")
            # On disk first: what is followed survives a kill. Killed between the two writes, the
            # next to load finds trips older than the table and does its untrip again. A full disk
            # does not hold up an emergency: the table is followed all the same.
            try:
                write_atomic(self._table_file, encode(table))
            except OSError:
                log.exception("the table is not on disk", extra={"action": "gateway.storage"})
            kept = self.trips() if table.epoch <= self._trips_epoch else ()
            self._follow(table)
            for trip in kept:  # its untrip was done; what tripped since then stays so, though the
                self.breaker(trip.release).trip = trip  # table that lay here was an older one
            self._save_trips()

    def look(self) -> None:
        """Take over what other gateways of the workspace did. What cannot be read is said in the
        log, and what was followed stays."""
        try:
            self._look()
        except (OSError, StorageError, ConfigError) as error:
            log.error(
                "table or trips cannot be read: %s", error, extra={"action": "gateway.storage"}
            )

    async def keep_looking(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            self.look()

    @property
    def _table_file(self) -> Path:
        return self.workspace.run / "routing.json"

    @property
    def _trips_file(self) -> Path:
        return self.workspace.run / "trips.json"

    def _look(self) -> None:
        now = (_stamp(self._table_file), _stamp(self._trips_file))
        if now == self._seen:
            return
        self._seen = now  # a file that cannot be read is not read again until it is another
        trips = Trips(epoch=0, trips=())
        if now[1] is not None:
            trips = decode(Trips, self._trips_file.read_bytes())
            self._trips_epoch = max(self._trips_epoch, trips.epoch)
        if now[0] is not None:
            table = decode(RoutingTable, self._table_file.read_bytes())
            check_table(table)
            if self.table is None or table.epoch > self.table.epoch:
                self._follow(table)
        self._adopt(trips)

    def _follow(self, table: RoutingTable) -> None:
        for release in table.untrip:
            self._unsaved.pop(release, None)
            if release in self._breakers:
                self._breakers[release].reset()
        self.table = table
        log.info(
            "follows epoch %d: %s",
            table.epoch,
            ", ".join(f"{a.name}={a.weight:g}" for a in table.arms),
            extra={"action": "gateway.table", "epoch": table.epoch},
        )

    def _adopt(self, shared: Trips) -> None:
        """The trips on disk are in force, and those that could not be written; no others."""
        table = self.table
        undone = table.untrip if table is not None and table.epoch > shared.epoch else ()
        force = {t.release: t for t in shared.trips if t.release not in undone} | self._unsaved
        for release, breaker in self._breakers.items():
            if breaker.trip is not None and release not in force:
                breaker.reset()  # by a table that this gateway never saw
        for release, trip in force.items():
            if self.breaker(release).trip is None:
                self.breaker(release).trip = trip
                log.error(
                    "breaker of %s tripped: %s",
                    release[:10],
                    trip.reason,
                    extra={"action": "gateway.trip", "release": release},
                )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One gateway changes the files at a time. Goes on without the lock when it cannot be had:
        a brake must work although a sibling hangs or the disk is full."""
        try:
            self.workspace.run.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.workspace.run / "gateways.lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            log.error("no lock: %s", error, extra={"action": "gateway.storage"})
            yield
            return
        try:
            give_up = time.monotonic() + LOCK_S
            while not _lock(handle):
                if time.monotonic() > give_up:
                    log.error("a sibling holds the lock", extra={"action": "gateway.storage"})
                    break
                time.sleep(0.005)
            yield
        finally:
            os.close(handle)  # and with it the lock

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
        """Count a failure; a trip is in force here when this returns, and on disk for the other
        gateways."""
        trip = self.breaker(release).failure(at, unit=unit, prompt=prompt, reason=reason)
        if trip is None:
            return
        log.error(
            "breaker of %s tripped: %s",
            release[:10],
            trip.reason,
            extra={"action": "gateway.trip", "release": release},
        )
        self._unsaved[release] = trip
        with self._locked():
            self.look()  # others may have tripped too, or a newer table have untripped this one
            self._save_trips()

    def _save_trips(self) -> None:
        epoch = max(self.table.epoch if self.table else 0, self._trips_epoch)
        try:
            write_atomic(self._trips_file, encode(Trips(epoch=epoch, trips=self.trips())))
        except OSError:
            log.exception("trips are not on disk", extra={"action": "gateway.storage"})
            return
        self._unsaved.clear()
        self._seen = (_stamp(self._table_file), _stamp(self._trips_file))

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
        self.look()  # who asks means to act on it
        table = self.table
        return Observed(
            epoch=table.epoch if table else 0,
            salt=table.salt if table else "",
            weights=effective_weights(table, self.tripped()) if table else {},
            in_flight=dict(self._in_flight),
            trips=self.trips(),
            requests=self.requests,
            failed=self.failed,
            table=table_digest(table) if table else "",
        )


def _stamp(path: Path) -> _Stamp:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
