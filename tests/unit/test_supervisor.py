"""The supervisor's children: what dies is started again, and takes nothing with it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from intonaco import supervisor as module
from intonaco.supervisor import RESTARTS_PER_MINUTE, Supervisor, command
from intonaco.workspace import Workspace


def test_a_child_that_keeps_dying_is_rationed_and_takes_no_other_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    workspace = Workspace(tmp_path)
    workspace.config_file.write_text("service: s\nserving: {gateway: {port: 0}}\n")
    # "short" ends at once, for want of such a module.
    monkeypatch.setattr(
        module, "command", lambda name: ["intonaco.nothing"] if name == "short" else command(name)
    )
    now = [0.0]
    supervisor = Supervisor(workspace, ["gateway"], monotonic=lambda: now[0])
    try:
        supervisor.start()
        supervisor.begin("short")
        short = supervisor.children["short"]
        with caplog.at_level(logging.WARNING):
            for _ in range(RESTARTS_PER_MINUTE - 1):
                short.process.wait(20)
                assert supervisor.revive() == ["short"]
                short = supervisor.children["short"]
            short.process.wait(20)
            assert supervisor.revive() == supervisor.revive() == []
        assert supervisor.children["gateway"].process.poll() is None
        (said,) = [r.getMessage() for r in caplog.records if "keeps dying" in r.getMessage()]
        assert "No module named intonaco.nothing" in said
        now[0] += 61.0
        assert supervisor.revive() == ["short"]
    finally:
        supervisor.stop()
