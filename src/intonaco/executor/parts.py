"""What the executor works with, and what comes of one look at an effect."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from intonaco.clock import Clock
from intonaco.config import Config
from intonaco.ledger import Ledger
from intonaco.monitoring.probes import ProbeImage
from intonaco.protocols import (
    DatasetStore,
    Matrix,
    Registry,
    ServingBackend,
    Tracker,
    TrafficRouter,
    TrainingBackend,
)
from intonaco.releases import ReleaseStore
from intonaco.types import (
    Json,
    Release,
)
from intonaco.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Pending:
    """Not at its end; look again."""


@dataclass(frozen=True, slots=True)
class Done:
    result: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failed:
    error: str


Outcome = Pending | Done | Failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the executor works with; ``app`` puts it together."""

    config: Config
    workspace: Workspace
    ledger: Ledger
    releases: ReleaseStore
    datasets: DatasetStore
    training: TrainingBackend
    serving: ServingBackend
    router: TrafficRouter
    registry: Registry
    tracker: Tracker
    embed: Callable[[Sequence[str]], Matrix]  # texts to the extractor's vectors
    probe: Callable[[str, str, int], ProbeImage | None]  # of (release, prompt, seed); None: busy
    smoke: Callable[[str, Release], float]  # (worker's URL, release) to seconds of one picture
    clock: Clock
    embed_images: Callable[[Sequence[bytes]], Matrix] | None = None  # PNGs to its vectors
