"""What the engine, the batcher and the worker's HTTP side say to each other. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


class InvalidRequest(ValueError):
    """The pipeline cannot do what the request asks for."""


class OutOfMemory(Exception):
    """The device cannot hold a batch of this size; a smaller one may fit."""


class Aborted(Exception):
    """Raised by a step watch: nobody waits for this batch any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """The images of a batch, without its padding, and what they cost. Times in seconds, of the
    whole batch; ``gpu_seconds`` is 0 on a CPU. ``cpu_seconds``: of the process, all its threads."""

    images: Sequence[Any]  # PIL images
    encode_seconds: float
    denoise_seconds: float
    decode_seconds: float
    gpu_seconds: float
    peak_memory_bytes: int
    cpu_seconds: float = 0.0


Preview = Callable[[], Sequence[Any]]  # unfinished PIL images of the batch, decoded when called
StepWatch = Callable[[int, int, Preview], None]  # (steps done, steps, preview); may raise Aborted
