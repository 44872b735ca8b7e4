"""Live traffic under a rollout, made up: users who come back and stay in their arm, shares that
rise, rates that drift, and a challenger that differs as it is told to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from intonaco.config import ONLINE_METRICS
from intonaco.types import Attempt, Outcome, Record, ScoredRecord

CHALLENGER = "challenger:r1"
# What this traffic can be judged by: nobody says anything of its images.
METRICS = tuple(m for m in ONLINE_METRICS if m not in ("feedback", "end_to_end"))
CLASSES = ((32, 10, 0.3), (64, 20, 1.2))  # size, steps, usual seconds
SPREAD = 0.2  # of the logarithm of times


@dataclass(frozen=True, slots=True, kw_only=True)
class Worse:
    """How the challenger differs: its error rate, times as slow, less in cosine, times as dear."""

    errors: float | None = None
    slower: float = 1.0
    cosine: float = 0.0
    dearer: float = 1.0


@dataclass(slots=True, kw_only=True)
class People:
    """``users`` ask ``requests`` times; everybody anew where ``users`` is 0. ``prone`` of them ask
    often and fail most of the time."""

    rng: np.random.Generator
    users: int = 0
    requests: int = 1000
    prone: int = 0
    weights: Sequence[float] = (0.01, 0.05, 0.2, 0.5)
    drift: float = 0.0
    error_rate: float = 0.01
    worse: Worse = Worse()

    def times(self, count: int = 60) -> dict[str, list[float]]:
        """The champion's in each class, from before."""
        return {
            f"{size}x{size}x{steps}": list(usual * np.exp(SPREAD * self.rng.normal(size=count)))
            for size, steps, usual in CLASSES
        }

    def records(self, first: int = 0) -> Iterator[ScoredRecord]:
        luck = self.rng.random(max(self.users, self.requests))  # of each user, for good
        for n in range(self.requests):
            weight = self.weights[min(n * len(self.weights) // self.requests, 99)]
            user = self._who(n)
            yield self._record(first + n, user, bool(luck[user] < weight), weight)

    def _who(self, n: int) -> int:
        if not self.users:
            return n
        often = self.prone and self.rng.random() < 0.3
        return int(self.rng.integers(self.prone if often else self.users))

    def _record(self, n: int, user: int, challenger: bool, weight: float) -> ScoredRecord:
        rng, worse = self.rng, self.worse if challenger else Worse()
        wave = self.drift * math.sin(n / 70)
        rate = self.error_rate * (1 + wave) if worse.errors is None else worse.errors
        fails = rng.random() < (0.7 if user < self.prone else rate)
        size, steps, usual = CLASSES[int(rng.integers(len(CLASSES)))]
        seconds = float(usual * (1 + 0.5 * wave) * np.exp(SPREAD * rng.normal()))
        share = seconds * worse.dearer
        seconds *= worse.slower
        arm = CHALLENGER if challenger else "champion"
        tries = (
            Attempt(
                arm=arm,
                release="B" if challenger else "A",
                outcome=Outcome.ERROR if fails else Outcome.OK,
                started_at=float(n),
                seconds=seconds,
                service_seconds=0.0 if fails else seconds,
                gpu_seconds=0.0 if fails else share,
                batch_size=1,
                padded_size=1,
            ),
        )
        cosine = float(0.6 + 0.1 * wave - worse.cosine + 0.1 * rng.normal())
        return ScoredRecord(
            record=Record(
                gateway="g",
                gateway_epoch=1,
                seq=n,
                service_id="s",
                request_id=f"q{n}",
                at=float(n),
                unit=f"user-{user}",
                assigned_arm=arm,
                probability=weight if challenger else 1 - weight,
                routing_epoch=3,
                salt="salt",
                attempts=tries,
                served_by=None if fails else tries[0].release,
                served_arm=None if fails else arm,
                status=502 if fails else 200,
                seconds=seconds,
                prompt=f"prompt {n % 7}",
                seed=n,
                steps=steps,
                guidance_scale=3.0,
                width=size,
                height=size,
            ),
            prompt_embedding=(),
            scores={} if fails else {"clip": cosine},
            extractor="e",
        )
