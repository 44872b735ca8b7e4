"""What the gateway says of itself, asked no oftener than is useful."""

from __future__ import annotations

import threading
from collections.abc import Callable

from intonaco.clock import Clock
from intonaco.errors import BackendError
from intonaco.types import Observed

FRESH_S = 0.5  # several viewers share one answer
PATIENCE_S = 2.0  # between two attempts at a gateway that does not answer


class Observer:
    """Calls ``ask`` at most every ``FRESH_S``; None while the gateway does not answer.

    A page never waits behind another page's question: it gets the last answer.
    """

    def __init__(self, ask: Callable[[], Observed], clock: Clock) -> None:
        self._ask = ask
        self._clock = clock
        self._lock = threading.Lock()
        self._last: Observed | None = None
        self._again_at = 0.0

    def __call__(self) -> Observed | None:
        if self._clock.now() >= self._again_at and self._lock.acquire(blocking=False):
            try:
                self._last = self._ask()
                self._again_at = self._clock.now() + FRESH_S
            except BackendError:
                self._last = None
                self._again_at = self._clock.now() + PATIENCE_S
            finally:
                self._lock.release()
        return self._last
