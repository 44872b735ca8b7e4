"""What is told of an event, and under what name. Pure.

Words of findings, diagnoses and plans may quote users' prompts, and errors of jobs may quote
anything: of these only that they happened leaves the workspace, with the id to look them up by.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from fnmatch import fnmatchcase

from intonaco.codec import digest
from intonaco.types import Event, Json

_QUOTING = ("finding", "diagnosis", "plan", "trigger", "curation", "probe", "review")
_MOST_TEXT = 2000  # characters


def name_of(event: Event) -> str:
    """The kind; a change of phase also says to which, a plan to do what: ``update.phase.failed``,
    ``plan.tell``."""
    said = {"update.phase": "to", "plan": "action"}.get(event.kind)
    more = event.data.get(said) if said else None
    return f"{event.kind}.{more}" if isinstance(more, str) else event.kind


def wanted(event: Event, patterns: Iterable[str]) -> bool:
    name = name_of(event)
    return any(fnmatchcase(name, p) or p == event.kind for p in patterns)


def words(event: Event) -> str:
    """The event's text where it quotes no user, else that it happened and where to look."""
    first = event.kind.partition(".")[0]
    if event.kind == "plan.held":
        return event.text[:_MOST_TEXT]
    if first in _QUOTING:
        more = event.data.get({"finding": "signal", "diagnosis": "cause"}.get(first, "action"))
        of = f" ({str(more).replace('_', ' ')})" if isinstance(more, str) else ""
        return f"{event.kind} {event.subject}{of}: the console says more"
    if name_of(event) == "update.phase.failed":
        return f"{event.data.get('from')} → failed: `intonaco update show {event.subject}` says why"
    return event.text[:_MOST_TEXT]


def message_id(event: Event) -> str:
    """The same for an event however often it is sent, another for every other event, also of a
    ledger that was begun anew."""
    return f"msg_{digest([event.service_id, event.event_id, event.kind, event.at])[:24]}"


def payload(event: Event) -> Mapping[str, Json]:
    """What a webhook is sent."""
    return {
        "type": name_of(event),
        "timestamp": datetime.fromtimestamp(event.at, UTC).isoformat(timespec="milliseconds"),
        "id": message_id(event),
        "service": event.service_id,
        "event": event.event_id,
        "subject": event.subject,
        "actor": event.actor,
        "text": words(event),
    }
