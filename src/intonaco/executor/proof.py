"""Effects that prove and publish releases: evaluation and registration."""

from __future__ import annotations

import json

from intonaco.evaluation import gate
from intonaco.evaluation.verdicts import decided
from intonaco.executor.evaluating import (
    check_configured,
    expected_shots,
    extractor_digest,
    payload,
    slices_of,
    tracked,
)
from intonaco.executor.jobs import job_seconds, run_job
from intonaco.executor.parts import Done, Failed, Outcome, Parts, Pending
from intonaco.jobs import job_folder
from intonaco.ledger import Effect
from intonaco.types import DatasetVersion, JobSpec, Update


def evaluate(p: Parts, effect: Effect) -> Outcome:
    update = p.ledger.get(Update, effect.subject)
    check_configured(p)
    digest = extractor_digest(p)
    if digest is None:
        return Pending()  # nobody has said yet which extractor judges live traffic
    made = {c.name: c.release_id for c in update.candidates if c.release_id}
    versions = [
        p.ledger.get(DatasetVersion, c.dataset_version)
        for c in update.candidates
        if c.dataset_version
    ]
    keep, improve = slices_of(p, update.champion, versions)
    spec = JobSpec(
        key=effect.key,
        entrypoint="intonaco.evaluation.job",
        payload=payload(
            p,
            champion=update.champion,
            candidates=made,
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
    status = run_job(p, spec)
    if isinstance(status, Pending | Failed):
        return status
    folder = job_folder(p.workspace, effect.key)
    report = json.loads((folder / str(status.result["report"])).read_text())
    decisions = decided(report, p.config.evaluation)
    p.tracker.log(
        effect.key,
        params={"champion": update.champion or "none", **made},
        metrics=tracked(decisions) | {"seconds": status.seconds},
        artifacts=folder / "out" / "report.html",
    )
    relative = p.workspace.relative(folder / "out")
    expected = {"extractor": digest, "shots": expected_shots(p)}
    return Done(
        {"report": report, "folder": relative, "seconds": status.seconds, "expected": expected}
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
