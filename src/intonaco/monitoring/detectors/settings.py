"""What a detector is built from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Direction = Literal["up", "down", "both"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorSettings:
    """``requests_between_false_alarms``: the mean number of updates to a false alarm that the
    detector has to keep. ``reference``: updates that say what is normal. ``tolerance``: a shift
    this small, in the units of the stream, is nothing to tell. ``sessions``: whether the detector
    itself must leave out a session's repeats (False: whoever feeds it has done so)."""

    requests_between_false_alarms: float = 50_000.0
    reference: int = 2000
    tolerance: float = 0.0
    direction: Direction = "both"
    sessions: bool = True
    seed: int = 0

    @property
    def threshold(self) -> float:
        """The same as a limit on the log evidence of an e-detector."""
        return math.log(self.requests_between_false_alarms)
