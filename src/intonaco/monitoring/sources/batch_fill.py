"""How full the champion's batches are."""

from __future__ import annotations

from collections.abc import Iterable

from intonaco.monitoring.signals import champion_attempts
from intonaco.monitoring.sources.base import Reading, Seen, Source, reading
from intonaco.types import Finding, Outcome


class BatchFill(Source):
    """Share of its batch that was requests and not padding, for each image. It follows traffic:
    where that has a daily cycle, so has this."""

    def of_record(self, seen: Seen) -> Iterable[Reading]:
        for attempt in champion_attempts(seen.item.record, seen.release):
            if attempt.outcome is Outcome.OK and attempt.padded_size:
                fill = attempt.batch_size / attempt.padded_size
                return (reading(seen, min(1.0, fill)),)
        return ()

    def text(self, finding: Finding) -> str:
        return (
            f"Batches are now filled to {finding.value_now:.0%} "
            f"(before: {finding.value_before:.0%})"
        )
