"""The fork server: children of their own, with their own log, and nothing lost when it dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from intonaco.environments import environment_lock
from intonaco.forkserver import spawn
from intonaco.testing.sample_job import sample_spec, starts_of
from intonaco.training.local import LocalTrainingBackend
from intonaco.types import JobState
from intonaco.workspace import Workspace


def until(done: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)  # waiting for another process


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Workspace, subprocess.Popen[bytes]]]:
    workspace = Workspace(tmp_path)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "intonaco.forkserver", "--workspace", str(tmp_path)),
            *("--preload", "json", "no_such_module"),
        ],
        env={
            **os.environ,
            "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        },
        stderr=subprocess.DEVNULL,
    )
    until(lambda: workspace.process("forkserver") is not None)
    yield workspace, process
    if process.poll() is None:
        process.terminate()
        process.wait(10)


def test_without_a_fork_server_there_is_no_child(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert spawn(Workspace(tmp_path), "json.tool", [], log_file=log, folder=tmp_path) is None


def test_a_child_is_a_process_of_its_own(
    server: tuple[Workspace, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    workspace, process = server
    (tmp_path / "said_by_child.py").write_text(
        "import os, sys\n"
        "print(os.environ['SAID'], sys.argv[1:], os.getcwd(), os.getsid(0))\n"
        "raise SystemExit(3)\n"
    )
    pid = spawn(
        workspace,
        "said_by_child",
        ["x"],
        log_file=tmp_path / "log.txt",
        folder=tmp_path,
        environment={"SAID": "hello"},
        pid_file=tmp_path / "pid",
    )
    assert pid is not None
    assert pid != process.pid
    until(lambda: (tmp_path / "log.txt").exists() and (tmp_path / "log.txt").read_text())
    assert (tmp_path / "log.txt").read_text() == f"hello ['x'] {tmp_path} {pid}\n"
    assert (tmp_path / "pid").read_text() == str(pid)
    until(lambda: not psutil.pid_exists(pid))


def test_a_child_of_another_environment_is_not_forked(
    server: tuple[Workspace, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    def ask(lock: str) -> int | None:
        log = tmp_path / "log.txt"
        return spawn(server[0], "this", [], log_file=log, folder=tmp_path, lock=lock)

    assert ask("f" * 64) is None
    pid = ask(environment_lock())
    assert pid is not None
    until(lambda: not psutil.pid_exists(pid))


def test_jobs_run_in_forked_children_and_are_adopted_and_cancelled(
    server: tuple[Workspace, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    workspace, _ = server
    backend = LocalTrainingBackend(workspace)
    handle = backend.submit(sample_spec("quick", "succeed", tmp_path / "quick"))
    until(lambda: backend.poll(handle).state.final)
    assert backend.poll(handle).state is JobState.SUCCEEDED
    endless = sample_spec("long", "endless", tmp_path / "long")
    long = backend.submit(endless)
    assert LocalTrainingBackend(workspace).submit(endless) == long
    until(lambda: starts_of(endless) == 1)
    assert backend.poll(long).state is JobState.RUNNING
    backend.cancel(long)
    until(lambda: backend.poll(long).state.final)
    assert backend.poll(long).state is JobState.CANCELLED
    assert starts_of(endless) == 1


def test_children_go_on_when_the_server_dies(
    server: tuple[Workspace, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    workspace, process = server
    backend = LocalTrainingBackend(workspace)
    spec = sample_spec("a", "endless", tmp_path / "a")
    handle = backend.submit(spec)
    until(lambda: starts_of(spec) == 1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert backend.poll(handle).state is JobState.RUNNING
    backend.cancel(handle)
    until(lambda: backend.poll(handle).state.final)
    again = backend.submit(sample_spec("b", "succeed", tmp_path / "b"))  # without the server
    until(lambda: backend.poll(again).state.final)
    assert backend.poll(again).state is JobState.SUCCEEDED
