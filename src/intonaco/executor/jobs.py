"""Long work, kept by the training backend under the effect's key."""

from __future__ import annotations

from collections.abc import Mapping

from intonaco.config import Config
from intonaco.executor.parts import Failed, Parts, Pending
from intonaco.types import (
    JobSpec,
    JobState,
    JobStatus,
    Json,
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


def job_ceiling(config: Config, update: Update, name: str) -> Mapping[str, Json]:
    """What a training job is told of its limits, so that it ends by itself with what it has: the
    time after which it is ended, and its share of the reserved money if money was reserved."""
    price = config.decision.budget.hourly_price
    told: dict[str, Json] = {
        "max_seconds": job_seconds(config, update, name),
        "hourly_price": price,
    }
    limit = update.plan.limits.get(name)
    if limit is not None and price > 0:
        told["max_money"] = limit / 3600.0 * price
    return told
