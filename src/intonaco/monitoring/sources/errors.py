"""Whether the champion fails."""

from __future__ import annotations

from collections.abc import Iterable

from intonaco.monitoring.signals import failed
from intonaco.monitoring.sources.base import Reading, Seen, Source, reading
from intonaco.types import Finding


class Errors(Source):
    """1 for a request that the champion failed at least once, else 0."""

    stream = "rate"
    direction = "up"

    def of_record(self, seen: Seen) -> Iterable[Reading]:
        value = failed(seen.item.record, seen.release)
        return () if value is None else (reading(seen, value),)

    def text(self, finding: Finding) -> str:
        return (
            f"{finding.value_now:.1%} of the champion's requests now fail (before: "
            f"{finding.value_before:.1%})"
        )
