"""What all trackers do about an engine that is down: nothing waits for it, nothing fails by it."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path

from intonaco.types import Json

log = logging.getLogger(__name__)


class GuardedTracker(ABC):
    """While the engine fails, calls are dropped for ``pause_seconds`` at a time, so that one that
    is down does not slow its callers; the first failure is told by a warning, the end of the outage
    by another. What it refuses of one run is told once a run."""

    def __init__(
        self, *, pause_seconds: float = 60.0, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.dropped = 0  # calls lost in the present outage
        self._pause = pause_seconds
        self._monotonic = monotonic
        self._retry_at: float | None = None
        self._told: set[str] = set()  # runs whose refused values were warned about
        self._lock = threading.Lock()

    def log(
        self,
        run: str,
        *,
        params: Mapping[str, Json] | None = None,
        metrics: Mapping[str, float] | None = None,
        step: int | None = None,
        artifacts: Path | None = None,
    ) -> None:
        """Add to a run. A parameter keeps its first value. Never raises."""
        with self._lock:
            if self._retry_at is not None and self._monotonic() < self._retry_at:
                self.dropped += 1
                return
            try:
                self._log(run, params or {}, metrics or {}, step or 0, artifacts)
            except Exception as error:
                if self._is_callers_fault(error):
                    self._refused(run, error)
                else:
                    self._failed(error)
            else:
                self._worked()

    @abstractmethod
    def _log(
        self,
        run: str,
        params: Mapping[str, Json],
        metrics: Mapping[str, float],
        step: int,
        artifacts: Path | None,
    ) -> None:
        """May raise anything."""

    def _is_callers_fault(self, error: Exception) -> bool:
        """A value that is refused, or a file that is not there: no outage, the next call may do."""
        return isinstance(error, (TypeError, ValueError, FileNotFoundError))

    def _refused(self, run: str, error: Exception) -> None:
        if run not in self._told:
            self._told.add(run)
            log.warning(
                "run %s is not exported in full: %s",
                run,
                str(error).partition("\n")[0],
                extra={"action": "tracking.refused", "run": run},
            )

    def _failed(self, error: Exception) -> None:
        self.dropped += 1
        if self._retry_at is None:
            log.warning(
                "tracking is down, runs are not exported: %s",
                str(error).partition("\n")[0],
                extra={"action": "tracking.down"},
            )
        self._retry_at = self._monotonic() + self._pause

    def _worked(self) -> None:
        if self._retry_at is not None:
            log.warning(
                "tracking works again, %d calls were dropped",
                self.dropped,
                extra={"action": "tracking.up"},
            )
        self._retry_at = None
        self.dropped = 0
