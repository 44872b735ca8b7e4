"""What a notifier raises when an event did not arrive."""

from __future__ import annotations

from intonaco.errors import BackendError


class Undelivered(BackendError):
    """The event did not arrive. ``retriable``: it may the next time; else the receiver refuses this
    one. ``gone``: it wants no more at all. ``wait_s``: how long it asks to be left alone."""

    def __init__(
        self, message: str, *, retriable: bool = True, gone: bool = False, wait_s: float = 0.0
    ) -> None:
        super().__init__(message, backend="notify", retriable=retriable)
        self.gone = gone
        self.wait_s = wait_s
