"""Who holds a change: a signal's values before and since it, by request class, arm, release, task.

The last requests are kept one by one and older ones as sums, so that memory is bounded whatever the
traffic. No prompt and no unit is kept.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from intonaco.monitoring.signals import champion_attempts, failed, is_user_request
from intonaco.types import Attempt, Finding, Json, Outcome, ScoredRecord

RECENT = 512  # requests kept one by one
LABELS = 32  # of one dimension; further ones are "other"
TOP = 6  # parts that are told
LEAST = 5  # requests since the change that a part needs to be told
DIMENSIONS = ("request class", "arm", "release", "task")
SECONDS = "service_seconds"
OTHER = "other"


@dataclass(frozen=True, slots=True)
class _Row:
    at: float
    labels: tuple[str, ...]  # as DIMENSIONS
    values: Mapping[str, float]
    outcome: str


@dataclass(slots=True)
class Breakdown:
    """Give it every scored record once, in order; ``explain`` a finding; keep ``state``."""

    release: str | None = None  # the champion that is judged
    _rows: deque[_Row] = field(default_factory=deque)
    # sums of what fell out of the recent: (value's name, dimension, label) -> [n, sum]
    _sums: dict[tuple[str, int, str], list[float]] = field(default_factory=dict)
    _known: dict[int, dict[str, None]] = field(default_factory=dict)

    def observe(self, item: ScoredRecord) -> None:
        record = item.record
        attempts = champion_attempts(record, self.release)
        if not is_user_request(record) or not attempts:
            return
        values = dict(item.scores)
        bad = failed(record, self.release)
        if bad is not None:
            values["errors"] = bad
        served = next((a for a in attempts if a.outcome is Outcome.OK), None)
        values |= _seconds(served, record.seconds)
        labels = (
            record.request_class,
            (record.served_arm or record.assigned_arm).partition(":")[0],
            attempts[-1].release[:10],
            record.task,
        )
        outcome = next((str(a.outcome) for a in attempts if a.outcome is not Outcome.OK), "ok")
        known = tuple(self._label(i, label) for i, label in enumerate(labels))
        self._rows.append(_Row(record.at, known, values, outcome))
        while len(self._rows) > RECENT:
            self._add(self._rows.popleft(), self._sums)

    def forget(self, release: str | None) -> None:
        """Begin anew with another champion."""
        self.release = release
        self._rows.clear()
        self._sums.clear()
        self._known.clear()

    def explain(self, finding: Finding, part: str = "service") -> dict[str, Json]:
        """Figures for the finding's ``facts``; empty for a signal that is read off no request.

        ``parts``: which of them hold the change, largest share of it first: {"by", "value",
        "before", "now" (means), "requests_before", "requests_now", "share_before", "share_now" (of
        requests), "share_of_change"}. A part that is the only one of its kind says nothing and is
        left out. ``kinds``: of errors, how many of which since the change. ``part``: of latency."""
        name = _value_name(finding.of or finding.signal, part)
        before = {key: list(sums) for key, sums in self._sums.items()}
        since: dict[tuple[str, int, str], list[float]] = {}
        kinds: Counter[str] = Counter()
        for row in self._rows:
            late = row.at >= finding.since_at
            self._add(row, since if late else before)
            if late and row.outcome != "ok":
                kinds[row.outcome] += 1
        parts = _parts(name, before, since)
        facts: dict[str, Json] = {"parts": parts} if parts else {}
        if name == "errors" and kinds:
            facts["kinds"] = dict(kinds.most_common())
        return facts

    def _label(self, dimension: int, label: str) -> str:
        known = self._known.setdefault(dimension, {})
        if label not in known and len(known) >= LABELS:
            return OTHER
        known.setdefault(label)
        return label

    @staticmethod
    def _add(row: _Row, sums: dict[tuple[str, int, str], list[float]]) -> None:
        for name, value in row.values.items():
            for dimension, label in enumerate(row.labels):
                total = sums.setdefault((name, dimension, label), [0.0, 0.0])
                total[0] += 1.0
                total[1] += value

    # ----------------------------------------------------------------------------------- its state

    def state(self) -> Mapping[str, Json]:
        return {
            "release": self.release,
            "rows": [[r.at, list(r.labels), dict(r.values), r.outcome] for r in self._rows],
            "sums": [[*key, *sums] for key, sums in self._sums.items()],
            "known": {str(k): list(v) for k, v in self._known.items()},
        }

    def restore(self, state: Mapping[str, Json]) -> None:
        self.release = state["release"]
        self._rows = deque(_Row(at, tuple(ls), vs, o) for at, ls, vs, o in state["rows"])
        self._sums = {(n, int(d), label): [c, s] for n, d, label, c, s in state["sums"]}
        self._known = {int(k): dict.fromkeys(v) for k, v in state["known"].items()}


def told(parts: Sequence[Mapping[str, Json]]) -> str:
    """The part that holds most of a change, in one clause; empty if none holds half of it."""
    if not parts or parts[0]["share_of_change"] < 0.5:
        return ""
    p = parts[0]
    before = "new" if p["before"] is None else f"{p['before']:.3g}"
    return (
        f"{min(1.0, p['share_of_change']):.0%} of the change is in {p['by']} {p['value']} "
        f"({before} → {p['now']:.3g})"
    )


def _seconds(attempt: Attempt | None, total: float) -> dict[str, float]:
    if attempt is None:
        return {}
    parts = {
        SECONDS: attempt.service_seconds,
        "queue_seconds": attempt.queue_seconds,
        "encode_seconds": attempt.encode_seconds,
        "denoise_seconds": attempt.denoise_seconds,
        "decode_seconds": attempt.decode_seconds,
    }
    return {"total_seconds": total} | {k: v for k, v in parts.items() if v > 0 or k[0] == "q"}


def _value_name(of: str, part: str) -> str:
    if of == "latency":
        return f"{part}_seconds"
    return {"clip_score": "clip"}.get(of, of)


def _parts(
    name: str,
    before: Mapping[tuple[str, int, str], Sequence[float]],
    since: Mapping[tuple[str, int, str], Sequence[float]],
) -> list[dict[str, Json]]:
    found: list[dict[str, Json]] = []
    for dimension, by in enumerate(DIMENSIONS):
        now = {k[2]: v for k, v in since.items() if k[:2] == (name, dimension)}
        was = {k[2]: v for k, v in before.items() if k[:2] == (name, dimension)}
        n_now, n_was = sum(v[0] for v in now.values()), sum(v[0] for v in was.values())
        if len({*now, *was}) < 2 or not n_now or not n_was:
            continue
        usual = sum(v[1] for v in was.values()) / n_was
        moved = {
            label: v[1] - v[0] * (was[label][1] / was[label][0] if label in was else usual)
            for label, v in now.items()
        }
        total = math.fsum(moved.values())
        for label, (count, value) in now.items():
            share = moved[label] / total if total else 0.0
            if count < LEAST or share <= 0:
                continue
            earlier = was.get(label)
            found.append(
                {
                    "by": by,
                    "value": label,
                    "before": earlier[1] / earlier[0] if earlier else None,
                    "now": value / count,
                    "requests_before": int(earlier[0]) if earlier else 0,
                    "requests_now": int(count),
                    "share_before": earlier[0] / n_was if earlier else 0.0,
                    "share_now": count / n_now,
                    "share_of_change": share,
                }
            )
    return sorted(found, key=lambda p: -p["share_of_change"])[:TOP]
