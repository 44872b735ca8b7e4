"""The promises of the Tracker seam: everything arrives, nothing is ever raised."""

from __future__ import annotations

import json
import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from intonaco.app import check
from intonaco.config import parse
from intonaco.errors import ConfigError
from intonaco.mlflow_client import connect, quote
from intonaco.protocols import Tracker
from intonaco.testing.tracking import MemoryTracker, Points, check_tracker
from intonaco.tracking.mlflow import MlflowTracker
from intonaco.tracking.none import NullTracker
from intonaco.workspace import Workspace


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


def _run(uri: str, experiment: str, run: str) -> Any:
    client = connect(uri)
    found = client.get_experiment_by_name(experiment)
    (only,) = client.search_runs([found.experiment_id], f"tags.`intonaco.run` = {quote(run)}")
    return only


def _points(uri: str, experiment: str, run: str) -> Points:
    client = connect(uri)
    only = _run(uri, experiment, run)
    return {
        name: [(m.step, m.value) for m in client.get_metric_history(only.info.run_id, name)]
        for name in only.data.metrics
    }


def test_twin_keeps_the_contract(tmp_path: Path) -> None:
    tracker = MemoryTracker()
    assert isinstance(tracker, Tracker)
    check_tracker(tracker, tmp_path, tracker.points)
    assert tracker.params["update-1/fine_tune"]["steps"] == 100


def test_null_tracker_keeps_the_contract(tmp_path: Path) -> None:
    tracker = NullTracker()
    assert isinstance(tracker, Tracker)
    check_tracker(tracker, tmp_path)


