"""How long users wait end to end, challenger against the equal baseline arm. Pure.

A service time is drawn anew for each request; a wait is not: whoever comes behind a long queue
waits long, so waits of one arm are alike for as long as its queue lasts. Bets on each request would
take that likeness for a difference: of two equal queues 15 % were accused at 40 % load and 67 % at
70 %, at a nominal 1.25 %. Both arms have the same number of workers, the same share of users and
under the null a release that is as fast. So at a moment at which neither has a request in hand
their futures are the same in law, whatever came before: a regeneration point (Asmussen, "Applied
Probability and Queues", Springer 2003, chapter VI). Between two such moments lies a *block*. Of
each block one request is judged, drawn by a hash among the first requests of its users. To swap
the arms of a block changes nothing in law, so the request lies with either with probability 1/2
and, given that, waits alike; that is all that ``stats.latency`` asks of a unit, with the blocks
before as the past.

Two things would break the symmetry for good, and then nothing is judged: a slice whose users ask
more often than the other's (few of them, with much traffic each), and users who met one of the
releases while there was no equal slice.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from intonaco.errors import StorageError
from intonaco.rollout.evidence import Times, split_keys
from intonaco.rollout.evidence import Unit as Judged
from intonaco.stats import SampleRatioTest
from intonaco.types import Json

HALF = 0.5  # the challenger's probability among the two
_SLACK = 0.02  # of the requests of both, by which one may have more than the other


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Wait:
    """A request at one of the two arms. ``start``, ``end``: in seconds, as the gateway saw it.
    ``unit``: a key, whose order has nothing to do with the arm. ``seconds``: None if it says
    nothing of waiting, and only keeps a worker busy."""

    start: float
    seq: int
    end: float
    unit: str
    challenger: bool
    request_class: str
    seconds: float | None


class Waits:
    """Evidence from waits, in the order in which requests came, ``settle_seconds`` after them: by
    then each that began earlier is over. State is exact JSON."""

    def __init__(
        self,
        *,
        tolerance: float,
        margin: float,
        settle_seconds: float,
        ratio_alpha: float,
        max_units: int = 100_000,
    ) -> None:
        self.evidence = Times(tolerance=tolerance, margin=margin)
        self.ratio = SampleRatioTest(ratio_alpha)
        self.blocks = 0  # of which one was judged
        self.requests = [0, 0]  # of all blocks that are over: baseline's, challenger's
        self._made_with = [tolerance, margin, settle_seconds]
        self._settle, self._max_units = settle_seconds, max_units
        self._waiting: list[Wait] = []  # heap, by start
        self._block: list[Wait] = []
        self._busy_until = -math.inf
        self._seen: set[str] = set()
        self._until = -math.inf

    def take(self, wait: Wait) -> None:
        """One request of either arm, in any order."""
        heapq.heappush(self._waiting, wait)
        self.advance(wait.end)

    def leave_out(self, unit: str) -> None:
        """A user who met a release while there was no equal slice is never judged."""
        if len(self._seen) < self._max_units:
            self._seen.add(unit)

    def advance(self, until: float) -> None:
        """Every request that ended before ``until`` was taken."""
        self._until = max(self._until, until)
        while self._waiting and self._waiting[0].start <= self._until - self._settle:
            self._next(heapq.heappop(self._waiting))
        if self._block and self._busy_until <= self._until - self._settle:
            self._close()

    @property
    def even(self) -> bool:
        """Whether both slices ask about equally often, as far as chance allows to tell."""
        total = sum(self.requests)
        apart = abs(self.requests[0] - self.requests[1])
        return apart <= _SLACK * total + 2 * math.sqrt(total)

    def _next(self, wait: Wait) -> None:
        if self._block and wait.start >= self._busy_until:
            self._close()
        self._block.append(wait)
        self._busy_until = max(self._busy_until, wait.end)

    def _close(self) -> None:
        """The block is over: judge one of its requests, then learn from all."""
        block, self._block = self._block, []
        even = self.even
        first: dict[str, Wait] = {}
        for wait in block:
            if wait.unit not in self._seen and len(self._seen) < self._max_units:
                self._seen.add(wait.unit)
                first[wait.unit] = wait
                self.ratio.assign(challenger=wait.challenger, weight=HALF)
        drawn = min((w for w in first.values() if w.seconds is not None), key=_key, default=None)
        if drawn is not None and drawn.seconds is not None and even:
            judged = Judged(
                key=drawn.unit,
                value=drawn.seconds,
                weight=HALF,
                challenger=drawn.challenger,
                request_class=drawn.request_class,
            )
            self.blocks += self.evidence.take(judged)
        for wait in block:
            self.requests[wait.challenger] += 1
            if not wait.challenger and wait.seconds is not None:
                self.evidence.learn(wait.seconds, wait.request_class)

    def state(self) -> Mapping[str, Json]:
        """JSON from which ``restore`` continues exactly. Holds no user in clear."""
        return {
            "made_with": list(self._made_with),
            "evidence": self.evidence.state(),
            "ratio": self.ratio.state(),
            "blocks": self.blocks,
            "requests": list(self.requests),
            "waiting": [asdict(w) for w in sorted(self._waiting)],
            "block": [asdict(w) for w in self._block],
            "busy_until": None if math.isinf(self._busy_until) else self._busy_until,
            "seen": "".join(sorted(self._seen)),
            "until": None if math.isinf(self._until) else self._until,
        }

    def restore(self, state: Mapping[str, Json]) -> None:
        """Raises StorageError for a state of other settings."""
        if list(state["made_with"]) != self._made_with:
            raise StorageError("the stored evidence was gathered with other settings")
        self.evidence.restore(state["evidence"])
        self.ratio.restore(state["ratio"])
        self.blocks = int(state["blocks"])
        self.requests = [int(n) for n in state["requests"]]
        self._waiting = [Wait(**w) for w in state["waiting"]]  # sorted, so a heap
        self._block = [Wait(**w) for w in state["block"]]
        busy, until = state["busy_until"], state["until"]
        self._busy_until = -math.inf if busy is None else float(busy)
        self._seen = split_keys(state["seen"])
        self._until = -math.inf if until is None else float(until)


def _key(wait: Wait) -> str:
    return wait.unit
