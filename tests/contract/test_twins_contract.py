"""The twins of jobs, data sets, detectors and notifications keep their contracts, and each check
finds a twin that was broken on purpose."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from intonaco.notify.log import LogNotifier
from intonaco.protocols import DatasetStore, Detector, Notifier, TrainingBackend
from intonaco.testing.datasets import MemoryDatasetStore, check_dataset_store, sample_dataset
from intonaco.testing.detectors import ScriptedDetector, check_detector
from intonaco.testing.notify import MemoryNotifier, check_notifier
from intonaco.testing.training import MemoryTrainingBackend, check_training_backend
from intonaco.types import (
    DatasetVersion,
    Event,
    JobHandle,
    JobSpec,
    JobState,
    JobStatus,
    Json,
)

# ------------------------------------------------------------------------------------ jobs


def _settle(backend: TrainingBackend, handle: JobHandle) -> JobStatus:
    """Ends a job of the twin as the real one would end by itself."""
    assert isinstance(backend, MemoryTrainingBackend)
    match backend.jobs[handle.key].spec.payload["do"]:
        case "succeed":
            backend.finish(handle.key, {"answer": 42})
        case "fail":
            backend.fail(handle.key, "told to fail")
    return backend.poll(handle)


class _RunsAgain(MemoryTrainingBackend):
    def submit(self, spec: JobSpec) -> JobHandle:
        self.jobs.pop(spec.key, None)
        return super().submit(spec)


class _CancelsTheFinished(MemoryTrainingBackend):
    def cancel(self, handle: JobHandle) -> None:
        job = self.jobs[handle.key]
        job.status = JobStatus(state=JobState.CANCELLED)


def test_training_twin_keeps_the_contract(tmp_path: Path) -> None:
    backend = MemoryTrainingBackend()
    assert isinstance(backend, TrainingBackend)
    check_training_backend(lambda: backend, tmp_path, _settle, starts=lambda spec: 1)
    assert backend.running == []
    assert [job.submits for job in backend.jobs.values()] == [3, 2, 2]


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [(_RunsAgain, "tell different things|adopted"), (_CancelsTheFinished, "cancel changed")],
)
def test_check_finds_a_broken_training_backend(
    broken: type[MemoryTrainingBackend], complaint: str, tmp_path: Path
) -> None:
    backend = broken()
    with pytest.raises(AssertionError, match=complaint):
        check_training_backend(lambda: backend, tmp_path, _settle, starts=lambda spec: 1)


def test_training_twin_can_run_jobs_at_once() -> None:
    def work(spec: JobSpec) -> Mapping[str, Json]:
        if spec.payload["x"] == 0:
            raise ZeroDivisionError("by zero")
        return {"y": 1 / spec.payload["x"]}

    backend = MemoryTrainingBackend(on_submit=work)
    good = backend.submit(JobSpec(key="a", entrypoint="m", payload={"x": 4}))
    bad = backend.submit(JobSpec(key="b", entrypoint="m", payload={"x": 0}))
    assert backend.poll(good).result == {"y": 0.25}
    assert backend.poll(bad).state is JobState.FAILED
    assert backend.poll(bad).error == "by zero"


# ------------------------------------------------------------------------------------ data


class _TakesAnything(MemoryDatasetStore):
    def put(self, folder: Path, **about: Any) -> DatasetVersion:
        (folder / "000.png").touch()
        return super().put(folder, **about)


class _VersionsByName(MemoryDatasetStore):
    def put(self, folder: Path, *, name: str, **about: Any) -> DatasetVersion:
        (folder / "name").write_text(name)
        return super().put(folder, name=name, **about)


def test_dataset_twin_keeps_the_contract(tmp_path: Path) -> None:
    store = MemoryDatasetStore(tmp_path / "scratch")
    assert isinstance(store, DatasetStore)
    check_dataset_store(lambda: store, tmp_path / "samples")


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [(_TakesAnything, "without its image"), (_VersionsByName, "same content got two versions")],
)
def test_check_finds_a_broken_dataset_store(
    broken: type[MemoryDatasetStore], complaint: str, tmp_path: Path
) -> None:
    store = broken(tmp_path / "scratch")
    with pytest.raises(AssertionError, match=complaint):
        check_dataset_store(lambda: store, tmp_path / "samples")


def test_dvc_id_of_the_twin_is_the_one_dvc_documents(tmp_path: Path) -> None:
    folder = sample_dataset(tmp_path / "d", items=1)
    version = MemoryDatasetStore(tmp_path / "scratch").put(folder, name="d")

    def md5(name: str) -> str:
        return hashlib.md5((folder / name).read_bytes(), usedforsecurity=False).hexdigest()

    tree = (
        f'[{{"md5": "{md5("000.png")}", "relpath": "000.png"}}, '
        f'{{"md5": "{md5("metadata.jsonl")}", "relpath": "metadata.jsonl"}}]'
    )
    assert json.loads(tree)
    assert version.dvc_md5 == hashlib.md5(tree.encode(), usedforsecurity=False).hexdigest()


# ------------------------------------------------------------------------------------ detectors

QUIET: Sequence[float] = [0.0] * 10
MOVED: Sequence[float] = [1.0] * 20


class _ForgetsOnRestore(ScriptedDetector):
    def restore(self, state: Mapping[str, Json]) -> None:
        self.seen = 0


class _FiresBeside(ScriptedDetector):
    @property
    def drift_detected(self) -> bool:
        return self.seen == self.fire_at


class _NeverResets(ScriptedDetector):
    def reset(self) -> None:
        return


def test_detector_twin_keeps_the_contract() -> None:
    assert isinstance(ScriptedDetector(), Detector)
    check_detector(lambda: ScriptedDetector(fire_at=20), QUIET, MOVED)


@pytest.mark.parametrize(
    ("detector", "complaint"),
    [
        (lambda: ScriptedDetector(fire_at=5), "fired on the quiet values"),
        (ScriptedDetector, "did not fire within 20"),
        (lambda: _ForgetsOnRestore(fire_at=20), "restore of a state gives other evidence"),
        (lambda: _FiresBeside(fire_at=20), "fires elsewhere"),
        (lambda: _NeverResets(fire_at=20), "reset does not take the alarm back"),
    ],
)
def test_check_finds_a_broken_detector(detector: Any, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        check_detector(detector, QUIET, MOVED)


# ------------------------------------------------------------------------------------ notifiers


@pytest.mark.parametrize("notifier", [MemoryNotifier(), LogNotifier()])
def test_notifiers_keep_the_contract(notifier: Notifier) -> None:
    assert isinstance(notifier, Notifier)
    check_notifier(notifier)


def test_check_finds_a_notifier_that_raises() -> None:
    class Formats:
        def send(self, event: Event) -> None:
            event.text.format()

    with pytest.raises(AssertionError, match="a notifier raised"):
        check_notifier(Formats())


def test_log_notifier_says_who_what_and_why(caplog: pytest.LogCaptureFixture) -> None:
    event = Event(
        at=1.0,
        service_id="digits",
        kind="rollout.step",
        subject="rollout-1",
        actor="controller",
        text="5 % to the challenger",
        event_id=7,
    )
    with caplog.at_level(logging.INFO, "intonaco.notify"):
        LogNotifier().send(event)
    (record,) = caplog.records
    assert record.getMessage() == "rollout.step: 5 % to the challenger"
    facts = vars(record)
    assert (facts["action"], facts["service_id"]) == ("rollout.step", "digits")
    assert (facts["subject"], facts["actor"], facts["event_id"]) == ("rollout-1", "controller", 7)
