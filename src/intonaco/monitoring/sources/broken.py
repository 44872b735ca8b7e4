"""Pictures that nobody can look at, and pictures with nothing to look at."""

from __future__ import annotations

from collections.abc import Iterable

from intonaco.monitoring.pictures import blank
from intonaco.monitoring.signals import champion_made
from intonaco.monitoring.sources.base import Reading, Seen, Source, reading
from intonaco.types import Finding


class BrokenImages(Source):
    """1 for a stored picture of the champion's that cannot be read, else 0; one that was deleted
    since, or not looked at, says nothing."""

    stream = "rate"
    direction = "up"

    def of_record(self, seen: Seen) -> Iterable[Reading]:
        broken = seen.item.image_broken
        if broken is None or not champion_made(seen.item, seen.release):
            return ()
        return (reading(seen, float(broken)),)

    def text(self, finding: Finding) -> str:
        return (
            f"{finding.value_now:.1%} of the champion's stored pictures now cannot be read "
            f"(before: {finding.value_before:.1%})"
        )


class BlankImages(Source):
    """1 for a picture of one tone (but for a speck), else 0."""

    stream = "rate"
    direction = "up"

    def of_record(self, seen: Seen) -> Iterable[Reading]:
        facts = seen.item.image_facts
        if not facts or not champion_made(seen.item, seen.release):
            return ()
        return (reading(seen, float(blank(facts))),)

    def text(self, finding: Finding) -> str:
        return (
            f"{finding.value_now:.1%} of the champion's pictures are now of one tone, showing "
            f"nothing (before: {finding.value_before:.1%})"
        )
