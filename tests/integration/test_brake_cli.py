"""The emergency commands on the command line, with a controller that lives and a ledger that
somebody keeps locked."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.rolling import CONFIG, Rolling
from typer.testing import CliRunner

from intonaco import brake, emergency
from intonaco.cli.main import app
from intonaco.errors import BackendError, Conflict, StorageError
from intonaco.ledger import store
from intonaco.types import RolloutStatus


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rolling]:
    monkeypatch.setattr(store, "BUSY_S", 0.01)
    monkeypatch.setattr(brake, "WAIT_S", 0.01)
    made = Rolling(tmp_path / "service", tmp_path / "template")
    (made.root / "intonaco.yaml").write_text(CONFIG)
    made.to_step(1)
    made.workspace.announce("controller")
    yield made
    made.close()


def run(service: Rolling, *arguments: str) -> tuple[int, str]:
    command = [*arguments, "--workspace", str(service.root)]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    return done.exit_code, done.output


def locked(service: Rolling) -> sqlite3.Connection:
    other = sqlite3.connect(service.workspace.ledger, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    return other


def test_status_can_fail_where_nobody_decides(service: Rolling) -> None:
    code, text = run(service, "status")
    assert (code, "WARNING    no controller for" in text) == (0, True), text
    with pytest.raises(BackendError, match="gateways serve on") as failed:
        run(service, "status", "--check")
    assert failed.value.exit_code == 4
    service.workspace.ticked(time.time())
    code, text = run(service, "status", "--check")
    assert (code, "WARNING" in text) == (0, False), text


def test_freeze_and_abort_with_the_ledger_locked(service: Rolling) -> None:
    other = locked(service)
    assert run(service, "status")[0] == 0, "what is only read can be read"
    code, text = run(service, "freeze", "--reason", "what is this")
    assert (code, "the controller takes it before it does anything" in text) == (0, True), text
    code, text = run(service, "rollout", "abort", "--reason", "ugly")
    assert (code, "the ledger learns of it as soon as it can" in text) == (0, True), text
    with pytest.raises(StorageError, match="cannot be written: database is locked") as refused:
        run(service, "rollout", "pause")
    assert "work all the same" in str(refused.value.hint)
    assert len(emergency.waiting(service.workspace)) == 2
    other.close()
    service.tick()
    assert service.ledger.setting("frozen") is True
    assert service.rollout.status is RolloutStatus.ROLLED_BACK
    assert "ugly" in service.rollout.reason


def test_abort_without_a_controller(service: Rolling) -> None:
    (service.workspace.run / "controller.json").unlink()
    service.controller.close()
    code, text = run(service, "rollout", "abort", "--reason", "ugly")
    assert code == 0, text
    assert service.rollout.status is RolloutStatus.ROLLED_BACK
    assert service.updates()[-1].phase.value == "rollout", "the controller retires its worker"
    service.controller = service.another()
    service.until(lambda: service.updates()[-1].phase.final)
    assert ("retire", service.second) in service.serving.calls
    with pytest.raises(Conflict, match="no rollout is running"):
        run(service, "rollout", "abort")
