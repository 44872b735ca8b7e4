"""Effects that prove and publish releases: evaluation and registration."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

from intonaco.environments import EnvironmentStore, Way
from intonaco.errors import ConfigError
from intonaco.evaluation.prompts import read_prompts, shots, shots_digest
from intonaco.executor.data import dataset_of
from intonaco.executor.jobs import job_seconds, run_job
from intonaco.executor.parts import Done, Failed, Outcome, Parts, Pending
from intonaco.jobs import job_folder
from intonaco.ledger import Effect
from intonaco.sources import is_remote
from intonaco.types import (
    DatasetVersion,
    JobSpec,
    Json,
    Release,
    Update,
)
from intonaco.upstreams import in_force, is_upstream, read_facts


def _found_from_anywhere(p: Parts, path: str) -> str:
    return path if is_remote(path) else str(p.workspace.resolve(path).resolve())


def evaluate(p: Parts, effect: Effect) -> Outcome:
    config = p.config.evaluation
    update = p.ledger.get(Update, effect.subject)
    if config.prompts is None or p.config.data.reference is None or p.config.extractor is None:
        raise ConfigError("evaluation.prompts, data.reference and extractor are needed to evaluate")
    digest = p.config.extractor.digest or _scorers_digest(p)
    if digest is None:
        return Pending()  # nobody has said yet which extractor judges live traffic
    champion_data = dataset_of(p, update.champion)
    versions = [
        p.ledger.get(DatasetVersion, c.dataset_version)
        for c in update.candidates
        if c.dataset_version
    ]
    learnt = sorted({topic for v in versions for topic in v.topics})
    keep = sorted(champion_data.topics) if champion_data else learnt
    made = [c for c in update.candidates if c.release_id]
    drawn = [c.release_id for c in made] + [update.champion]
    environments = _environments(p, [p.releases.get(r) for r in drawn if r])
    spec = JobSpec(
        key=effect.key,
        entrypoint="intonaco.evaluation.job",
        payload={
            "champion": _arm(p, "champion", update.champion) if update.champion else None,
            "candidates": [_arm(p, c.name, str(c.release_id)) for c in made],
            "prompts": str(p.workspace.resolve(config.prompts).resolve()),
            "reference": str(p.workspace.resolve(p.config.data.reference).resolve()),
            "extractor": {
                **p.config.extractor.model_dump(),
                "path": _found_from_anywhere(p, p.config.extractor.path),
                "digest": digest,
            },
            "seeds_per_prompt": config.seeds_per_prompt,
            "batch_size": config.batch_size,
            "latency_rounds": config.latency_rounds,
            "threads": config.threads,
            "alpha": config.alpha,
            "alphas": dict(effect.payload.get("alphas", {})),
            "success": list(config.success),
            "floor_adherence": config.floor_adherence,
            "margins": config.margins.model_dump(),
            "dtype": p.config.model.dtype,
            "generation": p.config.model.generation.model_dump(),
            "keep": keep,
            "improve": sorted(set(learnt) - set(keep)),
            "environments": environments,
            "cache": str((p.workspace.root / "evaluations").resolve()),
        },
        max_seconds=job_seconds(p.config, update, "evaluate"),
    )
    status = run_job(p, spec)
    if isinstance(status, Pending | Failed):
        return status
    folder = job_folder(p.workspace, effect.key)
    report = json.loads((folder / str(status.result["report"])).read_text())
    relative = p.workspace.relative(folder / "out")
    expected = {"extractor": digest, "shots": expected_shots(p)}
    return Done(
        {"report": report, "folder": relative, "seconds": status.seconds, "expected": expected}
    )


def expected_shots(p: Parts) -> str:
    """Digest of what ``evaluation.prompts`` asks of every arm. Raises ConfigError."""
    config = p.config.evaluation
    prompts = read_prompts(p.workspace.resolve(str(config.prompts)))
    return shots_digest(shots(prompts, config.seeds_per_prompt))


def _scorers_digest(p: Parts) -> str | None:
    """The extractor that the scorer loaded: candidates are judged by the same."""
    scorer = p.workspace.process("scorer")
    return str(scorer.facts["digest"]) if scorer and scorer.facts.get("digest") else None


def _arm(p: Parts, name: str, release_id: str) -> Mapping[str, Json]:
    release = p.releases.get(release_id)
    upstream = _upstream(p, release)
    return {
        **({"upstream": upstream} if upstream is not None else {}),
        "name": name,
        "release_id": release_id,
        "path": str(p.releases.folder(release).resolve()),
        "generation": dict(release.serving.generation),
        "environment": release.serving.environment,
    }


def _upstream(p: Parts, release: Release) -> Mapping[str, Json] | None:
    """How to ask the server that a release is, as far as the configuration may change it; None for
    a release of ours. Raises StorageError."""
    if not is_upstream(release):
        return None
    name, upstream = read_facts(p.releases.folder(release), release)
    return in_force(upstream, p.config.serving.upstreams.get(name)).operational()


def _environments(p: Parts, releases: Sequence[Release]) -> Mapping[str, Json] | None:
    """What the job needs to draw each arm in its own environment; None if all are drawn here.
    Raises ConfigError for one that cannot be had."""
    serving = p.config.serving
    if serving.environments == "ignore":
        return None
    store = EnvironmentStore(p.workspace)
    for release in releases:
        if is_upstream(release):
            continue
        environment = release.serving.environment
        store.adopt(environment, p.releases.folder(release).parent / "lock.txt")
        # "Never since": a build that failed for serving may be tried again by the job.
        choice = store.choose(environment, mode=serving.environments, now=math.inf)
        if choice.way is Way.REFUSED:
            raise ConfigError(f"release {release.short} cannot be drawn: {choice.text}")
    return {
        "workspace": str(p.workspace.root.resolve()),
        "base": serving.environment_base,
        "timeout_s": serving.environment_timeout_s,
    }


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
