"""Every seam, in one file.

Each has a built-in implementation, an in-memory twin and conformance checks in
``intonaco.testing`` that authors of plug-ins can run. Images are PIL images in RGB, matrices float
arrays of shape [n, d], one row an item.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from intonaco.types import (
    DatasetDiff,
    DatasetVersion,
    Event,
    JobHandle,
    JobSpec,
    JobStatus,
    Json,
    Observed,
    Release,
    ReplayMix,
    RoutingTable,
    ServingStatus,
)

Matrix = NDArray[np.floating[Any]]


@runtime_checkable
class Registry(Protocol):
    """Where releases are published for people and other tools. A projection of the ledger."""

    def register(self, release: Release, folder: Path, tags: Mapping[str, str]) -> str:
        """Publish a release folder; the same release again gives the same version. Raises
        BackendError."""
        ...

    def get(self, release_id: str) -> Mapping[str, Json]:
        """{"version", "tags", "aliases", "source"}. Raises NotFound."""
        ...

    def set_alias(self, alias: str, release_id: str | None) -> None:
        """Point an alias at a release (None: remove it). Raises NotFound."""
        ...

    def history(self) -> Sequence[Mapping[str, Json]]:
        """All versions, oldest first, as ``get`` gives them."""
        ...


@runtime_checkable
class Tracker(Protocol):
    """Experiment tracking, export only. Never raises: a tracker that is down stops nothing."""

    def log(
        self,
        run: str,
        *,
        params: Mapping[str, Json] | None = None,
        metrics: Mapping[str, float] | None = None,
        step: int | None = None,
        artifacts: Path | None = None,
    ) -> None: ...


@runtime_checkable
class DatasetStore(Protocol):
    """Content-addressed dataset versions."""

    def put(
        self,
        folder: Path,
        *,
        name: str,
        parents: Sequence[str] = (),
        replay: float = 0.0,
        mix: ReplayMix | None = None,
    ) -> DatasetVersion:
        """Add a folder of images with ``metadata.jsonl``; the same content gives the same version.
        ``replay`` and ``mix`` are kept with it. Atomic. Raises ConfigError that names the offending
        file."""
        ...

    def open(self, version: str) -> Path:
        """A read-only folder with that version's files. Raises NotFound."""
        ...

    def diff(self, a: str, b: str) -> DatasetDiff: ...

    def list(self) -> Sequence[DatasetVersion]: ...


@runtime_checkable
class TrainingBackend(Protocol):
    """Runs jobs (training, evaluation). A job outlives the process that submitted it."""

    def submit(self, spec: JobSpec) -> JobHandle:
        """Start the job, or adopt the one that has this key already, running or finished."""
        ...

    def poll(self, handle: JobHandle) -> JobStatus: ...

    def cancel(self, handle: JobHandle) -> None:
        """End it and its children. A finished job is left as it is."""
        ...


@runtime_checkable
class ServingBackend(Protocol):
    """Gives a release URLs. The gateway does the traffic."""

    def deploy(self, release: Release) -> None:
        """Start workers for a release, or adopt those that run. Returns at once. As many as it was
        scaled to, if it has not been retired since."""
        ...

    def scale(self, release: Release, replicas: int) -> None:
        """So many workers from now on, at least one: start those that are missing, end the last
        ones (of ``status().urls``) once they have answered what they took. Returns at once; the
        same again is no change. Raises BackendError where that cannot be done."""
        ...

    def status(self, release_id: str) -> ServingStatus: ...

    def drain(self, release_id: str) -> None:
        """Take no new work, finish what was taken."""
        ...

    def retire(self, release_id: str) -> None:
        """End its workers."""
        ...


@runtime_checkable
class TrafficRouter(Protocol):
    def apply(self, table: RoutingTable) -> None:
        """Raises Conflict if the table's epoch is older than the gateway's, BackendError if no
        gateway answers."""
        ...

    def observed(self) -> Observed: ...


@runtime_checkable
class FeatureExtractor(Protocol):
    """Maps images and texts into one space of unit vectors."""

    name: str
    digest: str

    def images(self, images: Sequence[Any]) -> Matrix: ...

    def texts(self, texts: Sequence[str]) -> Matrix: ...


@runtime_checkable
class ImageExtractor(Protocol):
    """Maps images to features, of any length. Features are compared only if ``name``, ``digest``
    (of the weights) and ``preprocessing`` (what is done to an image before, in words) are equal."""

    name: str
    digest: str
    preprocessing: str

    def images(self, images: Sequence[Any]) -> Matrix: ...


@runtime_checkable
class Scorer(Protocol):
    """One number an image. Raw values, no rescaling."""

    name: str

    def score(self, images: Sequence[Any], prompts: Sequence[str]) -> NDArray[np.floating[Any]]: ...


@runtime_checkable
class EmbeddingScorer(Protocol):
    """A scorer that needs no more than the image's unit vector in the extractor's space."""

    name: str

    def score_embeddings(self, rows: Matrix) -> NDArray[np.floating[Any]]: ...


@runtime_checkable
class Detector(Protocol):
    """Watches one stream. ``evidence`` is a log e-value, ``threshold`` its log limit: the detector
    fires when evidence reaches it. ``state`` is JSON; ``restore`` of it is exact."""

    threshold: float

    @property
    def evidence(self) -> float: ...

    @property
    def drift_detected(self) -> bool: ...

    def update(
        self,
        x: Any,
        *,
        session: str | None = None,
        topic: str | None = None,
        at: float | None = None,
    ) -> bool: ...

    def update_many(self, xs: Iterable[Any]) -> bool: ...

    def reset(self) -> None: ...

    def state(self) -> Mapping[str, Json]: ...

    def restore(self, state: Mapping[str, Json]) -> None: ...


@runtime_checkable
class Notifier(Protocol):
    """Tells people, one event a call, within a bounded time. Raises ``notify.undelivered.
    Undelivered`` (or anything) if the event did not arrive; it is sent again then, so that one may
    come twice: receivers know it again by its id."""

    def send(self, event: Event) -> None: ...
