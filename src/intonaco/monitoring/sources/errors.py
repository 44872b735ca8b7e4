"""Whether the champion fails."""

from __future__ import annotations

from collections.abc import Iterable

from intonaco.monitoring.signals import champion_attempts, failed
from intonaco.monitoring.sources.base import Reading, Seen, Source, reading
from intonaco.types import Finding, Outcome


class Errors(Source):
    """1 for a request that the champion failed at least once, else 0. With ``kinds`` only failures
    with these outcomes count; a request that failed otherwise says nothing."""

    stream = "rate"
    direction = "up"
    stream = "rate"

    def of_record(self, seen: Seen) -> Iterable[Reading]:
        value = failed(seen.item.record, seen.release)
        if value and self.signal.kinds:
            outcomes = {a.outcome.value for a in champion_attempts(seen.item.record, seen.release)}
            if not outcomes & set(self.signal.kinds):
                value = 0.0 if Outcome.OK.value in outcomes else None
        return () if value is None else (reading(seen, value),)

    def text(self, finding: Finding) -> str:
        how = f" ({', '.join(self.signal.kinds)})" if self.signal.kinds else ""
        return (
            f"{finding.value_now:.1%} of the champion's requests now fail{how} (before: "
            f"{finding.value_before:.1%})"
        )
