"""The supervisor's children: what dies is started again, and takes nothing with it."""

from __future__ import annotations

import logging
import os
import signal
import threading
from pathlib import Path

import pytest
from tests.fixtures_serving import until

from intonaco import supervisor as module
from intonaco.config import parse
from intonaco.errors import BackendError, ConfigError
from intonaco.serving.gateway import main
from intonaco.serving.http import bind
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


SLOW_TO_END = """
import pathlib, signal, sys, threading
folder = pathlib.Path(sys.argv[-1])
asked = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: asked.set())
(folder / "up").touch()
asked.wait(30)
while not (folder / "answered").exists():
    threading.Event().wait(0.05)
(folder / "ended").touch()
"""


@pytest.fixture
def busy_gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    """A gateway that ends once its request is answered, and patience for others of none."""
    (tmp_path / "slow_to_end.py").write_text(SLOW_TO_END)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.2)
    monkeypatch.setattr(module, "command", lambda name: ["slow_to_end"])
    supervisor = Supervisor(Workspace(tmp_path), ["gateway-1"])
    supervisor.begin("gateway-1")
    until((tmp_path / "up").exists, bool)
    return supervisor


def test_a_stop_waits_for_the_requests_that_gateways_have(
    tmp_path: Path, busy_gateway: Supervisor
) -> None:
    answer = threading.Timer(1.0, (tmp_path / "answered").touch)
    answer.start()
    busy_gateway.stop(drain_s=60.0)
    answer.join()
    assert (tmp_path / "ended").exists()


def test_a_stop_in_a_hurry_does_not_wait(tmp_path: Path, busy_gateway: Supervisor) -> None:
    hurry = threading.Event()
    process = busy_gateway.children["gateway-1"].process
    again = threading.Timer(0.5, hurry.set)  # the second Ctrl-C
    again.start()
    busy_gateway.stop(drain_s=3600.0, hurry=hurry)
    again.join()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "ended").exists()


FIRST_FAILS = r"""
import pathlib, sys, threading
folder, name = pathlib.Path(sys.argv[-1]), sys.argv[1]
if name == "gateway":
    while not (folder / "second").exists():
        threading.Event().wait(0.05)
    threading.Event().wait(0.5)  # the second is seen to be gone first
    sys.exit("error: its own fault\nhint: mend it")
(folder / "second").touch()
sys.exit("error: gateway-1: cannot listen: address in use")
"""


def test_of_two_gateways_the_first_ones_own_error_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "first_fails.py").write_text(FIRST_FAILS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(module, "command", lambda name: ["first_fails", name])
    supervisor = Supervisor(Workspace(tmp_path), ["gateway", "gateway-1"])
    with pytest.raises(BackendError, match=r"^gateway did not start: its own fault$") as caught:
        supervisor.start()
    assert (caught.value.backend, caught.value.hint) == ("gateway", "mend it")


def test_gateways_that_cannot_be_built_say_why(tmp_path: Path) -> None:
    """Two real ones, on one port; neither takes it from the other."""
    workspace = Workspace(tmp_path)
    port = free_port()
    keys = "[{name: team, key: 'env:NO_SUCH_KEY_HERE'}]"
    workspace.config_file.write_text(
        f"service: s\nserving: {{gateway: {{port: {port}, processes: 2, api_keys: {keys}}}}}\n"
    )
    supervisor = Supervisor(workspace, ["gateway", "gateway-1"])
    with pytest.raises(BackendError, match=r"^gateway did not start: .*NO_SUCH_KEY_HERE"):
        supervisor.start()
    for log in workspace.logs.glob("gateway*.log"):
        assert "cannot listen" not in log.read_text()


async def test_a_gateway_that_cannot_be_built_lets_go_of_its_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    config = parse(f"service: s\nserving: {{gateway: {{port: {port}, processes: 2}}}}\n")

    def fails(*_: object, **__: object) -> None:
        raise ConfigError("its own fault")

    monkeypatch.setattr(main, "build", fails)
    with pytest.raises(ConfigError, match="its own fault"):  # held: its frames keep what they had
        await main.run(Workspace(tmp_path), config)
    bind("127.0.0.1", port, what="the next one")[0].close()


def free_port() -> int:
    sock, url = bind("127.0.0.1", 0, what="test")
    sock.close()
    return int(url.rpartition(":")[2])
