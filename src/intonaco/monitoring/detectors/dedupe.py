"""Leaving out what is asked again and again."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intonaco.monitoring.detectors.arrays import pack, unpack
from intonaco.types import Json

Row = NDArray[np.float32]

STEPS = 127.0  # numbers of a unit vector lie in [-1, 1]; kept as eight-bit integers
NEAR = 4  # last prompts without a session that one may repeat
RING = 64  # last prompts that are looked at to see whether users ask alike anyway
ALIKE = 0.05  # share of them from which on they do


class SessionDedupe:
    """Tells whether a request repeats its session's last prompt.

    Users re-roll one prompt several times in a row, robots hundreds of times. Those requests are
    not independent, and a detector that counts them alarms in bursts (every 17 requests instead of
    every 1,000 in a test of ours). A request repeats when its embedding's cosine with the session's
    last one exceeds ``cosine`` and that one is not older than ``forget_seconds``. Only the last
    prompt counts: with more memory, a faithful user of few topics would hardly be heard at all.
    Memory is bounded: beyond ``sessions`` the least recently seen is forgotten, and a number takes
    a byte.
    """

    def __init__(
        self, *, cosine: float = 0.90, forget_seconds: float = 1800.0, sessions: int = 512
    ) -> None:
        self.cosine = cosine
        self.forget_seconds = forget_seconds
        self.sessions = sessions
        self._last: OrderedDict[str, tuple[float, NDArray[np.int8]]] = OrderedDict()

    def repeats(self, session: str | None, x: NDArray[Any], at: float | None) -> bool:
        """Whether unit vector ``x`` repeats; takes note of it either way. Without a session nothing
        repeats."""
        if session is None:
            return False
        now = 0.0 if at is None else at
        row = np.empty(len(x), dtype=np.int8)
        np.multiply(x, STEPS, out=row, casting="unsafe")
        last = self._last.pop(session, None)
        self._last[session] = (now, row)
        if last is None:
            if len(self._last) > self.sessions:
                self._last.popitem(last=False)
            return False
        then, before = last
        if abs(now - then) > self.forget_seconds or len(before) != len(row):
            return False
        old, new = before.astype(np.float32), row.astype(np.float32)
        return float(new @ old) > self.cosine * math.sqrt(float(new @ new) * float(old @ old))

    def clear(self) -> None:
        self._last.clear()

    def state(self) -> Mapping[str, Json]:
        rows = [row for _, row in self._last.values()]
        same = len({len(row) for row in rows}) == 1
        return {
            "sessions": list(self._last),
            "at": [at for at, _ in self._last.values()],
            "rows": pack(np.stack(rows)) if same else [pack(row) for row in rows],
        }

    def restore(self, state: Mapping[str, Json]) -> None:
        packed = state["rows"]
        rows = [unpack(row) for row in packed] if isinstance(packed, list) else unpack(packed)
        self._last = OrderedDict(
            (session, (float(at), row))
            for session, at, row in zip(state["sessions"], state["at"], rows, strict=True)
        )


class Dedupe:
    """The same for a stream of which some requests, or all, have no session. One without repeats
    when it is as near to one of the last ``NEAR`` without.

    That says something only where two users hardly ever ask the same. ``settle`` looks whether
    requests that are no repeats resemble ones that lie up to ``RING`` back, too far to be re-rolls;
    where more than ``ALIKE`` of them do, being alike proves nothing and none is left out.
    """

    def __init__(self, *, sessions: int = 256) -> None:
        self._sessions = SessionDedupe(sessions=sessions)
        self._ring: NDArray[np.float32] | None = None
        self._next = 0
        self._fresh = self._alike = 0
        self._settled = False
        self._useful = True

    def repeats(self, session: str | None, x: Row, at: float | None) -> bool:
        if session is not None:
            return self._sessions.repeats(session, x, at)
        if self._ring is None or self._ring.shape[1] != len(x):
            self._ring = np.zeros((RING, len(x)), dtype=np.float32)
        if self._settled:
            ring = self._ring[:NEAR]
            repeat = self._useful and float((ring @ x).max()) > self._sessions.cosine
            ring[self._next % NEAR] = x
        else:
            alike = self._ring @ x > self._sessions.cosine
            place = (self._next - 1 - np.arange(NEAR)) % RING
            repeat = bool(alike[place].any())
            if not repeat:
                self._fresh += 1
                self._alike += bool(alike.any())
            repeat = repeat and self._says_something()
            self._ring[self._next % RING] = x
        self._next += 1
        return repeat

    def _says_something(self) -> bool:
        return self._alike <= max(ALIKE * self._fresh, 1.0)

    def settle(self) -> None:
        """The reference is complete: decide once and for all."""
        if self._ring is not None and not self._settled:
            self._ring = self._ring[(self._next - NEAR + np.arange(NEAR)) % RING]
            self._useful = self._says_something()
            self._next = 0
        self._settled = True

    def clear(self) -> None:
        self._sessions.clear()
        self._ring = None
        self._next = 0
        self._fresh = self._alike = 0
        self._settled = False
        self._useful = True

    def state(self) -> Mapping[str, Json]:
        return {
            "sessions": self._sessions.state(),
            "ring": None if self._ring is None else pack(self._ring),
            "next": self._next,
            "fresh": self._fresh,
            "alike": self._alike,
            "settled": self._settled,
            "useful": self._useful,
        }

    def restore(self, state: Mapping[str, Json]) -> None:
        self._sessions.restore(state["sessions"])
        self._ring = None if state["ring"] is None else unpack(state["ring"])
        self._next = int(state["next"])
        self._fresh, self._alike = int(state["fresh"]), int(state["alike"])
        self._settled, self._useful = bool(state["settled"]), bool(state["useful"])
