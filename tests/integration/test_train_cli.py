"""``intonaco train``: a release by hand; what is spent; Ctrl-C; a training adopted again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests import fixtures_tiny
from tests.fixtures_training import write_pictures
from typer.testing import CliRunner

from intonaco import app as composition
from intonaco.app import App, open_app
from intonaco.cli.main import app
from intonaco.errors import BackendError, ConfigError, Conflict, IntonacoError, NotFound
from intonaco.jobs import JobFolder
from intonaco.testing.tracking import MemoryTracker
from intonaco.training.local import LocalTrainingBackend
from intonaco.workspace import Workspace

SHORT: dict[str, Any] = {
    "method": "full",
    "steps": 4,
    "batch_size": 2,
    "report_every": 2,
    "estimated_seconds": 60,
    "samples": {"prompts": ["a two"], "every": 4, "steps": 2},
}
LONG = {**SHORT, "steps": 100_000, "samples": None, "checkpoint_every": 50_000}
PRICE = 3600.0  # a unit of money a second


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fixtures_tiny.save(tmp_path_factory.mktemp("base") / "pipeline")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "workspace"
    write_pictures(root / "data")
    config = {
        "service": "sample",
        "tracker": {"type": "none"},
        "registry": {"type": "none"},
        "data": {"train": "data"},
        "decision": {
            "fine_tune": ["short"],
            "full_retrain": ["short"],
            "budget": {"amount": 100_000, "hourly_price": PRICE},
        },
        "training": {"recipes": {"short": SHORT, "long": LONG}, "restarts": 0},
    }
    (root / "intonaco.yaml").write_text(yaml.safe_dump(config))
    return root


def ask(root: Path, *arguments: str) -> str:
    """What is printed. Raises what the command raises."""
    done = CliRunner().invoke(app, ["train", "-w", str(root), *arguments])
    if isinstance(done.exception, IntonacoError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def begin(root: Path, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "intonaco.cli.main", "train", "-w", str(root), *arguments]
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        # a shell's background job ignores it, and so would its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def until(look: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + 120
    while not (seen := look()):
        assert time.monotonic() < end, what
        time.sleep(0.05)
    return seen


def training_job(root: Path) -> JobFolder | None:
    """The workspace's only job once it trains."""
    for file in (root / "jobs").glob("*/metrics.jsonl"):
        return JobFolder(file.parent)
    return None


def spent(opened: App) -> list[tuple[bool, float]]:
    return [(s.settled, s.amount) for s in opened.ledger.spending()]


def test_a_recipe_becomes_a_release_that_serves_nobody(
    root: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = MemoryTracker()
    monkeypatch.setattr(composition, "_no_tracker", lambda *parts: tracker)
    told = json.loads(ask(root, "--recipe", "short", "--base", str(base), "--seed", "7", "--json"))
    opened = open_app(root)
    release = opened.parts().releases.get(told["release"]["release_id"])
    assert release.provenance.recipe == "short"
    assert release.provenance.dataset_version == opened.parts().datasets.list()[0].version
    assert release.provenance.update_id is None
    assert opened.ledger.champion() is None
    job = JobFolder(Path(told["folder"]))
    assert release.provenance.training_job == job.spec.key
    assert job.payload["seed"] == 7
    # what was set aside is given back, what was used is spent
    ((settled, amount),) = spent(opened)
    assert settled
    assert amount == pytest.approx(told["seconds"] / 3600 * PRICE)
    points = tracker.points(job.spec.key)
    assert [step for step, _ in points["loss"]] == [2, 4]
    assert {"images_per_second", "device_seconds", "money", "cost", "loss_last"} <= set(points)
    assert tracker.params[job.spec.key]["recipe"] == "short"
    assert [f.name for f in tracker.artifacts[job.spec.key]] == ["00000004.png"]

    # adopted again at its end it is the same release, paid for once
    again = json.loads(ask(root, "--follow", told["job"], "--json"))
    assert again["release"] == told["release"]
    assert spent(opened) == [(settled, amount)]


@pytest.mark.parametrize(
    "sign", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_ctrl_c_leaves_no_process_and_settles(root: Path, base: Path, sign: signal.Signals) -> None:
    process = begin(root, "--recipe", "long", "--base", str(base))
    job = until(lambda: training_job(root), "it trains")
    os.kill(process.pid, sign)
    assert process.wait(60) == 130
    assert (job.root / "cancelled.json").exists()
    assert LocalTrainingBackend(Workspace(root)).running() == []
    ((settled, amount),) = spent(open_app(root))
    assert settled
    assert amount > 0
    assert open_app(root).parts().releases.list() == []


def test_a_training_whose_terminal_died_is_followed(root: Path, base: Path) -> None:
    process = begin(root, "--recipe", "long", "--base", str(base), "--max-seconds", "25")
    job = until(lambda: training_job(root), "it trains")
    process.kill()
    process.wait()
    opened = open_app(root)
    assert [settled for settled, _ in spent(opened)] == [False]
    # its ceiling ends it, too early to make a candidate: a failure, with the hint of the job
    with pytest.raises(BackendError, match="stopped after") as raised:
        ask(root, "--follow", job.root.name)
    assert "min_share" in str(raised.value.hint)
    assert [settled for settled, _ in spent(opened)] == [True]
    until(lambda: not LocalTrainingBackend(Workspace(root)).running(), "its process ends")


def test_what_cannot_be_trained_is_told_before_anything_is_begun(root: Path, base: Path) -> None:
    wrong: list[tuple[list[str], type[IntonacoError], str]] = [
        ([], ConfigError, "give --recipe, or --follow"),
        (["--recipe", "short", "--follow", "x"], ConfigError, "give --recipe, or --follow"),
        (["--follow", "x", "--seed", "1"], ConfigError, "goes with no option"),
        (["--follow", "x"], NotFound, "no job 'x'"),
        (["--recipe", "none"], NotFound, "training.recipes has: long, short"),
        (["--recipe", "short"], ConfigError, "no champion yet"),
        (["--recipe", "short", "--base", "feed"], NotFound, "neither a release nor a folder"),
        (["--recipe", "short", "--base", str(root / "data")], ConfigError, "model_index"),
        (["--recipe", "short", "--base", str(base), "--dataset", "f"], NotFound, "neither a ver"),
    ]
    for arguments, kind, text in wrong:
        with pytest.raises(kind, match=text):
            ask(root, *arguments)
    config = yaml.safe_load((root / "intonaco.yaml").read_text())
    config["decision"]["budget"]["amount"] = 10
    (root / "intonaco.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(Conflict, match=r"the budget has 10\.00 left"):
        ask(root, "--recipe", "short", "--base", str(base))
    config["decision"]["budget"] = {"hourly_price": 0}
    (root / "intonaco.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match="nothing costs money"):
        ask(root, "--recipe", "short", "--base", str(base), "--max-money", "1")
    assert not list((root / "jobs").glob("*/spec.json"))
    assert spent(open_app(root)) == []
