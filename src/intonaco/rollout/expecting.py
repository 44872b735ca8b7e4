"""How many units a proof still needs, reckoned now and then and counted down in between. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

from intonaco.rollout.evidence import Evidence
from intonaco.types import Json


class Expected:
    """By metric. Reckoned anew when a twentieth more is there, or at another share: futures are
    drawn, which takes some milliseconds."""

    def __init__(self) -> None:
        # Of a metric: at how many units it was reckoned, at which weight, units still ahead then.
        self._known: dict[str, tuple[int, float, int | None]] = {}

    def ahead(self, metric: str, evidence: Evidence, weight: float, threshold: float) -> int | None:
        """Units until ``evidence`` is expected to reach ``threshold`` at the present ``weight``."""
        known = self._known.get(metric)
        if known is None or known[1] != weight or evidence.count > 1.05 * known[0]:
            units = evidence.ahead(weight, threshold)
            known = (evidence.count, weight, None if units is None else math.ceil(units))
            self._known[metric] = known
        count, _, expected = known
        return None if expected is None else max(0, expected - (evidence.count - count))

    def state(self) -> Json:
        return {m: list(known) for m, known in self._known.items()}

    def restore(self, state: Mapping[str, Json]) -> None:
        self._known = {m: (int(n), float(w), u) for m, (n, w, u) in state.items()}
