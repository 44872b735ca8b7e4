"""Twin and conformance checks of the Notifier seam."""

from __future__ import annotations

from intonaco.protocols import Notifier
from intonaco.types import Event


class MemoryNotifier:
    """Keeps what it was sent."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def send(self, event: Event) -> None:
        self.events.append(event)


def check_notifier(notifier: Notifier) -> None:
    """Sends events that are easy and hard to write down: none may raise. Raises AssertionError."""
    plain = Event(
        at=1_700_000_000.0,
        service_id="sample",
        kind="finding",
        subject="finding-1",
        actor="monitoring",
        text="prompts moved: a tenth of the users now asks for the digit 7",
        data={"share": 0.1},
        event_id=1,
    )
    hard = Event(
        at=0.0,
        service_id="",
        kind="",
        subject="",
        actor="",
        text="100 % of\nthe text: {curly} %s \N{SNOWMAN}",
        data={"nested": {"list": [1, None, "x"]}},
    )
    for event in (plain, hard, plain):
        try:
            notifier.send(event)
        except Exception as error:
            raise AssertionError(f"a notifier raised {error!r} on {event.kind!r}") from error
