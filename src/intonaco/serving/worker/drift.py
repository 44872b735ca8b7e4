"""How far an image moves between batch sizes. The same seed is the same noise in any batch, but
matrix products are summed in another order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from intonaco.messages import GenerateRequest
from intonaco.serving.worker.engine import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """Of images against those of the smallest size. ``largest``: difference of one channel of one
    pixel, of 1. ``identical``: share of images whose 8-bit pixels are all equal."""

    size: int
    images: int
    largest: float
    identical: float


def measure(
    engine: Engine, requests: Sequence[GenerateRequest], sizes: Sequence[int]
) -> Sequence[Drift]:
    """Draw the same requests at each batch size. They must agree in ``batch_key``."""
    drawn = {
        size: np.concatenate(
            [
                engine.pixels(requests[start : start + size], size)
                for start in range(0, len(requests), size)
            ]
        )
        for size in sorted(sizes)
    }
    first = next(iter(drawn.values()))
    return [
        Drift(
            size=size,
            images=len(requests),
            largest=float(np.abs(pixels - first).max()),
            identical=float((_levels(pixels) == _levels(first)).all(axis=(1, 2, 3)).mean()),
        )
        for size, pixels in list(drawn.items())[1:]
    ]


def _levels(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """8 bits, rounded as diffusers does it for PIL."""
    return np.round(pixels * 255).astype(np.uint8)
