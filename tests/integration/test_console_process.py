"""The console as a process: announced, reachable, ended by a signal; a taken port in one line."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from intonaco.console.main import listen
from intonaco.errors import ConfigError
from intonaco.workspace import Workspace

LIMIT_S = 60.0


def start(root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "intonaco.console.main", "--workspace", str(root)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def workspace_with(tmp_path: Path, port: int) -> Workspace:
    workspace = Workspace(tmp_path)
    workspace.config_file.write_text(f"service: digits\nconsole: {{port: {port}}}\n")
    return workspace


def test_it_announces_itself_serves_and_ends(tmp_path: Path) -> None:
    workspace = workspace_with(tmp_path, 0)
    with start(tmp_path) as process:
        try:
            end = time.monotonic() + LIMIT_S
            while (info := workspace.process("console")) is None:
                assert process.poll() is None, process.stderr and process.stderr.read()
                assert time.monotonic() < end, "not announced"
                time.sleep(0.05)
            assert info.pid == process.pid
            with httpx.Client(base_url=info.url or "", trust_env=False, timeout=30) as client:
                assert client.get("/").status_code == 200
                snapshot = client.get("/api/snapshot").json()
            assert snapshot["service"] == "digits"
            assert snapshot["gateway"] is None  # there is none to ask
            names = {p["name"]: p["alive"] for p in snapshot["processes"]}
            assert names["console"] is True
            assert names["gateway"] is False
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)
    assert workspace.process("console") is None


def test_a_taken_port_is_one_line_and_exit_2(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        workspace = workspace_with(tmp_path, port)
        with start(tmp_path) as process:
            _, errors = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 2
        assert "Traceback" not in errors
        assert f"console.port: 127.0.0.1:{port} cannot be used" in errors
        assert workspace.process("console") is None


def test_any_free_port_can_be_asked_for() -> None:
    with listen("127.0.0.1", 0) as server:
        assert server.getsockname()[1] > 0
        with pytest.raises(ConfigError, match="cannot be used"):
            listen("127.0.0.1", server.getsockname()[1])
