"""What detectors that learn a reference first have in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

from intonaco.errors import ConfigError
from intonaco.types import Json


class ReferenceDetector(ABC):
    """Counts, latch and the head of the state. The first ``reference`` updates say what is normal;
    from then on the detector is armed. It fires when its evidence reaches ``threshold`` and stays
    so, with the evidence and the date of the alarm, until ``reset``.

    A subclass gives ``_take`` (one update), ``_forget``, ``_live`` and ``_revive`` (the rest of the
    state), ``armed``, ``evidence`` and ``since``. It sets ``_fired``; calls ``reset`` once it has
    its own settings.
    """

    name = "detector"
    least = 2  # the smallest reference

    def __init__(self, *, threshold: float, reference: int) -> None:
        if reference < self.least:
            raise ConfigError(
                f"reference: at least {self.least} updates are needed (given: {reference})"
            )
        self.threshold = threshold
        self.reference = reference
        self._n = 0
        self._fired = False

    # ------------------------------------------------------------------------------- what it says

    @property
    @abstractmethod
    def armed(self) -> bool: ...

    @property
    @abstractmethod
    def evidence(self) -> float:
        """Log of the Shiryaev-Roberts statistic; -inf while there is none."""

    @property
    @abstractmethod
    def since(self) -> int:
        """Estimate of the update at which the change began."""

    @property
    def updates(self) -> int:
        return self._n

    @property
    def drift_detected(self) -> bool:
        """Whether it fired; it stays so until ``reset``."""
        return self._fired

    @property
    def statistic(self) -> float:
        """The Shiryaev-Roberts statistic itself, at most 1e280: to be added to those of others."""
        return 0.0 if self.evidence == -math.inf else math.exp(self.evidence)

    # -------------------------------------------------------------------------------- what it does

    def update(
        self,
        x: Any,
        *,
        session: str | None = None,
        topic: str | None = None,
        at: float | None = None,
    ) -> bool:
        self._n += 1
        self._take(x, session=session, topic=topic, at=at)
        return self._fired

    def update_many(self, xs: Iterable[Any]) -> bool:
        for x in xs:
            self.update(x)
        return self._fired

    def reset(self) -> None:
        """Forget all, the reference too."""
        self._n = 0
        self._fired = False
        self._forget()

    def state(self) -> Mapping[str, Json]:
        return {"n": self._n, "fired": self._fired, **self._live()}

    def restore(self, state: Mapping[str, Json]) -> None:
        self.reset()
        self._n = int(state["n"])
        self._fired = bool(state["fired"])
        self._revive(state)

    @abstractmethod
    def _take(
        self, x: Any, *, session: str | None, topic: str | None, at: float | None
    ) -> None: ...

    @abstractmethod
    def _forget(self) -> None: ...

    @abstractmethod
    def _live(self) -> Mapping[str, Json]: ...

    @abstractmethod
    def _revive(self, state: Mapping[str, Json]) -> None: ...
