"""What detectors of other libraries have in common here."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

from intonaco.errors import ConfigError
from intonaco.monitoring.detectors.base import ReferenceDetector
from intonaco.monitoring.detectors.settings import DetectorSettings


class BorrowedDetector(ReferenceDetector, ABC):
    """A detector of another library behind our protocol.

    Such a detector says yes or no. It has no evidence, so ``evidence`` is 1 when it has fired and 0
    before, the threshold 1: a latch, not a log e-value. Nor does it know a budget:
    ``requests_between_false_alarms`` is not kept unless its own options are set so that it is, and
    a signal that is watched by it takes no part in the guarantee of the others.
    """

    def __init__(self, *, reference: int) -> None:
        super().__init__(threshold=1.0, reference=reference)

    @property
    def armed(self) -> bool:
        return self._n >= self.reference

    @property
    def evidence(self) -> float:
        """1 if it fired, else 0: see the class."""
        return float(self._fired)

    @property
    @abstractmethod
    def since(self) -> int: ...


def refuse_what_it_cannot(name: str, settings: DetectorSettings) -> None:
    """Raises ConfigError for settings that a borrowed detector would have to ignore."""
    if settings.direction != "both":
        raise ConfigError(f"{name} has no direction: leave `direction` out")
    if settings.tolerance > 0:
        raise ConfigError(f"{name} has no tolerance: leave `tolerance` out")


def number(x: Any) -> float | None:
    """A scalar, None if it is not finite. Raises ConfigError for a vector."""
    try:
        value = float(x)
    except (TypeError, ValueError):
        raise ConfigError("this detector takes scalars, and the signal is one of vectors") from None
    return value if math.isfinite(value) else None
