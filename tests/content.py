"""Made-up traffic with pictures and feedback, for tests of signals from content."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tests.traffic import NAMES, Traffic

from intonaco.types import Feedback, ScoredRecord

FACTS = {"contrast": 0.3, "black": 0.1, "white": 0.1}


def unit(x: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(x / np.linalg.norm(x), dtype=np.float64)


def topic_of(item: ScoredRecord) -> str:
    words = item.record.prompt.split()
    return next(name for name in NAMES if name in words)


@dataclass
class Pictures:
    """``Traffic`` whose pictures lie near a direction of their topic, each with a hash of its own.
    ``spread``: how far pictures of a topic lie apart, relative to topics."""

    seed: int = 0
    spread: float = 0.7
    traffic: Traffic = field(init=False)
    random: np.random.Generator = field(init=False)
    topics: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.traffic = Traffic(seed=self.seed, phrase=0.3)
        self.random = np.random.default_rng([3, self.seed])
        for name in (*NAMES, "collapsed"):
            self.topics[name] = self._direction()

    def _direction(self) -> NDArray[np.float64]:
        return unit(self.random.standard_normal(self.traffic.dimension))

    def ask(self, *, collapse: float = 0.0, exact: bool = True, **how: Any) -> ScoredRecord:
        """``collapse``: probability that the picture is the one that a collapsed model draws:
        exactly, or one much like it."""
        item = self.traffic.ask(**how)
        if item.record.image is None:
            return item
        collapsed = self.random.random() < collapse
        around = 0.0 if collapsed and exact else 0.3 if collapsed else self.spread
        centre = self.topics["collapsed" if collapsed else topic_of(item)]
        row = unit(centre + around * self._direction())
        bits = 7 if collapsed and exact else int(self.random.integers(2**63))
        return replace(
            item,
            image_embedding=tuple(float(v) for v in row),
            image_hash=f"{bits:016x}",
            image_facts=FACTS,
            image_broken=False,
        )

    def many(self, n: int, **how: Any) -> Iterator[ScoredRecord]:
        for _ in range(n):
            yield self.ask(**how)


def feedback(
    item: ScoredRecord,
    after: float,
    *,
    kind: str = "explicit",
    vote: str | None = None,
    **more: Any,
) -> Feedback:
    """What the record's user says ``after`` so many seconds."""
    r = item.record
    values: dict[str, Any] = {
        "gateway": r.gateway,
        "gateway_epoch": r.gateway_epoch,
        "seq": r.seq,
        "service_id": r.service_id,
        "at": r.at + after,
        "request_id": r.request_id,
        "made_at": float(int(r.at)),
        "assigned_arm": r.assigned_arm,
        "release": r.served_by or "",
        "unit": "digest",
        "kind": kind,
        "vote": vote,
    }
    return Feedback(**{**values, **more})
