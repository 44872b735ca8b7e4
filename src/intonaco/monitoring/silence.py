"""Dead-man's switches: what should be heard of and is not. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from intonaco.types import Json, Record, Tally

Key = tuple[int, int]  # epoch and seq of a gateway's log

MOST = 512


@dataclass(slots=True)
class Silence:
    """Whether something was quiet for too long; told once an episode. What ends one: being heard
    again.

    Only time in which somebody looked counts: a controller that was down hears nothing, and says
    nothing of that time. What was counted before it stopped goes on after its first look."""

    heard_at: float | None = None
    told: bool = False
    _before: float = 0.0  # seconds counted by the process that wrote the state
    _first: float | None = field(default=None, compare=False)  # this process's first look
    _last: float | None = field(default=None, compare=False)

    def heard(self, at: float) -> None:
        self.moved(at)
        self.told = False

    def moved(self, at: float) -> None:
        """Heard of at that time, while what was told of goes on."""
        if self.heard_at is None or at > self.heard_at:
            self.heard_at, self._before = at, 0.0

    def lasts(self, now: float, limit: float) -> float | None:
        """Seconds of a silence that is longer than ``limit`` and was not told of yet, else None.
        It begins at the first look, where nothing was ever heard."""
        if self.heard_at is None:
            self.heard_at = now
        if self._first is None:
            self._first = now
        self._last = now
        seconds = self._counted()
        if self.told or seconds <= limit:
            return None
        self.told = True
        return seconds

    def _counted(self) -> float:
        """Seconds of silence up to the last look."""
        if self._first is None or self._last is None:
            return self._before
        return self._before + max(0.0, self._last - max(self.heard_at or 0.0, self._first))

    def state(self) -> Json:
        return [self.heard_at, self.told, self._counted()]

    @classmethod
    def of_state(cls, state: Json) -> Silence:
        heard_at, told, *counted = state  # older versions counted nothing
        return cls(heard_at, bool(told), float(counted[0]) if counted else 0.0)


@dataclass(slots=True)
class RecordLog:
    """Whether the records that gateways say they wrote do arrive. A gateway's tallies name the next
    record that it will write; the log is silent while the one before that is not read."""

    _read: dict[str, Key] = field(default_factory=dict)  # next record to read, by gateway
    _written: dict[str, Key] = field(default_factory=dict)  # next record to write
    _behind: dict[str, Silence] = field(default_factory=dict)  # since it last moved

    def record(self, record: Record) -> None:
        key = (record.gateway_epoch, record.seq + 1)
        if key > self._read.get(record.gateway, (0, 0)):
            self._read[record.gateway] = key
            self._behind.pop(record.gateway, None)  # it moves

    def tally(self, tally: Tally) -> None:
        self._written[tally.gateway] = (tally.record_epoch, tally.record_seq)

    def missing(self, now: float, limit: float) -> list[str]:
        """Gateways whose records did not come for longer than ``limit``, each once an episode."""
        found = []
        for gateway, (epoch, seq) in sorted(self._written.items()):
            if seq == 0 or (epoch, seq) <= self._read.get(gateway, (0, 0)):
                self._behind.pop(gateway, None)
            elif self._behind.setdefault(gateway, Silence()).lasts(now, limit) is not None:
                found.append(gateway)
        return found

    def state(self) -> Mapping[str, Json]:
        return {
            "read": {g: list(k) for g, k in self._read.items()},
            "written": {g: list(k) for g, k in self._written.items()},
            "behind": {g: s.state() for g, s in self._behind.items()},
        }

    @classmethod
    def of_state(cls, state: Mapping[str, Json]) -> RecordLog:
        def keys(stored: Mapping[str, Json]) -> dict[str, Key]:
            return {gateway: (int(epoch), int(seq)) for gateway, (epoch, seq) in stored.items()}

        behind = {g: Silence.of_state(s) for g, s in state["behind"].items()}
        return cls(keys(state["read"]), keys(state["written"]), behind)


@dataclass(slots=True)
class Unscored:
    """Records that the controller read and whose scores it did not, by gateway: what a scorer that
    is late, or dead without having said so, leaves unwatched. Records of a second are one entry, of
    more if there would be more than ``MOST`` entries, and an entry has the time of its oldest: it
    may be said that something older waits than does, never the other way."""

    _waiting: dict[str, deque[tuple[Key, float]]] = field(default_factory=dict)
    _scored: dict[str, Key] = field(default_factory=dict)  # last one, by gateway

    def record(self, record: Record) -> None:
        key = (record.gateway_epoch, record.seq)
        if key <= self._scored.get(record.gateway, (0, -1)):
            return
        waiting = self._waiting.setdefault(record.gateway, deque())
        _add(waiting, key, record.at, 1.0)
        width = 1.0
        while len(waiting) > MOST:
            width *= 2.0
            entries = list(waiting)
            waiting.clear()
            for entry in entries:
                _add(waiting, *entry, width)

    def scored(self, record: Record) -> None:
        key = (record.gateway_epoch, record.seq)
        self._scored[record.gateway] = max(key, self._scored.get(record.gateway, key))
        waiting = self._waiting.get(record.gateway, deque())
        while waiting and waiting[0][0] <= key:
            waiting.popleft()

    @property
    def oldest_at(self) -> float | None:
        """Time of the oldest record without scores, in seconds since the Unix epoch."""
        return min((at for w in self._waiting.values() for _, at in w), default=None)

    def state(self) -> Mapping[str, Json]:
        return {
            "waiting": {g: [[*key, at] for key, at in w] for g, w in self._waiting.items() if w},
            "scored": {g: list(k) for g, k in self._scored.items()},
        }

    @classmethod
    def of_state(cls, state: Mapping[str, Json]) -> Unscored:
        waiting = {
            g: deque(((int(e), int(s)), float(at)) for e, s, at in kept)
            for g, kept in state["waiting"].items()
        }
        return cls(waiting, {g: (int(e), int(s)) for g, (e, s) in state["scored"].items()})


def _add(waiting: deque[tuple[Key, float]], key: Key, at: float, width: float) -> None:
    """Into the last entry if it is less than ``width`` seconds later than that one began."""
    if waiting and at - waiting[-1][1] < width:
        at = min(at, waiting.pop()[1])
    waiting.append((key, at))
