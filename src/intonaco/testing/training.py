"""Twin and conformance checks of the TrainingBackend seam."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from intonaco.errors import NotFound
from intonaco.protocols import TrainingBackend
from intonaco.testing import require
from intonaco.testing.sample_job import sample_spec, starts_of
from intonaco.types import JobHandle, JobSpec, JobState, JobStatus, Json

Settle = Callable[[TrainingBackend, JobHandle], JobStatus]


@dataclass(slots=True)
class MemoryJob:
    """A job of the twin: what it is, how it stands, how often it was submitted."""

    spec: JobSpec
    status: JobStatus
    submits: int = 1


class MemoryTrainingBackend:
    """A backend whose jobs a test moves by hand: nothing runs.

    ``jobs`` holds them by key, in the order of their first submit. With ``on_submit`` a new job is
    over at once: the callable gives its result, and the job fails with what it raises.
    """

    name = "memory"

    def __init__(self, on_submit: Callable[[JobSpec], Mapping[str, Json]] | None = None) -> None:
        self.jobs: dict[str, MemoryJob] = {}
        self._on_submit = on_submit

    def submit(self, spec: JobSpec) -> JobHandle:
        if spec.key in self.jobs:
            self.jobs[spec.key].submits += 1
        else:
            self.jobs[spec.key] = MemoryJob(spec, JobStatus(state=JobState.RUNNING))
            if self._on_submit is not None:
                try:
                    self.finish(spec.key, self._on_submit(spec))
                except Exception as error:
                    self.fail(spec.key, str(error))
        return JobHandle(key=spec.key, backend=self.name, ref={})

    def poll(self, handle: JobHandle) -> JobStatus:
        return self._job(handle.key).status

    def cancel(self, handle: JobHandle) -> None:
        self._end(handle.key, state=JobState.CANCELLED)

    @property
    def running(self) -> list[str]:
        """Keys of the jobs that are not over."""
        return [key for key, job in self.jobs.items() if not job.status.state.final]

    def progress(self, key: str, **progress: Json) -> None:
        """Let a job say how far it is."""
        job = self._job(key)
        job.status = replace(job.status, progress=progress)

    def finish(
        self, key: str, result: Mapping[str, Json] | None = None, *, seconds: float = 1.0
    ) -> None:
        """Let a running job succeed; a job that is over is left as it is."""
        self._end(key, state=JobState.SUCCEEDED, result=result or {}, seconds=seconds)

    def fail(self, key: str, error: str = "it failed", *, seconds: float = 1.0) -> None:
        """Let a running job fail; a job that is over is left as it is."""
        self._end(key, state=JobState.FAILED, error=error, seconds=seconds)

    def _end(
        self,
        key: str,
        *,
        state: JobState,
        result: Mapping[str, Json] | None = None,
        error: str = "",
        seconds: float = 0.0,
    ) -> None:
        job = self._job(key)
        if not job.status.state.final:
            job.status = replace(
                job.status, state=state, result=result or {}, error=error, seconds=seconds
            )

    def _job(self, key: str) -> MemoryJob:
        try:
            return self.jobs[key]
        except KeyError:
            raise NotFound(f"no job has the key {key}") from None


def check_training_backend(
    make: Callable[[], TrainingBackend],
    folder: Path,
    settle: Settle,
    starts: Callable[[JobSpec], int] = starts_of,
) -> None:
    """Runs a backend through the protocol with jobs that succeed, fail and never end.

    ``make`` gives a backend; a second one made later must find the jobs of the first, as after a
    restart of the process. ``folder``: for files that the jobs write. ``settle`` waits until a job
    is over and gives its status. ``starts`` says how often a job truly started. Raises
    AssertionError.
    """
    backend = make()
    good = sample_spec("check:good:1", "succeed", folder / "good")
    handle = backend.submit(good)
    require(handle.key == good.key, f"the handle has the key {handle.key}")
    again = backend.submit(good)
    require(again.key == good.key, "a second submit has another key")
    status = settle(backend, handle)
    require(status.state is JobState.SUCCEEDED, f"a good job ended {status.state}: {status.error}")
    require(dict(status.result) == {"answer": 42}, f"its result came back as {status.result}")
    require(backend.poll(again) == status, "the two handles of one key tell different things")
    backend.cancel(handle)
    require(backend.poll(handle).state is JobState.SUCCEEDED, "cancel changed a finished job")

    later = make()
    adopted = later.submit(good)
    require(
        later.poll(adopted).state is JobState.SUCCEEDED,
        "a finished job was not adopted after a restart",
    )
    require(starts(good) == 1, f"one key was started {starts(good)} times")

    bad = sample_spec("check:bad:1", "fail", folder / "bad")
    status = settle(backend, backend.submit(bad))
    require(status.state is JobState.FAILED, f"a failing job ended {status.state}")
    require("told to fail" in status.error, f"its error says {status.error!r}")
    settle(later, later.submit(bad))
    require(starts(bad) == 1, "a failed job was started again under its key")

    endless = sample_spec("check:endless:1", "endless", folder / "endless")
    handle = backend.submit(endless)
    require(backend.poll(handle).state is JobState.RUNNING, "a job that runs is not RUNNING")
    adopted = later.submit(endless)
    require(later.poll(adopted).state is JobState.RUNNING, "a running job was not adopted")
    later.cancel(adopted)
    status = settle(backend, handle)
    require(status.state is JobState.CANCELLED, f"a cancelled job ended {status.state}")
    later.cancel(adopted)
    require(starts(endless) <= 1, "a running job was started twice")
