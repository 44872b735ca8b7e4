"""Made-up traffic in the shape of the demo's, for tests of monitoring: ten topics in twelve
phrasings, five of them known to the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intonaco.types import Attempt, Outcome, Record, ScoredRecord

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PHRASINGS = (
    "a handwritten {}",
    "a photo of the digit {}",
    "the number {} written by hand",
    "{}",
    "please draw a {}",
    "a drawing of a {}",
    "the digit {}",
    "number {} in ink",
    "show me the number {}",
    "an image of a handwritten {}",
    "a {} on paper",
    "write the digit {} please",
)


@dataclass(slots=True)
class Traffic:
    """Users asking for digits. ``phrase`` is how far phrasings lie apart, relative to topics.
    Known digits score 0.80 +- 0.12, the others 0.05 +- 0.15."""

    seed: int = 0
    dimension: int = 32
    phrase: float = 0.35
    users: int = 80
    release: str = "a" * 64
    at: float = 1_700_000_000.0
    seq: int = 0
    vectors: NDArray[np.float64] = field(init=False)
    random: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng([11, self.seed])
        shape = (self.dimension,)
        topics = self.random.standard_normal((10, 1, *shape))
        phrases = self.random.standard_normal((1, 12, *shape)) * self.phrase
        vectors = topics + phrases
        self.vectors = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

    def ask(
        self,
        *,
        new: float = 0.0,
        known_quality: float = 0.80,
        new_quality: float = 0.05,
        failing: float = 0.0,
        slow: float = 0.0,
        arm: str = "champion",
        probe: bool = False,
        shadow_of: str | None = None,
    ) -> ScoredRecord:
        """One scored request. ``new``: probability that it is for one of the unknown digits."""
        r = self.random
        unknown = r.random() < new
        topic = int(r.integers(5)) + 5 * unknown
        phrasing = int(r.integers(12))
        bad = r.random() < failing
        seconds = float(np.exp(0.15 * r.standard_normal())) * (5.0 if r.random() < slow else 1.0)
        quality = (new_quality, 0.15) if unknown else (known_quality, 0.12)
        score = float(np.clip(r.normal(*quality), -1, 1))
        self.at += float(r.exponential(0.2))
        self.seq += 1
        attempt = Attempt(
            arm=arm,
            release=self.release,
            outcome=Outcome.ERROR if bad else Outcome.OK,
            started_at=self.at,
            seconds=seconds,
            service_seconds=0.0 if bad else seconds,
        )
        record = Record(
            gateway="gateway",
            gateway_epoch=1,
            seq=self.seq,
            service_id="digits",
            request_id=f"r{self.seq}",
            at=self.at,
            unit=f"u{r.integers(self.users)}",
            assigned_arm=arm,
            probability=1.0,
            routing_epoch=1,
            salt="",
            attempts=(attempt,),
            served_by=None if bad else self.release,
            served_arm=None if bad else arm,
            status=500 if bad else 200,
            seconds=seconds,
            prompt=PHRASINGS[phrasing].format(NAMES[topic]),
            seed=self.seq,
            steps=10,
            guidance_scale=1.5,
            width=32,
            height=32,
            image=None if bad else f"images/r{self.seq}.png",
            shadow_of=shadow_of,
            probe=probe,
        )
        return ScoredRecord(
            record=record,
            prompt_embedding=tuple(float(v) for v in self.vectors[topic, phrasing]),
            scores={} if bad else {"clip": score},
            extractor="e" * 64,
        )

    def many(self, n: int, **how: Any) -> Iterator[ScoredRecord]:
        for _ in range(n):
            yield self.ask(**how)
