"""Effects that prove and publish releases: evaluation and registration."""

from __future__ import annotations

import json

from intonaco.config import Evaluation
from intonaco.evaluation import gate
from intonaco.evaluation.verdicts import decided
from intonaco.executor.evaluating import (
    check_configured,
    extractor_digest,
    log_report,
    payload,
    slices_of,
    tracked,
)
from intonaco.executor.jobs import job_seconds, run_job
from intonaco.executor.parts import Done, Failed, Outcome, Parts, Pending
from intonaco.jobs import JobFolder, job_folder
from intonaco.ledger import Effect
from intonaco.types import DatasetVersion, JobSpec, Update


def evaluate(p: Parts, effect: Effect) -> Outcome:
    """Result: ``report``, ``folder`` (the job's ``out``), ``seconds``, and ``expected``: what was
    fixed when it was asked for, by which the gate judges."""
    update = p.ledger.get(Update, effect.subject)
    spec = _asked(p, effect) or _to_ask(p, effect, update)
    if spec is None:
        return Pending()
    status = run_job(p, spec)
    if isinstance(status, Pending | Failed):
        return status
    fixed = spec.payload
    folder = job_folder(p.workspace, effect.key)
    report = json.loads((folder / str(status.result["report"])).read_text())
    decisions = decided(report, Evaluation.model_validate(fixed["settings"]))
    log_report(
        p,
        effect.key,
        folder / "out",
        params={
            "champion": update.champion or "none",
            **{c["name"]: c["release_id"] for c in fixed["candidates"]},
        },
        metrics=tracked(decisions) | {"seconds": status.seconds},
    )
    return Done(
        {
            "report": report,
            "folder": p.workspace.relative(folder / "out"),
            "seconds": status.seconds,
            "expected": {
                "extractor": fixed["extractor"]["digest"],
                "shots": fixed["shots"],
                "settings": fixed["settings"],
            },
        }
    )


def _asked(p: Parts, effect: Effect) -> JobSpec | None:
    """The job as it was asked for. What it is judged by was fixed then: prompts or margins that
    somebody changes while it runs are of the next evaluation, and no reason to lose this one."""
    job = JobFolder(job_folder(p.workspace, effect.key))
    return job.spec if (job.root / "spec.json").is_file() else None


def _to_ask(p: Parts, effect: Effect, update: Update) -> JobSpec | None:
    """None as long as nobody has said which extractor judges live traffic. Raises ConfigError,
    NotFound."""
    check_configured(p)
    digest = extractor_digest(p)
    if digest is None:
        return None
    versions = [
        p.ledger.get(DatasetVersion, c.dataset_version)
        for c in update.candidates
        if c.dataset_version
    ]
    keep, improve = slices_of(p, update.champion, versions)
    return JobSpec(
        key=effect.key,
        entrypoint="intonaco.evaluation.job",
        payload=payload(
            p,
            champion=update.champion,
            candidates={c.name: c.release_id for c in update.candidates if c.release_id},
            keep=keep,
            improve=improve,
            extractor=digest,
            attempt=update.update_id,
            at=update.created_at,
            context={"update": update.update_id, "cause": str(update.plan.cause)},
            superiority=gate.wants_superiority(update.plan.action),
            attempts=effect.payload.get("attempts"),
            alphas=effect.payload.get("alphas"),
        ),
        max_seconds=job_seconds(p.config, update, "evaluate"),
    )


def register(p: Parts, effect: Effect) -> Outcome:
    update = p.ledger.get(Update, effect.subject)
    candidate = update.candidate(str(effect.payload["name"]))
    release = p.releases.get(str(candidate.release_id))
    version = p.registry.register(
        release,
        p.releases.folder(release).parent,
        {
            "verdict": str(candidate.verdict),
            "recipe": candidate.name,
            "dataset_version": candidate.dataset_version or "",
            "update_id": update.update_id,
            "cause": str(update.plan.cause),
        },
    )
    return Done({"version": version})
