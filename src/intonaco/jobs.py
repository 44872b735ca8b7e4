"""The folder that a job and its backend share.

``spec.json`` is written by the backend before the start; the job writes ``progress.json`` as it
goes and ``result.json`` or ``error.json`` at its end, each atomically; ``out/`` holds what it made
and ``log.txt`` what it printed. A job is a module run as ``python -m MODULE JOB_FOLDER`` whose
``__main__`` part calls ``main(run)``.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from intonaco.codec import decode
from intonaco.errors import IntonacoError
from intonaco.types import JobSpec, Json
from intonaco.workspace import Workspace, write_json


def job_folder(workspace: Workspace, key: str) -> Path:
    """Where the job with that key lives. Keys may hold what a file name may not."""
    return workspace.jobs / hashlib.sha256(key.encode()).hexdigest()[:16]


@dataclass(slots=True)
class JobFolder:
    """One job's folder."""

    root: Path
    _last_progress: float = field(default=0.0, init=False)

    @property
    def spec(self) -> JobSpec:
        return decode(JobSpec, (self.root / "spec.json").read_bytes())

    @property
    def payload(self) -> Mapping[str, Json]:
        return self.spec.payload

    @property
    def out(self) -> Path:
        path = self.root / "out"
        path.mkdir(exist_ok=True)
        return path

    def progress(self, phase: str, step: int, total: int, text: str = "", **extra: Json) -> None:
        """Say how far it is. Written at most five times a second, the last step always."""
        now = time.monotonic()
        if step < total and now - self._last_progress < 0.2:
            return
        self._last_progress = now
        write_json(
            self.root / "progress.json",
            {"phase": phase, "step": step, "total": total, "text": text, **extra},
        )

    def read(self, name: str) -> Mapping[str, Json]:
        """Contents of ``progress``, ``result`` or ``error``; empty if not there."""
        try:
            value: Mapping[str, Json] = json.loads((self.root / f"{name}.json").read_text())
        except FileNotFoundError:
            return {}
        return value


def main(run: Callable[[JobFolder], Mapping[str, Json]]) -> None:
    """Run a job in the folder given on the command line and exit: 0 done, 4 failed."""
    job = JobFolder(Path(sys.argv[1]))
    try:
        result = run(job)
    except IntonacoError as error:
        write_json(job.root / "error.json", {"message": str(error), "hint": error.hint})
        sys.exit(4)
    except Exception as error:
        traceback.print_exc()
        write_json(job.root / "error.json", {"message": f"{type(error).__name__}: {error}"})
        sys.exit(4)
    write_json(job.root / "result.json", result)
