"""What a detector is built from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from intonaco.errors import ConfigError
from intonaco.types import Json

Direction = Literal["up", "down", "both"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorSettings:
    """``requests_between_false_alarms``: the mean number of updates to a false alarm that the
    detector has to keep. ``reference``: updates that say what is normal. ``tolerance``: a shift
    this small, in the units of the stream, is nothing to tell. ``sessions``: whether the detector
    itself must leave out a session's repeats (False: whoever feeds it has done so). ``options``:
    what the configuration says beside a detector's name, in that detector's own words."""

    requests_between_false_alarms: float = 50_000.0
    reference: int = 2000
    tolerance: float = 0.0
    direction: Direction = "both"
    sessions: bool = True
    seed: int = 0
    options: Mapping[str, Json] = field(default_factory=dict)

    @property
    def threshold(self) -> float:
        """The same as a limit on the log evidence of an e-detector."""
        return math.log(self.requests_between_false_alarms)

    def chosen(self, detector: str, *allowed: str) -> dict[str, Json]:
        """The options that were given. Raises ConfigError for one that is not ``allowed``."""
        for name in self.options:
            if name not in allowed:
                known = ", ".join(allowed) or "none"
                raise ConfigError(f"options.{name}: {detector} has no such option; known: {known}")
        return dict(self.options)
