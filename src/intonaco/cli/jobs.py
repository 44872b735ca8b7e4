"""A job that somebody waits for at the keyboard."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from intonaco.cli.common import ago
from intonaco.errors import BackendError
from intonaco.executor import Parts
from intonaco.jobs import JobFolder, job_folder
from intonaco.types import JobHandle, JobState, JobStatus, Json

POLL_S = 0.2
LOOK_S = 2.0  # between two calls of what looks at a job beside the bar


def wait_for(
    p: Parts,
    handle: JobHandle,
    *,
    what: str,
    quiet: bool,
    look: Callable[[], None] = lambda: None,
) -> JobStatus:
    """How a job ended, with a bar on the terminal meanwhile; ``look`` is called now and then.
    Ctrl-C cancels the job, with all its processes, and is raised on. Raises BackendError if it
    failed; ``what`` names it there."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[text]}", markup=False),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal,
    )
    looked = time.monotonic()
    with bar:
        task = bar.add_task("starting", total=None, text="")
        try:
            while (status := p.training.poll(handle)).state is JobState.RUNNING:
                if done := status.progress:
                    bar.update(
                        task,
                        description=str(done.get("phase", "")),
                        completed=int(done.get("step", 0)),
                        total=int(done.get("total", 0)) or None,
                        text=text_of(done),
                    )
                if time.monotonic() - looked > LOOK_S:
                    look()
                    looked = time.monotonic()
                time.sleep(POLL_S)
        except KeyboardInterrupt:
            p.training.cancel(handle)
            raise
    if status.state is not JobState.SUCCEEDED:
        folder = job_folder(p.workspace, handle.key)
        said = JobFolder(folder).read("error")
        raise BackendError(
            status.error or f"{what} was {status.state}",
            backend=handle.backend,
            retriable=False,
            hint=str(said.get("hint") or f"its log is {folder / 'log.txt'}"),
        )
    return status


def text_of(progress: Mapping[str, Json]) -> str:
    """What a job says of itself, with the time and money that a training tells beside."""
    text = str(progress.get("text", ""))
    if (eta := progress.get("eta_s")) is not None:
        text += f", {ago(float(eta))} left"
    if money := progress.get("money"):
        text += f", cost {float(money):.2f}"
    return text
