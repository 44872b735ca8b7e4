"""The requests that an explanation can draw on, in bounded memory."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intonaco.monitoring.detectors.arrays import pack, unpack
from intonaco.monitoring.explanation import Requests
from intonaco.types import Json

Row = NDArray[np.float32]

REFERENCE = 512
RECENT = 512
FEWEST = 20  # an explanation looks at no fewer requests than this


@dataclass(slots=True)
class Recent:
    """A uniform sample of the reference's embeddings, and the last requests with their prompts,
    images, units and scores. Personal data: it lives as long as the monitor's state."""

    _reference: list[Row] = field(default_factory=list)
    _reference_images: list[str | None] = field(default_factory=list)
    _offered: int = 0
    _at: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    _rows: deque[Row] = field(default_factory=lambda: deque(maxlen=RECENT))
    _prompts: deque[str] = field(default_factory=lambda: deque(maxlen=RECENT))
    _images: deque[str | None] = field(default_factory=lambda: deque(maxlen=RECENT))
    _scores: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    _units: deque[str] = field(default_factory=lambda: deque(maxlen=RECENT))

    @property
    def offered(self) -> int:
        """Requests that the sample of the reference was drawn from."""
        return self._offered

    def add_reference(self, row: NDArray[Any], image: str | None = None) -> None:
        """Reservoir sampling (Vitter, 1985), its draws seeded by the count, so that it goes on the
        same after a restart."""
        self._offered += 1
        if len(self._reference) < REFERENCE:
            self._reference.append(row.astype(np.float32))
            self._reference_images.append(image)
            return
        place = int(np.random.default_rng(self._offered).integers(self._offered))
        if place < REFERENCE:
            self._reference[place] = row.astype(np.float32)
            self._reference_images[place] = image

    def add(
        self,
        *,
        at: float,
        row: NDArray[Any],
        prompt: str,
        image: str | None,
        score: float | None,
        unit: str = "",
    ) -> None:
        self._at.append(at)
        self._rows.append(row.astype(np.float32))
        self._prompts.append(prompt)
        self._images.append(image)
        self._scores.append(math.nan if score is None else score)
        self._units.append(unit)

    def reference(self) -> NDArray[np.float32]:
        """Embeddings [m, d]."""
        return np.stack(self._reference) if self._reference else np.zeros((0, 1), np.float32)

    def reference_images(self) -> list[str | None]:
        """Paths of their images, one a row of ``reference``; None where none was kept."""
        return list(self._reference_images)

    def since(self, at: float) -> Requests:
        """The requests from that time on, and no fewer than the last twenty."""
        times = np.array(self._at, dtype=np.float64)
        keep = times >= at
        keep[-FEWEST:] = True
        chosen = np.flatnonzero(keep)
        rows, prompts, images = list(self._rows), list(self._prompts), list(self._images)
        units = list(self._units)
        return Requests(
            embeddings=np.stack([rows[i] for i in chosen]) if len(chosen) else np.zeros((0, 1)),
            prompts=[prompts[i] for i in chosen],
            images=[images[i] for i in chosen],
            scores=np.array(self._scores, dtype=np.float64)[chosen],
            units=[units[i] for i in chosen],
        )

    def state(self) -> Mapping[str, Json]:
        return {
            "reference": pack(np.stack(self._reference)) if self._reference else None,
            "reference_images": list(self._reference_images),
            "offered": self._offered,
            "at": pack(np.array(self._at, dtype=np.float64)),
            "rows": pack(np.stack(self._rows)) if self._rows else None,
            "prompts": list(self._prompts),
            "images": list(self._images),
            "scores": pack(np.array(self._scores, dtype=np.float64)),
            "units": list(self._units),
        }

    def restore(self, state: Mapping[str, Json]) -> None:
        self._reference = list(unpack(state["reference"])) if state["reference"] else []
        kept = state.get("reference_images") or [None] * len(self._reference)
        self._reference_images = list(kept)
        self._offered = int(state["offered"])
        self._at = deque((float(t) for t in unpack(state["at"])), maxlen=RECENT)
        self._rows = deque(unpack(state["rows"]) if state["rows"] else (), maxlen=RECENT)
        self._prompts = deque(state["prompts"], maxlen=RECENT)
        self._images = deque(state["images"], maxlen=RECENT)
        self._scores = deque((float(s) for s in unpack(state["scores"])), maxlen=RECENT)
        units = state.get("units") or [""] * len(self._at)
        self._units = deque((str(u) for u in units), maxlen=RECENT)
