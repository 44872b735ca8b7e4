"""What pictures show: those that users send in, and those that the champion makes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from intonaco.config import Signal
from intonaco.monitoring.detectors.dedupe import SessionDedupe
from intonaco.monitoring.detectors.kmeans import unit
from intonaco.monitoring.signals import champion_made
from intonaco.monitoring.sources.base import Reading, Seen, Source, reading
from intonaco.types import Finding, Json

SESSIONS = 64  # whose last picture is remembered


class Conditions(Source):
    """Embeddings of the pictures that edits start from, of all user requests, whoever answered. A
    session that sends the same picture again says nothing new, whatever it asks for."""

    stream = "vector"
    direction = "moved"
    extracted = True

    def __init__(self, name: str, signal: Signal) -> None:
        super().__init__(name, signal)
        self._dedupe = SessionDedupe(sessions=SESSIONS)

    def of_record(self, seen: Seen) -> Iterable[Reading]:
        item = seen.item
        if not item.condition_embedding:
            return ()
        row = unit(np.array(item.condition_embedding))
        if self._dedupe.repeats(item.record.unit, row, item.record.at):
            return ()
        return (reading(seen, row),)

    def text(self, finding: Finding) -> str:
        return (
            "The pictures that users send in are no longer like those of the reference, since "
            f"edit {finding.since}"
        )

    def state(self) -> Mapping[str, Json]:
        return self._dedupe.state()

    def restore(self, state: Mapping[str, Json]) -> None:
        self._dedupe.restore(state)


class Images(Source):
    """Embeddings of the pictures that the champion made for users assigned to it. They move with
    the prompts too: read them beside the prompts' signal."""

    stream = "vector"
    direction = "moved"
    extracted = True
    repeats = False

    def of_record(self, seen: Seen) -> Iterable[Reading]:
        row = seen.item.image_embedding
        if not row or not champion_made(seen.item, seen.release):
            return ()
        return (reading(seen, unit(np.array(row))),)

    def text(self, finding: Finding) -> str:
        return (
            "The champion's pictures are no longer like those of the reference, since image "
            f"{finding.since}"
        )
