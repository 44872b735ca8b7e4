"""What a training job writes down on its way, handed on to the tracker."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from intonaco.executor.parts import Parts
from intonaco.jobs import JobFolder, job_folder
from intonaco.training.progress import METRICS
from intonaco.types import Json
from intonaco.workspace import write_json

POINTS = 20  # lines handed on at one look: a tracker takes some hundredths of a second for each
_STATE = "exported"
_SERIES = (
    "loss",
    "learning_rate",
    "validation_loss",
    "images_per_second",
    "eta_s",
    "device_seconds",
    "money",
)


def export_training(p: Parts, key: str, params: Mapping[str, Json]) -> None:
    """Hand on what is new in ``metrics.jsonl`` and ``samples/`` since the last look at this job,
    by whomever: the parameters at the first look, of many new lines ``POINTS`` at even distances
    and the last one. How far it came stands in the job's folder; what was dropped by a tracker that
    is down is not sent again. Never raises for the tracker."""
    job = JobFolder(job_folder(p.workspace, key))
    state = job.read(_STATE)
    offset, last = int(state.get("offset", 0)), int(state.get("step", -1))
    lines, offset = _new_lines(job.root / METRICS, offset, last)
    picture = str(state.get("picture", ""))
    pictures = [f for f in sorted(job.root.glob("samples/*.png")) if f.name > picture]
    if state and not lines and not pictures:
        return
    if not state:
        p.tracker.log(key, params=params)
    for line in _spread(lines, POINTS):
        p.tracker.log(key, metrics=_metrics(line), step=int(line["step"]))
    for file in pictures:
        p.tracker.log(key, artifacts=file, step=int(file.stem))
    if job.root.is_dir():
        told = {
            "offset": offset,
            "step": int(lines[-1]["step"]) if lines else last,
            "picture": pictures[-1].name if pictures else picture,
        }
        write_json(job.root / f"{_STATE}.json", told)


def _new_lines(file: Path, offset: int, last: int) -> tuple[list[Mapping[str, Json]], int]:
    """Whole lines beyond ``offset`` of steps after ``last``, and where the next begins. A run that
    went on from a checkpoint has cut the file and writes the same steps again."""
    try:
        size = file.stat().st_size
        with file.open("rb") as handle:
            handle.seek(offset if offset <= size else 0)
            raw = handle.read()
            end = handle.tell()
    except FileNotFoundError:
        return [], offset
    whole, _, rest = raw.rpartition(b"\n")
    found: list[Mapping[str, Json]] = []
    for line in whole.split(b"\n"):
        with suppress(ValueError, KeyError, TypeError):  # where the file was cut in between
            read = json.loads(line)
            if int(read["step"]) > last:
                found.append(read)
    return found, end - len(rest)


def _spread(lines: list[Mapping[str, Json]], most: int) -> list[Mapping[str, Json]]:
    every = math.ceil(len(lines) / most) if lines else 1
    return lines[::-1][::every][::-1]


def _metrics(line: Mapping[str, Json]) -> dict[str, float]:
    """Numbers of a line; of the loss by tenth of the way from picture to noise, one series each."""
    found = {name: float(line[name]) for name in _SERIES if line.get(name) is not None}
    for tenth, loss in enumerate(line.get("loss_by_time") or ()):
        if loss is not None:
            found[f"loss_by_time.{tenth}"] = float(loss)
    return found
