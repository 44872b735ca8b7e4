"""The local backend against real subprocesses of a job module made here."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from intonaco.clock import FakeClock
from intonaco.errors import Conflict, NotFound
from intonaco.jobs import JobFolder
from intonaco.protocols import TrainingBackend
from intonaco.training import local
from intonaco.training.local import LocalTrainingBackend, folder_name
from intonaco.types import JobHandle, JobSpec, JobState, JobStatus
from intonaco.workspace import Workspace

# A job that says when it starts, waits for what its payload tells it, and can have a child.
MODULE = """
import os, signal, subprocess, sys, time
from pathlib import Path
from intonaco.jobs import JobFolder, main

def run(job):
    with (job.root / "starts.txt").open("a") as file:
        file.write(f"{os.getpid()} {os.nice(0)} {os.environ['OMP_NUM_THREADS']}\\n")
    job.progress("wait", 0, 1)
    do = job.payload["do"]
    if do == "raise":
        raise RuntimeError("as asked")
    if do == "go on":
        (job.root / "checkpoints" / "step-1").mkdir(parents=True, exist_ok=True)
        print("one start", flush=True)
        if len((job.root / "starts.txt").read_text().splitlines()) < 3:
            os.kill(os.getpid(), 9)
    if do == "die":
        print("last words", flush=True)
        os._exit(3)
    if do == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if do in ("child", "deaf"):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (job.root / "child.txt").write_text(str(child.pid))
    while do in ("wait", "child", "deaf") and not (job.root / "go").exists():
        time.sleep(0.01)
    return {"pid": os.getpid()}

if __name__ == "__main__":
    main(run)
