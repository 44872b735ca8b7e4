"""How well the champion's images match their prompts."""

from __future__ import annotations

from collections.abc import Iterable

from intonaco.monitoring.signals import champion_score
from intonaco.monitoring.sources.base import Reading, Seen, Source, reading
from intonaco.types import Finding


class ClipScore(Source):
    """Cosine of image and prompt, given to the detector as (cosine + 1) / 2."""

    unit = "cosine"
    extracted = True
    repeats = False

    @property
    def tolerance(self) -> float:
        return self.signal.tolerance / 2.0

    def of_record(self, seen: Seen) -> Iterable[Reading]:
        score = champion_score(seen.item, "clip", seen.release)
        return () if score is None else (reading(seen, (score + 1.0) / 2.0),)

    def raw(self, value: float) -> float:
        return 2.0 * value - 1.0

    def text(self, finding: Finding) -> str:
        verb = "fell" if finding.value_now < finding.value_before else "rose"
        return (
            f"CLIP score {verb} from {finding.value_before:.2f} to {finding.value_now:.2f} since "
            f"request {finding.since}"
        )
