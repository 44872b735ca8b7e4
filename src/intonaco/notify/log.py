"""Events to the log, for machines whose log somebody reads."""

from __future__ import annotations

import logging

from intonaco.notify.telling import words
from intonaco.types import Event


class LogNotifier:
    """Writes every event as one line of the logger ``intonaco.notify``, without what may quote a
    user. Never raises: the standard library's handlers report their own failures."""

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._log = logger or logging.getLogger("intonaco.notify")

    def send(self, event: Event) -> None:
        self._log.info(
            "%s: %s",
            event.kind,
            words(event),
            extra={
                "action": event.kind,
                "service_id": event.service_id,
                "subject": event.subject,
                "actor": event.actor,
                "event_id": event.event_id,
            },
        )
