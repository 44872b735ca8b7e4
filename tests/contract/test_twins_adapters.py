"""The built-in adapters keep the contracts that their twins keep, and give the same answers."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pytest

from intonaco.clock import FakeClock, SystemClock
from intonaco.datasets.store import LocalDatasetStore
from intonaco.monitoring.detectors import EmbeddingDetector, MeanDetector, PeriodicDetector
from intonaco.protocols import DatasetStore, Detector, TrainingBackend
from intonaco.testing.datasets import MemoryDatasetStore, check_dataset_store, sample_dataset
from intonaco.testing.detectors import check_detector
from intonaco.testing.training import check_training_backend
from intonaco.training.local import LocalTrainingBackend
from intonaco.types import JobHandle, JobState, JobStatus
from intonaco.workspace import Workspace


def _wait(backend: TrainingBackend, handle: JobHandle) -> JobStatus:
    """Waits for a process to end; a minute is far more than it needs."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        status = backend.poll(handle)
        if status.state is not JobState.RUNNING:
            return status
        time.sleep(0.05)
    backend.cancel(handle)
    raise TimeoutError(f"job {handle.key} still runs")


def test_local_training_keeps_the_contract(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert isinstance(LocalTrainingBackend(workspace), TrainingBackend)
    check_training_backend(lambda: LocalTrainingBackend(workspace, SystemClock()), tmp_path, _wait)


def test_local_datasets_keep_the_contract(tmp_path: Path) -> None:
    def make() -> LocalDatasetStore:
        return LocalDatasetStore(tmp_path / "store", FakeClock())

    assert isinstance(make(), DatasetStore)
    check_dataset_store(make, tmp_path / "samples")


@pytest.mark.parametrize("items", [1, 12])
def test_local_datasets_and_their_twin_give_the_same_ids(tmp_path: Path, items: int) -> None:
    folder = sample_dataset(tmp_path / "sample", items=items)
    twin = MemoryDatasetStore(tmp_path / "scratch").put(folder, name="d")
    real = LocalDatasetStore(tmp_path / "store", FakeClock()).put(folder, name="d")
    assert (real.version, real.dvc_md5) == (twin.version, twin.dvc_md5)
    assert (real.items, real.bytes, real.topics) == (twin.items, twin.bytes, twin.topics)


def test_mean_detector_keeps_the_contract() -> None:
    rng = np.random.default_rng(3)

    def make() -> MeanDetector:
        return MeanDetector(threshold=math.log(10_000), reference=200)

    assert isinstance(make(), Detector)
    check_detector(make, rng.uniform(0.6, 0.8, 600).tolist(), rng.uniform(0.3, 0.5, 200).tolist())


def test_embedding_detector_keeps_the_contract() -> None:
    rng = np.random.default_rng(5)
    topics = rng.standard_normal((6, 16))

    def ask(topic: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        x = topics[topic] + 0.1 * rng.standard_normal(16)
        return np.asarray(x / np.linalg.norm(x))

    quiet = [ask(int(rng.integers(5))) for _ in range(500)]
    moved = [ask(5) for _ in range(150)]
    check_detector(
        lambda: EmbeddingDetector(threshold=math.log(10_000), reference=200), quiet, moved
    )


def test_periodic_detector_keeps_the_contract() -> None:
    check_detector(lambda: PeriodicDetector(every=50), [0.0] * 40, [0.0] * 20)
