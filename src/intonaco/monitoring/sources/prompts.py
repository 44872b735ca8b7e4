"""What people ask for."""

from __future__ import annotations

from collections.abc import Iterable

from intonaco.monitoring.sources.base import Reading, Seen, Source, reading


class Prompts(Source):
    """Embeddings of the prompts of all user requests, whoever answered."""

    stream = "vector"
    direction = "moved"
    extracted = True
    repeats = False

    def of_record(self, seen: Seen) -> Iterable[Reading]:
        return () if seen.row is None else (reading(seen, seen.row),)
