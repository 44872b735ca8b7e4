"""What a training writes down reaches the tracker: once, in order, bounded, and over kills."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from intonaco.executor.exporting import POINTS, export_training
from intonaco.jobs import job_folder
from intonaco.testing.tracking import MemoryTracker
from intonaco.training.progress import add_metrics, cut_metrics
from intonaco.workspace import Workspace


def setting(root: Path) -> tuple[Any, MemoryTracker, Path]:
    tracker, workspace = MemoryTracker(), Workspace(root)
    folder = job_folder(workspace, "k")
    (folder / "samples").mkdir(parents=True)
    return SimpleNamespace(tracker=tracker, workspace=workspace), tracker, folder


def line(folder: Path, step: int, **more: Any) -> None:
    add_metrics(folder, {"step": step, "loss": 1 / step, "money": 0.5, **more})


def test_each_line_and_picture_is_handed_on_once(tmp_path: Path) -> None:
    p, tracker, folder = setting(tmp_path)
    export_training(p, "k", {"steps": 40})
    assert tracker.params["k"] == {"steps": 40}
    line(folder, 10, loss_by_time=[0.25, None, 0.75], validation_loss=None)
    (folder / "samples" / "00000010.png").write_bytes(b"")
    export_training(p, "k", {"steps": 99})
    export_training(p, "k", {})
    line(folder, 20, validation_loss=0.5, device_seconds=3.0, images_per_second=7.0)
    export_training(p, "k", {})
    assert tracker.params["k"] == {"steps": 40}
    assert tracker.points("k") == {
        "loss": [(10, 0.1), (20, 0.05)],
        "money": [(10, 0.5), (20, 0.5)],
        "loss_by_time.0": [(10, 0.25)],
        "loss_by_time.2": [(10, 0.75)],
        "validation_loss": [(20, 0.5)],
        "device_seconds": [(20, 3.0)],
        "images_per_second": [(20, 7.0)],
    }
    assert [f.name for f in tracker.artifacts["k"]] == ["00000010.png"]


def test_a_run_that_goes_on_from_a_checkpoint_is_not_told_twice(tmp_path: Path) -> None:
    p, tracker, folder = setting(tmp_path)
    for step in (10, 20, 30):
        line(folder, step)
    export_training(p, "k", {})
    cut_metrics(folder, 10)
    export_training(p, "k", {})
    for step in (20, 30, 40):
        line(folder, step)
    export_training(p, "k", {})
    line(folder, 50)
    export_training(p, "k", {})
    assert [step for step, _ in tracker.points("k")["loss"]] == [10, 20, 30, 40, 50]


def test_a_cut_line_waits_for_its_end(tmp_path: Path) -> None:
    p, tracker, folder = setting(tmp_path)
    line(folder, 10)
    whole = json.dumps({"step": 20, "loss": 0.5}) + "\n"
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(whole[:9])
        file.flush()
        export_training(p, "k", {})
        file.write(whole[9:])
    export_training(p, "k", {})
    assert tracker.points("k")["loss"] == [(10, 0.1), (20, 0.5)]


def test_a_look_costs_no_more_than_so_many_calls(tmp_path: Path) -> None:
    p, tracker, folder = setting(tmp_path)
    for step in range(1, 1001):
        line(folder, step)
    export_training(p, "k", {})
    steps = [step for step, _ in tracker.points("k")["loss"]]
    assert steps == [50 * (n + 1) for n in range(POINTS)]


def test_a_job_that_is_not_there_is_nothing_to_export(tmp_path: Path) -> None:
    p, tracker, folder = setting(tmp_path)
    (folder / "samples").rmdir()
    folder.rmdir()
    export_training(p, "k", {"a": 1})
    assert not folder.exists()
    assert tracker.points("k") == {}
