"""However the demo ends, none of its jobs goes on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from intonaco.demo.story import Options, Stopped, Story, tell
from intonaco.testing.sample_job import sample_spec, starts_of
from intonaco.training.local import LocalTrainingBackend
from intonaco.types import JobHandle, JobState
from intonaco.workspace import Workspace


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The demo takes signals for itself."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def started(workspace: Workspace, name: str, do: str = "endless") -> tuple[JobHandle, int]:
    """A real job that has begun, and its process id."""
    starts = workspace.root / f"{name}.txt"
    spec = sample_spec(f"demo:{name}", do, starts)
    handle = LocalTrainingBackend(workspace).submit(spec)
    deadline = time.monotonic() + 60
    while not starts_of(spec):
        assert time.monotonic() < deadline, "the job did not start"
        time.sleep(0.02)
    return handle, int(starts.read_text())


def ended(pid: int) -> bool:
    """A job is nobody's child, and not every init of a container reaps."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def interrupted() -> None:
    raise KeyboardInterrupt


def terminated() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def hung_up() -> None:
    os.kill(os.getpid(), signal.SIGHUP)


def defect() -> None:
    raise RuntimeError("a defect")


@pytest.mark.parametrize(
    ("how", "raised"),
    [
        (interrupted, KeyboardInterrupt),
        (terminated, KeyboardInterrupt),
        (hung_up, KeyboardInterrupt),
        (defect, RuntimeError),
    ],
)
def test_no_job_outlives_the_demo(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: Callable[[], None],
    raised: type[BaseException],
) -> None:
    jobs: list[tuple[JobHandle, int]] = []

    def run(story: Story) -> None:
        jobs.extend(started(story.workspace, name) for name in ("training", "scorer"))
        how()

    monkeypatch.setattr(Story, "run", run)
    with pytest.raises(raised):
        tell(Options(workspace=tmp_path / "w", browser=False))
    assert len(jobs) == 2
    backend = LocalTrainingBackend(Workspace(tmp_path / "w"))
    assert backend.running() == []
    assert [backend.poll(handle).state for handle, _ in jobs] == [JobState.CANCELLED] * 2
    assert all(ended(pid) for _, pid in jobs)


def test_jobs_end_though_what_comes_before_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a second Ctrl-C while the traffic is waited for."""
    stopped: list[str] = []

    class Traffic:
        def stop(self) -> None:
            raise KeyboardInterrupt

    class Children:
        def stop(self) -> None:
            stopped.append("children")
            raise Stopped("one would not end")

    def run(story: Story) -> None:
        monkeypatch.setattr(story, "traffic", Traffic())
        monkeypatch.setattr(story, "supervisor", Children())
        started(story.workspace, "training")

    monkeypatch.setattr(Story, "run", run)
    with pytest.raises(Stopped):
        tell(Options(workspace=tmp_path / "w", browser=False))
    assert stopped == ["children"]
    assert LocalTrainingBackend(Workspace(tmp_path / "w")).running() == []


def test_jobs_that_ended_are_left_as_they_are(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    backend = LocalTrainingBackend(workspace)
    handle, _ = started(workspace, "done", do="succeed")
    deadline = time.monotonic() + 60
    while backend.running():
        assert time.monotonic() < deadline, "the job did not end"
        time.sleep(0.02)
    other, _ = started(workspace, "other")
    assert [running.key for running in backend.running()] == [other.key]
    backend.cancel(other)
    assert backend.poll(handle).state is JobState.SUCCEEDED
