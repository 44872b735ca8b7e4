"""Signals, findings and the course of things."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from intonaco.codec import as_json
from intonaco.ledger import Ledger
from intonaco.readmodel.plain import Facts, plain
from intonaco.types import Event, Finding, Json, SignalStatus

QUIET_EVENTS = frozenset({"effect", "routing", "lease", "signal", "process"})


def signals(ledger: Ledger, points: int = 300) -> list[Facts]:
    """The latest status of every signal with the course it took (``history``, about ``points``
    of it; with 0 none is read)."""
    rows = ledger.signal_points(limit=2000 if points else 1)
    course = signal_history(rows, points) if points else {}
    return [
        {**as_json(status), "history": course.get(status.signal, {})}
        for status in (rows[-1][1] if rows else [])
    ]


def signal_history(
    rows: Sequence[tuple[float, Sequence[SignalStatus]]], points: int
) -> dict[str, dict[str, list[Json]]]:
    """Columns per signal: "at", "requests", "value", "reference", "evidence", "threshold",
    "firing". Thinned evenly to about ``points``; the newest point and every one at which ``firing``
    changes are kept. A signal begins to count anew with every champion; "requests" counts on."""
    names = ("value", "reference", "evidence", "threshold", "firing")
    stride = max(1, math.ceil(len(rows) / max(1, points)))
    course: dict[str, dict[str, list[Json]]] = {}
    firing: dict[str, bool] = {}
    counted: dict[str, tuple[int, int]] = {}  # signal -> (before this champion, since)
    for index, (at, statuses) in enumerate(rows):
        due = (len(rows) - 1 - index) % stride == 0
        for status in statuses:
            base, last = counted.get(status.signal, (0, 0))
            base += last if status.requests < last else 0
            counted[status.signal] = (base, status.requests)
            turned = firing.get(status.signal, False) != status.firing
            firing[status.signal] = status.firing
            if due or turned:
                columns = course.setdefault(
                    status.signal, {n: [] for n in ("at", "requests", *names)}
                )
                columns["at"].append(at)
                columns["requests"].append(base + status.requests)
                for name in names:
                    columns[name].append(getattr(status, name))
    return course


def finding_facts(finding: Finding) -> Facts:
    """A finding without its centroids: they are embeddings of what people asked for."""
    facts: Facts = as_json(finding)
    facts["requests_to_detect"] = finding.request - finding.since
    facts["clusters"] = [c for c in facts["clusters"] if c["moved"]]
    for cluster in facts["clusters"]:
        del cluster["centroid"]
    return facts


def timeline(ledger: Ledger) -> list[Facts]:
    """The events worth telling, oldest first: what moved, what was decided, what became of it."""
    told: list[Event] = []
    after = 0
    while batch := ledger.events(after=after, limit=1000):
        after = batch[-1].event_id
        told += worth_telling(batch)
    facts: list[Facts] = plain(told)
    return facts


def worth_telling(events: Iterable[Event]) -> list[Event]:
    """Without the plumbing."""
    return [e for e in events if e.kind.split(".")[0] not in QUIET_EVENTS]


def history(ledger: Ledger, *, points: int = 800) -> Facts:
    """How it went: {"signals": columns per signal, "routing": [{"at", "epoch", "reason", "arms"}],
    "timeline": events}. What the report draws."""
    tables = [
        {
            "at": at,
            "epoch": table.epoch,
            "reason": table.reason,
            "arms": [
                {"name": a.name, "role": a.role, "release": a.release, "weight": a.weight}
                for a in table.arms
            ],
        }
        for at, table in ledger.routing_history()
    ]
    facts: Facts = plain(
        {
            "signals": signal_history(ledger.signal_points(limit=100_000), points),
            "routing": tables,
        }
    )
    return facts | {"timeline": timeline(ledger)}
