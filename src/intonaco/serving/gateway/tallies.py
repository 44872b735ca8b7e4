"""What came to this gateway, counted once a second and written down.

Records tell what became of requests that got an arm. What was refused before that, and how much was
asked for while the answers are still being made, only the door knows: one line of numbers for each
second in which something happened, so that a flood of broken requests costs no more than a line a
second. A gateway that is killed loses the counts of its last second.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass, field

from intonaco.clock import Clock
from intonaco.codec import encode
from intonaco.segment_log import SegmentWriter
from intonaco.serving.gateway.metrics import Metrics
from intonaco.serving.gateway.state import GatewayState
from intonaco.types import Tally
from intonaco.workspace import Workspace

log = logging.getLogger(__name__)

EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class _Seen:
    """Totals since the gateway started."""

    requests: int = 0
    failed: int = 0
    images: int = 0
    in_flight: int = 0
    refused: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class Tallies:
    """Reads the totals that others keep; belongs to the event loop."""

    workspace: Workspace
    service_id: str
    state: GatewayState
    metrics: Metrics
    records: SegmentWriter
    clock: Clock
    _told: _Seen = field(default_factory=_Seen)
    _writer: SegmentWriter | None = None  # from the first line on

    async def keep(self) -> None:
        """Write a line a second for as long as the gateway runs."""
        while True:
            await asyncio.sleep(EVERY_S)
            self.write()

    def write(self) -> None:
        """One line of what came since the last, if anything did. A disk that fails is counted; the
        next line then holds what this one did not."""
        now, before = self._totals(), self._told
        if now == before and not now.in_flight:
            return
        try:
            if self._writer is None:
                self._writer = SegmentWriter(self.workspace.tallies, self.records.name)
            self._writer.append(encode(self._tally(self._writer, now, before)))
        except OSError as error:
            self.metrics.storage_errors += 1
            log.error("a tally is not kept: %s", error, extra={"action": "gateway.storage"})
            return
        self._told = now

    def _tally(self, writer: SegmentWriter, now: _Seen, before: _Seen) -> Tally:
        return Tally(
            gateway=writer.name,
            gateway_epoch=writer.epoch,
            seq=writer.seq,
            service_id=self.service_id,
            at=self.clock.now(),
            requests=now.requests - before.requests,
            failed=now.failed - before.failed,
            images=now.images - before.images,
            in_flight=now.in_flight,
            refused=dict(now.refused - before.refused),
            record_epoch=self.records.epoch,
            record_seq=self.records.seq,
        )

    def _totals(self) -> _Seen:
        images = sum(n for labels, n in self.metrics.images.items() if ("kind", "user") in labels)
        refused: Counter[str] = Counter()
        for labels, n in self.metrics.rejected.items():
            refused[dict(labels)["reason"]] += n
        return _Seen(
            requests=self.state.requests,
            failed=self.state.failed,
            images=images,
            in_flight=self.metrics.users_in_flight(),
            refused=refused,
        )

    def roll(self) -> None:
        if self._writer is not None:
            self._writer.roll()

    def close(self) -> None:
        self.write()
        if self._writer is not None:
            self._writer.close()
