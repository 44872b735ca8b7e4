"""Leaving out what one session asks again and again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from intonaco.monitoring.detectors.arrays import pack, unpack
from intonaco.types import Json

Row = NDArray[np.float32]


class SessionDedupe:
    """Tells whether a request repeats its session's last prompt.

    Users re-roll one prompt several times in a row, robots hundreds of times. Those requests are
    not independent, and a detector that counts them alarms in bursts (every 17 requests instead of
    every 1,000 in a test of ours). A request repeats when its embedding's cosine with the session's
    last one exceeds ``cosine`` and that one is not older than ``forget_seconds``. Only the last
    prompt counts: with more memory, a faithful user of few topics would hardly be heard at all.
    Memory is bounded: the ``sessions`` least recently seen are forgotten.
    """

    def __init__(
        self, *, cosine: float = 0.90, forget_seconds: float = 1800.0, sessions: int = 512
    ) -> None:
        self.cosine = cosine
        self.forget_seconds = forget_seconds
        self.sessions = sessions
        self._last: OrderedDict[str, tuple[float, Row]] = OrderedDict()

    def repeats(self, session: str | None, x: NDArray[np.float64], at: float | None) -> bool:
        """Whether unit vector ``x`` repeats; takes note of it either way. Without a session nothing
        repeats."""
        if session is None:
            return False
        now = 0.0 if at is None else at
        row = x.astype(np.float32)
        last = self._last.pop(session, None)
        self._last[session] = (now, row)
        if len(self._last) > self.sessions:
            self._last.popitem(last=False)
        if last is None or abs(now - last[0]) > self.forget_seconds or len(last[1]) != len(row):
            return False
        return float(last[1] @ row) > self.cosine

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
