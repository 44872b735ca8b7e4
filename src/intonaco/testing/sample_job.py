"""A job for tests of training backends: ``python -m intonaco.testing.sample_job JOB_FOLDER``.

Payload: ``{"do": "succeed" | "fail" | "endless", "starts": FILE}``. Each start appends a line to
FILE, so that a test can count how often the job truly ran.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path

from intonaco.errors import ConfigError
from intonaco.jobs import JobFolder, main
from intonaco.types import JobSpec, Json

ENTRYPOINT = "intonaco.testing.sample_job"


def sample_spec(key: str, do: str, starts: Path) -> JobSpec:
    """A job that does as it is told."""
    return JobSpec(key=key, entrypoint=ENTRYPOINT, payload={"do": do, "starts": str(starts)})


def starts_of(spec: JobSpec) -> int:
    """How often the job of a ``sample_spec`` was started, by its own word."""
    file = Path(spec.payload["starts"])
    return len(file.read_text().splitlines()) if file.exists() else 0


def run(job: JobFolder) -> Mapping[str, Json]:
    """Raises ConfigError when told to fail; never ends when told so."""
    payload = job.payload
    with Path(payload["starts"]).open("a") as file:
        file.write(f"{os.getpid()}\n")
    job.progress("work", 0, 2, "begun")
    if payload["do"] == "fail":
        raise ConfigError("told to fail", hint="tell it to succeed")
    if payload["do"] == "endless":
        threading.Event().wait()
    (job.out / "made.txt").write_text("made")
    job.progress("work", 2, 2, "done")
    return {"answer": 42}


if __name__ == "__main__":
    main(run)
