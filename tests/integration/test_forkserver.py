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

from intonaco.forkserver import spawn
from intonaco.testing.sample_job import sample_spec
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
        stderr=subprocess.DEVNULL,
    )
    until(lambda: workspace.process("forkserver") is not None)
    yield workspace, process
    if process.poll() is None:
        process.terminate()
        process.wait(10)


def run(workspace: Workspace, module: str, *arguments: str) -> int | None:
    return spawn(
        workspace,
        module,
        arguments,
        log_file=workspace.root / "log.txt",
        folder=workspace.root,
        environment={"SAID": "hello"},
        pid_file=workspace.root / "pid",
    )


def test_without_a_fork_server_there_is_no_child(tmp_path: Path) -> None:
    assert run(Workspace(tmp_path), "json.tool") is None


def test_a_child_is_a_process_of_its_own(
    server: tuple[Workspace, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    workspace, process = server
    (tmp_path / "said.py").write_text(
        "import os, sys, json\n"
        "print(json.dumps([os.environ['SAID'], sys.argv[1:], os.getcwd(), os.getsid(0)]))\n"
        "raise SystemExit(3)\n"
    )
    pid = run(workspace, "runpy", str(tmp_path / "said.py"), "x")
    assert pid is not None
    assert pid != process.pid
    until(lambda: "hello" in (tmp_path / "log.txt").read_text())
    printed = (tmp_path / "log.txt").read_text()
    assert f'"{tmp_path}", {pid}]' in printed
    assert '["x"]' in printed
    assert (tmp_path / "pid").read_text() == str(pid)
    until(lambda: not psutil.pid_exists(pid))


def test_jobs_run_in_forked_children_and_are_adopted_and_cancelled(
    server: tuple[Workspace, subprocess.Popen[bytes]],
) -> None:
    workspace, _ = server
    backend = LocalTrainingBackend(workspace)
    handle = backend.submit(sample_spec("quick"))
    until(lambda: backend.poll(handle).state.final)
    assert backend.poll(handle).state is JobState.SUCCEEDED
    long = backend.submit(sample_spec("long", seconds=60.0))
    assert LocalTrainingBackend(workspace).submit(sample_spec("long", seconds=60.0)) == long
    assert backend.poll(long).state is JobState.RUNNING
    backend.cancel(long)
    until(lambda: backend.poll(long).state.final)
    assert backend.poll(long).state is JobState.CANCELLED


def test_children_go_on_when_the_server_dies(
    server: tuple[Workspace, subprocess.Popen[bytes]],
) -> None:
    workspace, process = server
    backend = LocalTrainingBackend(workspace)
    handle = backend.submit(sample_spec("a", seconds=1.0))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    until(lambda: backend.poll(handle).state.final)
    assert backend.poll(handle).state is JobState.SUCCEEDED
    assert run(workspace, "json.tool") is None
    again = backend.submit(sample_spec("b"))  # an interpreter of its own
    until(lambda: backend.poll(again).state.final)
    assert backend.poll(again).state is JobState.SUCCEEDED