"""


@pytest.fixture
def backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalTrainingBackend:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "some_job.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    (tmp_path / "workspace").mkdir()
    return LocalTrainingBackend(Workspace(tmp_path / "workspace"), FakeClock(time.time()))


def spec(do: str, key: str = "svc:u1:train:1", max_seconds: float = 0.0) -> JobSpec:
    return JobSpec(key=key, entrypoint="some_job", payload={"do": do}, max_seconds=max_seconds)


def folder(backend: LocalTrainingBackend, handle: JobHandle) -> Path:
    return backend.workspace.resolve(handle.ref["folder"])


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "gave up waiting"
        time.sleep(0.01)


def ended(backend: LocalTrainingBackend, handle: JobHandle) -> JobStatus:
    until(lambda: backend.poll(handle).state.final)
    return backend.poll(handle)


def starts(backend: LocalTrainingBackend, handle: JobHandle) -> list[str]:
    path = folder(backend, handle) / "starts.txt"
    return path.read_text().splitlines() if path.exists() else []


def test_a_job_runs_to_its_result(backend: LocalTrainingBackend) -> None:
    assert isinstance(backend, TrainingBackend)
    handle = backend.submit(spec("wait"))
    until(lambda: backend.poll(handle).progress)
    running = backend.poll(handle)
    assert running.state is JobState.RUNNING
    assert running.progress["phase"] == "wait"
    (folder(backend, handle) / "go").touch()
    status = ended(backend, handle)
    pid, niceness, threads = starts(backend, handle)[0].split()
    assert status.state is JobState.SUCCEEDED
    assert status.result == {"pid": int(pid)}
    assert int(niceness) >= 5
    assert threads == "1"
    assert status.seconds >= 0


def test_the_same_key_is_adopted_running_and_ended(backend: LocalTrainingBackend) -> None:
    handle = backend.submit(spec("wait"))
    until(lambda: starts(backend, handle))
    assert LocalTrainingBackend(backend.workspace).submit(spec("wait")) == handle
    (folder(backend, handle) / "go").touch()
    first = ended(backend, handle)
    assert backend.submit(spec("wait")) == handle
    assert ended(backend, handle).result == first.result
    assert len(starts(backend, handle)) == 1


def test_a_killed_submitter_leaves_one_job_that_is_adopted(backend: LocalTrainingBackend) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from intonaco.training.local import LocalTrainingBackend\n"
        "from intonaco.types import JobSpec; from intonaco.workspace import Workspace\n"
        "b = LocalTrainingBackend(Workspace(Path(sys.argv[1])))\n"
        "s = JobSpec(key='svc:u1:train:1', entrypoint='some_job', payload={'do': 'wait'})\n"
        "b.submit(s); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = str(backend.workspace.root)
    killed = subprocess.run([sys.executable, "-c", script, root], check=False)
    assert killed.returncode == -signal.SIGKILL
    handle = backend.submit(spec("wait"))
    until(lambda: starts(backend, handle))
    assert backend.poll(handle).state is JobState.RUNNING
    (folder(backend, handle) / "go").touch()
    assert ended(backend, handle).state is JobState.SUCCEEDED
    assert len(starts(backend, handle)) == 1


def test_killed_before_the_start_it_is_started_by_the_next(
    backend: LocalTrainingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(LocalTrainingBackend, "_start", kill)
        with pytest.raises(Killed):
            backend.submit(spec("nothing"))
    handle = backend.submit(spec("nothing"))
    assert ended(backend, handle).state is JobState.SUCCEEDED


def test_killed_right_after_the_start_it_is_adopted_by_the_next(
    backend: LocalTrainingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    real_run = subprocess.run

    def run_and_be_killed(*args: Any, **options: Any) -> None:
        real_run(*args, **options)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", run_and_be_killed)
        with pytest.raises(Killed):
            backend.submit(spec("wait"))
    handle = backend.submit(spec("wait"))
    (folder(backend, handle) / "go").touch()
    assert ended(backend, handle).state is JobState.SUCCEEDED
    assert len(starts(backend, handle)) == 1


def test_submits_at_once_from_several_processes_start_one(backend: LocalTrainingBackend) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from intonaco.training.local import LocalTrainingBackend\n"
        "from intonaco.types import JobSpec; from intonaco.workspace import Workspace\n"
        "b = LocalTrainingBackend(Workspace(Path(sys.argv[1])))\n"
        "s = JobSpec(key='svc:u1:train:1', entrypoint='some_job', payload={'do': 'wait'})\n"
        "sys.stdin.read(1)\n"
        "for _ in range(5): b.submit(s)\n"
    )
    command = [sys.executable, "-c", script, str(backend.workspace.root)]
    racers = [subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(3)]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write(b"x")
        racer.stdin.flush()
    for racer in racers:
        racer.communicate()
        assert racer.returncode == 0
    handle = backend.submit(spec("wait"))
    (folder(backend, handle) / "go").touch()
    assert ended(backend, handle).state is JobState.SUCCEEDED
    assert len(starts(backend, handle)) == 1


def test_the_same_key_for_other_work_is_refused(backend: LocalTrainingBackend) -> None:
    backend.submit(spec("nothing"))
    with pytest.raises(Conflict, match="something else"):
        backend.submit(spec("wait"))


def test_an_error_is_told(backend: LocalTrainingBackend) -> None:
    status = ended(backend, backend.submit(spec("raise")))
    assert (status.state, status.error) == (JobState.FAILED, "RuntimeError: as asked")


def test_a_death_is_told_with_the_end_of_the_log(backend: LocalTrainingBackend) -> None:
    status = ended(backend, backend.submit(spec("die")))
    assert status.state is JobState.FAILED
    assert "without a result" in status.error
    assert "last words" in status.error


def test_a_module_that_does_not_exist_fails(backend: LocalTrainingBackend) -> None:
    handle = backend.submit(JobSpec(key="k", entrypoint="no_such_module", payload={}))
    status = ended(backend, handle)
    assert status.state is JobState.FAILED
    assert "no_such_module" in status.error


def test_a_killed_job_has_failed_and_is_not_started_again(backend: LocalTrainingBackend) -> None:
    handle = backend.submit(spec("wait"))
    until(lambda: starts(backend, handle))
    os.kill(int(starts(backend, handle)[0].split()[0]), signal.SIGKILL)
    assert ended(backend, handle).state is JobState.FAILED
    backend.submit(spec("wait"))
    assert backend.poll(handle).state is JobState.FAILED
    assert len(starts(backend, handle)) == 1


@pytest.mark.parametrize(("restarts", "state"), [(2, "succeeded"), (1, "failed")])
def test_a_killed_job_with_a_checkpoint_goes_on(
    backend: LocalTrainingBackend, restarts: int, state: str
) -> None:
    backend = LocalTrainingBackend(backend.workspace, backend.clock, restarts=restarts)
    handle = backend.submit(spec("go on"))
    status = ended(backend, handle)
    assert status.state == state
    assert len(starts(backend, handle)) == restarts + 1
    root = folder(backend, handle)
    assert (root / "log.1.txt").read_text() == "one start\n", "each start's log is kept"
    told = JobFolder(root).read("restarts")
    assert told["count"] == restarts
    assert status.seconds >= told["seconds"] >= 0


def test_cancel_ends_the_whole_group(backend: LocalTrainingBackend) -> None:
    handle = backend.submit(spec("child"))
    child = folder(backend, handle) / "child.txt"
    until(lambda: child.exists() and child.read_text())
    backend.cancel(handle)
    assert backend.poll(handle).state is JobState.CANCELLED
    until(lambda: not _runs(int(child.read_text())))
    assert not _runs(int(starts(backend, handle)[0].split()[0]))
    backend.cancel(handle)
    assert backend.submit(spec("child")) == handle
    assert backend.poll(handle).state is JobState.CANCELLED


def test_cancel_ends_a_job_that_will_not_listen(
    backend: LocalTrainingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_GRACE_S", 0.3)
    handle = backend.submit(spec("deaf"))
    child = folder(backend, handle) / "child.txt"
    until(lambda: child.exists() and child.read_text())
    backend.cancel(handle)
    assert backend.poll(handle).state is JobState.CANCELLED
    until(lambda: not _runs(int(child.read_text())))
    assert not _runs(int(starts(backend, handle)[0].split()[0]))


def test_what_is_cancelled_before_it_is_started_again_stays_dead(
    backend: LocalTrainingBackend,
) -> None:
    backend = LocalTrainingBackend(backend.workspace, backend.clock, restarts=2)
    handle = backend.submit(spec("go on"))
    root = folder(backend, handle)
    until(lambda: (root / "checkpoints").exists())
    until(lambda: not _runs(int(starts(backend, handle)[0].split()[0])))
    backend.cancel(handle)
    assert backend.poll(handle).state is JobState.CANCELLED
    assert len(starts(backend, handle)) == 1


def test_cancel_leaves_an_ended_job_as_it_is(backend: LocalTrainingBackend) -> None:
    handle = backend.submit(spec("nothing"))
    assert ended(backend, handle).state is JobState.SUCCEEDED
    until(lambda: not _runs(int(starts(backend, handle)[0].split()[0])))
    backend.cancel(handle)
    assert backend.poll(handle).state is JobState.SUCCEEDED


def test_a_job_is_stopped_at_its_limit(backend: LocalTrainingBackend) -> None:
    clock = backend.clock
    assert isinstance(clock, FakeClock)
    handle = backend.submit(spec("wait", max_seconds=100))
    until(lambda: starts(backend, handle))
    clock.advance(99)
    assert backend.poll(handle).state is JobState.RUNNING
    clock.advance(2)
    status = backend.poll(handle)
    assert status.state is JobState.FAILED
    assert "limit of 100 s" in status.error
    assert not _runs(int(starts(backend, handle)[0].split()[0]))


def test_an_unknown_job_is_not_found(backend: LocalTrainingBackend) -> None:
    handle = JobHandle(key="x", backend="local", ref={"folder": f"jobs/{folder_name('x')}"})
    with pytest.raises(NotFound):
        backend.poll(handle)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
