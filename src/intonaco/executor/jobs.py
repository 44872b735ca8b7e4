"""Long work, kept by the training backend under the effect's key."""

from __future__ import annotations

from intonaco.config import Config
from intonaco.executor.parts import Failed, Parts, Pending
from intonaco.types import (
    JobSpec,
    JobState,
    JobStatus,
    Update,
)


def run_job(p: Parts, spec: JobSpec) -> JobStatus | Pending | Failed:
    handle = p.training.submit(spec)
    status = p.training.poll(handle)
    if status.state is JobState.RUNNING:
        return Pending()
    if status.state is not JobState.SUCCEEDED:
        return Failed(status.error or f"the job was {status.state}")
    return status


def job_seconds(config: Config, update: Update, name: str) -> float:
    """How long a job of an update may take: its share of the reservation, if that was limited."""
    return min(config.training.max_seconds, update.plan.limits.get(name, float("inf")))
