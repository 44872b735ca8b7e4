"""Where a run is, what it has cost, and when to stop it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from intonaco.types import Json

METRICS = "metrics.jsonl"
TIME_BUCKETS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """``loss``: mean over the steps since the last report; ``loss_by_time``: the squared error
    without weights, in tenths of the way from picture to noise, None where no time was drawn.
    ``seconds``: since the job began, earlier attempts at it included."""

    step: int
    total: int
    loss: float
    loss_by_time: tuple[float | None, ...]
    learning_rate: float
    seconds: float
    images_per_second: float
    eta_s: float
    device_seconds: float
    money: float
    validation_loss: float | None = None

    def as_json(self) -> dict[str, Json]:
        return {
            "step": self.step,
            "loss": self.loss,
            "loss_by_time": list(self.loss_by_time),
            "learning_rate": self.learning_rate,
            "validation_loss": self.validation_loss,
            "seconds": self.seconds,
            "images_per_second": self.images_per_second,
            "eta_s": self.eta_s,
            "device_seconds": self.device_seconds,
            "money": self.money,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """Stops a run while there is time left to save what it has.

    ``max_seconds``: when the backend ends the job; ``max_money``: what may be spent, at
    ``hourly_price``. The run stops a tenth earlier (at least ``least_left_s`` where that is less
    than half): saving and comparing a large model takes minutes.
    """

    max_seconds: float | None = None
    max_money: float | None = None
    hourly_price: float = 0.0
    least_left_s: float = 60.0

    @property
    def seconds(self) -> float | None:
        """After how many seconds of the job training ends; None: never."""
        limits = [] if self.max_seconds is None else [self.max_seconds]
        if self.max_money is not None and self.hourly_price > 0:
            limits.append(self.max_money / self.hourly_price * 3600.0)
        if not limits:
            return None
        limit = min(limits)
        return limit - min(max(0.1 * limit, self.least_left_s), 0.5 * limit)

    def __call__(self, seconds: float) -> str | None:
        """Why to stop after so many seconds of the job, if so."""
        limit = self.seconds
        if limit is None or seconds < limit:
            return None
        by_time = self.max_seconds is not None and (
            self.max_money is None
            or self.hourly_price <= 0
            or self.max_seconds <= self.max_money / self.hourly_price * 3600.0
        )
        of = f"{self.max_seconds:g} s" if by_time else f"{self.max_money:g} of money"
        return f"its ceiling of {of} was near after {seconds:.0f} s"


def cut_metrics(folder: Path, step: int) -> None:
    """Take the lines after a step out of ``metrics.jsonl``: a run that goes on from a checkpoint
    writes them again."""
    file = folder / METRICS
    with suppress(FileNotFoundError):
        kept = [line for line in read_metrics(file) if int(line["step"]) <= step]
        temporary = file.with_suffix(".new")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        temporary.replace(file)


def read_metrics(file: Path) -> list[Mapping[str, Json]]:
    """The whole lines of a ``metrics.jsonl``; a last one that a kill cut off is left out."""
    lines = []
    for line in file.read_text().split("\n"):
        with suppress(ValueError):
            lines.append(json.loads(line))
    return lines


def add_metrics(folder: Path, line: Mapping[str, Json]) -> None:
    """Append a line, in one write."""
    handle = os.open(folder / METRICS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(handle, (json.dumps(line) + "\n").encode())
    finally:
        os.close(handle)


def by_time(sums: Sequence[float], counts: Sequence[float]) -> tuple[float | None, ...]:
    return tuple(s / n if n else None for s, n in zip(sums, counts, strict=True))