def test_mlflow_keeps_the_contract(
    uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = MlflowTracker(uri, "contract", artifacts=tmp_path / "artifacts")
    assert isinstance(tracker, Tracker)
    with caplog.at_level(logging.WARNING, "intonaco"):
        check_tracker(tracker, tmp_path, lambda run: _points(uri, "contract", run))
    refused = [r.getMessage() for r in caplog.records]
    assert len(refused) == 1
    assert "not there" in refused[0]

    run = _run(uri, "contract", "update-1/fine_tune")
    assert run.data.params == {"steps": "100", "lora": '{"rank": 4}', "none": "null"}
    assert run.info.status == "FINISHED"
    full = _run(uri, "contract", "update-1/full")
    assert len(full.data.params) == 120
    assert full.data.metrics["odd_ name_ ___"] == 1.0
    assert sorted(p.name for p in (tmp_path / "artifacts").rglob("report.html"))


def test_mlflow_goes_on_with_a_run_after_a_restart(uri: str) -> None:
    for step in range(2):
        MlflowTracker(uri, "restart").log("r", metrics={"loss": float(step)}, step=step)
    assert _points(uri, "restart", "r") == {"loss": [(0, 0.0), (1, 1.0)]}


def test_an_outage_is_told_once_and_costs_nothing(
    uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    calls = [0]
    tracker = MlflowTracker(uri, "outage", pause_seconds=60, monotonic=lambda: now[0])

    def down(_: str) -> None:
        calls[0] += 1
        raise ConnectionError("no route to the server")

    with caplog.at_level(logging.WARNING, "intonaco"):
        with monkeypatch.context() as patch:
            patch.setattr("intonaco.tracking.mlflow.connect", down)
            for _ in range(5):
                tracker.log("r", metrics={"loss": 1.0})
            assert calls == [1]
            now[0] = 61.0
            tracker.log("r", metrics={"loss": 1.0})
            assert calls == [2]
        assert [r.getMessage() for r in caplog.records] == [
            "tracking is down, runs are not exported: no route to the server"
        ]
        now[0] = 122.0
        tracker.log("r", metrics={"loss": 2.0}, step=1)
    assert caplog.records[-1].getMessage() == "tracking works again, 6 calls were dropped"
    assert _points(uri, "outage", "r") == {"loss": [(1, 2.0)]}


# The real package, from the extra `wandb`, which `make test` does not install.
needs_wandb = pytest.mark.skipif(
    find_spec("wandb") is None or find_spec("wandb.sdk") is None,
    reason="wandb is not installed (pip install 'intonaco[wandb]')",
)


def _written_offline(folder: Path, run: str) -> tuple[Points, dict[str, Any], int]:
    """Of a run: its points, its parameters, how many files it kept, from wandb's own log."""
    from wandb.proto import wandb_internal_pb2 as messages
    from wandb.sdk.internal.datastore import DataStore

    points: dict[str, list[tuple[int, float]]] = {}
    params: dict[str, Any] = {}
    name, files = "", 0
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        store = DataStore()
        store.open_for_scan(str(file))
        while (raw := store.scan_data()) is not None:
            record = messages.Record()
            record.ParseFromString(raw)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                name = record.run.display_name
            if name != run:
                continue
            if kind == "config":
                params |= {u.key: json.loads(u.value_json) for u in record.config.update}
            if kind == "artifact":
                files += len(record.artifact.manifest.contents)
            if kind == "history":
                values = {
                    "/".join(item.nested_key) or item.key: json.loads(item.value_json)
                    for item in record.history.item
                }
                step = int(values.pop("step"))
                for key, value in values.items():
                    if not key.startswith("_") and isinstance(value, int | float):
                        points.setdefault(key, []).append((step, float(value)))
        store.close()
    return points, params, files


@needs_wandb
def test_wandb_offline_keeps_the_contract(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from intonaco.tracking.wandb import WandbTracker

    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "kept"
    tracker = WandbTracker("contract", folder)
    assert isinstance(tracker, Tracker)

    def points(run: str) -> Points:
        tracker.close()
        return _written_offline(folder, run)[0]

    with caplog.at_level(logging.WARNING, "intonaco"):
        check_tracker(tracker, tmp_path, points)
    assert ["not there" in r.getMessage() for r in caplog.records] == [True]
    params = _written_offline(folder, "update-1/fine_tune")[1]
    assert params == {"steps": 100, "lora": {"rank": 4}, "none": None}
    assert len(_written_offline(folder, "update-1/full")[1]) == 120
    assert _written_offline(folder, "update-1/full")[2] == 2

    samples = tmp_path / "samples"
    samples.mkdir()
    Image.new("RGB", (8, 8)).save(samples / "00000004.png")
    tracker.log("pictures", artifacts=samples / "00000004.png", step=4)
    for n in range(6):  # more than are held open
        tracker.log(f"run {n}", metrics={"loss": float(n)}, step=n)
    tracker.close()
    assert list(folder.glob("wandb/offline-run-*/files/media/images/samples_*.png"))
    for n in range(6):
        assert _written_offline(folder, f"run {n}")[0] == {"loss": [(n, float(n))]}


@pytest.mark.parametrize(
    ("tracker", "problem"),
    [
        ({"type": "mlflow", "project": "p"}, "project is not read by type 'mlflow'"),
        ({"type": "wandb", "uri": "http://u"}, "uri is not read by type 'wandb'"),
        ({"type": "none", "uri": "http://u"}, "uri is not read by type 'none'"),
    ],
)
def test_a_tracker_is_configured_with_what_it_reads(tracker: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        parse(json.dumps({"service": "s", "tracker": tracker}))


def test_wandb_is_checked_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parse("service: s\ntracker: {type: wandb, project: p}\n")
    monkeypatch.setattr("intonaco.plugins.find_spec", lambda name: None)
    (problem,) = check(config, Workspace(tmp_path))
    assert "needs the extra 'wandb'" in problem
    monkeypatch.setattr("intonaco.plugins.find_spec", lambda name: True)
    assert check(config, Workspace(tmp_path)) == []


class _Raises(MemoryTracker):
    def log(self, run: str, **kinds: Any) -> None:
        if kinds.get("artifacts"):
            raise FileNotFoundError(kinds["artifacts"])
        super().log(run, **kinds)


class _LosesSteps(MemoryTracker):
    def log(self, run: str, **kinds: Any) -> None:
        super().log(run, **{**kinds, "step": None})


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [(_Raises, "a tracker raised"), (_LosesSteps, "the loss came back")],
)
def test_check_finds_a_broken_tracker(
    broken: type[MemoryTracker], complaint: str, tmp_path: Path
) -> None:
    tracker = broken()
    with pytest.raises(AssertionError, match=complaint):
        check_tracker(tracker, tmp_path, tracker.points)
