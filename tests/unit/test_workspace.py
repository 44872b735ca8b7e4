from __future__ import annotations

import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from intonaco.codec import encode
from intonaco.errors import StorageError
from intonaco.workspace import Workspace, alive, write_atomic


def test_a_file_is_replaced_whole_and_leaves_nothing_behind(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "file.json"
    write_atomic(file, "one")
    write_atomic(file, b"two")
    assert file.read_text() == "two"
    assert list(file.parent.iterdir()) == [file]


def test_paths_go_both_ways(tmp_path: Path) -> None:
    w = Workspace(tmp_path)
    path = w.images / "a" / "b.png"
    assert w.relative(path) == "images/a/b.png"
    assert w.resolve("images/a/b.png") == path
    assert w.resolve("/elsewhere") == Path("/elsewhere")


def test_the_admin_token_is_made_once_and_private(tmp_path: Path) -> None:
    token = Workspace(tmp_path).admin_token()
    assert len(token) >= 32
    assert Workspace(tmp_path).admin_token() == token
    file = tmp_path / "run" / "admin.token"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.write_text("")
    with pytest.raises(StorageError, match="empty"):
        Workspace(tmp_path).admin_token()


def test_an_announced_process_is_found_while_it_lives(tmp_path: Path) -> None:
    w = Workspace(tmp_path)
    assert w.process("me") is None
    info = w.announce("me", url="http://127.0.0.1:1", answer=42)
    assert w.process("me") == info
    assert info.facts == {"answer": 42}


def test_a_dead_process_and_a_reused_pid_are_not_taken_for_it(tmp_path: Path) -> None:
    w = Workspace(tmp_path)
    info = w.announce("me")
    assert not alive(replace(info, started=info.started - 100)), "another start time"
    child = subprocess.Popen([sys.executable, "-c", ""])
    dead = replace(info, pid=child.pid)
    child.wait(10)
    write_atomic(w.run / "me.json", encode(dead))
    assert w.process("me") is None


def test_running_processes_are_told_from_the_other_files(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.announce("worker-a")
    write_atomic(workspace.run / "routing.json", '{"epoch": 3}')
    write_atomic(workspace.run / "broken.json", "{")
    assert [info.name for info in workspace.processes()] == ["worker-a"]
