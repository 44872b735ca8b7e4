"""Twin and conformance checks of the Notifier seam."""

from __future__ import annotations

from intonaco.notify.undelivered import Undelivered
from intonaco.protocols import Notifier
from intonaco.types import Event


class MemoryNotifier:
    """Keeps what it was sent. ``failing``: raised instead, until it is taken away."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.failing: Exception | None = None

    def send(self, event: Event) -> None:
        if self.failing is not None:
            raise self.failing
        self.events.append(event)


def check_notifier(notifier: Notifier) -> None:
    """Sends events that are easy and hard to write down to a receiver that is well: none may raise.
    Raises AssertionError."""
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
        text="100 % of\nthe text: {curly} %s \N{SNOWMAN} \ud800",
        data={"nested": {"list": [1, None, "x"]}},
    )
    for event in (plain, hard, plain):
        try:
            notifier.send(event)
        except Exception as error:
            raise AssertionError(f"a notifier raised {error!r} on {event.kind!r}") from error


def check_notifier_fails(notifier: Notifier) -> None:
    """Sends an event to a receiver that cannot be reached: it must say so, by Undelivered and as
    worth trying again, or the event is lost. Raises AssertionError."""
    event = Event(
        at=1.0, service_id="s", kind="champion", subject="r", actor="a", text="t", event_id=1
    )
    try:
        notifier.send(event)
    except Undelivered as error:
        if not error.retriable or error.gone:
            raise AssertionError("a receiver that is away is worth another try") from error
    except Exception as error:
        raise AssertionError(f"a notifier raised {error!r}, not Undelivered") from error
    else:
        raise AssertionError("a notifier was silent about an event that did not arrive")
