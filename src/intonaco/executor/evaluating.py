"""The payload of an evaluation: releases, configuration and data to what the job reads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from intonaco.environments import EnvironmentStore, Way
from intonaco.errors import ConfigError
from intonaco.evaluation.gate import GateDecision
from intonaco.evaluation.prompts import hidden, read_prompts, shots, shots_digest
from intonaco.executor.data import dataset_of
from intonaco.executor.parts import Parts
from intonaco.sources import is_remote
from intonaco.types import DatasetVersion, Json, Release
from intonaco.upstreams import in_force, is_upstream, read_facts


def check_configured(p: Parts) -> None:
    """Raises ConfigError if something that every evaluation needs is not given."""
    wanted = {
        "evaluation.prompts": p.config.evaluation.prompts,
        "data.reference": p.config.data.reference,
        "extractor": p.config.extractor,
    }
    if missing := [name for name, value in wanted.items() if value is None]:
        raise ConfigError(
            f"{', '.join(missing)}: needed to evaluate",
            hint="docs/guides/evaluate.md says what each is",
        )


def check_evaluable(p: Parts) -> None:
    """The same, and if prompts or reference are not there or cannot be read."""
    check_configured(p)
    read_prompts(p.workspace.resolve(str(p.config.evaluation.prompts)))
    reference = p.workspace.resolve(str(p.config.data.reference))
    if not reference.is_dir():
        raise ConfigError(f"data.reference: there is no folder {reference}")


def extractor_digest(p: Parts) -> str | None:
    """The extractor that every arm is judged by: the configured one, else the one that the scorer
    loaded for live traffic; None if nobody has said yet."""
    assert p.config.extractor is not None
    if p.config.extractor.digest:
        return p.config.extractor.digest
    scorer = p.workspace.process("scorer")
    return str(scorer.facts["digest"]) if scorer and scorer.facts.get("digest") else None


def slices_of(
    p: Parts, champion: str | None, versions: Sequence[DatasetVersion]
) -> tuple[list[str], list[str]]:
    """(to keep, to improve): the topics that the champion learnt, and those that only candidates
    did. ``versions``: what candidates learnt from."""
    before = dataset_of(p, champion)
    learnt = sorted({topic for v in versions for topic in v.topics})
    keep = sorted(before.topics) if before else learnt
    return keep, sorted(set(learnt) - set(keep))


def payload(
    p: Parts,
    *,
    champion: str | None,
    candidates: Mapping[str, str],
    keep: Sequence[str],
    improve: Sequence[str],
    extractor: str | None,
    attempt: str,
    at: float,
    context: Mapping[str, Json],
    superiority: bool | None = None,
    attempts: Mapping[str, Json] | None = None,
    alphas: Mapping[str, Json] | None = None,
) -> dict[str, Json]:
    """``candidates``: release by name. ``extractor``: digest that is insisted on. ``attempt`` and
    ``at`` say which prompts are hidden: they must not change while the job is known.
    ``superiority``: whether something must improve; None: if there is a slice to improve.
    ``attempts`` and ``alphas``: by candidate, as the loop fixed them. Raises ConfigError,
    NotFound."""
    check_configured(p)
    config = p.config.evaluation
    assert config.prompts is not None
    assert p.config.data.reference is not None
    assert p.config.extractor is not None
    prompts = p.workspace.resolve(config.prompts).resolve()
    drawn = [r for r in (*candidates.values(), champion) if r]
    period = hidden_period(p, attempt=attempt, at=at)
    golden = read_prompts(prompts)
    secret = hidden(
        golden,
        share=config.hidden.share,
        period=period,
        key=p.workspace.instance_key(),
    )
    versions = {v.version for r in drawn if (v := dataset_of(p, r)) is not None}
    return {
        "champion": _arm(p, "champion", champion) if champion else None,
        "candidates": [_arm(p, name, release) for name, release in candidates.items()],
        "prompts": str(prompts),
        "shots": shots_digest(shots(golden, config.seeds_per_prompt)),
        "reference": str(p.workspace.resolve(p.config.data.reference).resolve()),
        "extractor": {
            **p.config.extractor.model_dump(),
            "path": _from_anywhere(p, p.config.extractor.path),
            "digest": extractor,
        },
        "seeds_per_prompt": config.seeds_per_prompt,
        "batch_size": config.batch_size,
        "latency_rounds": config.latency_rounds,
        "threads": config.threads,
        "alpha": config.alpha,
        "alphas": dict(alphas or {}),
        "attempts": dict(attempts or {}),
        "superiority": superiority,
        "success": list(config.success),
        "settings": config.model_dump(mode="json"),
        "dtype": p.config.model.dtype,
        "generation": p.config.model.generation.model_dump(),
        "keep": list(keep),
        "improve": list(improve),
        "hidden": sorted(secret),
        "hidden_period": period,
        "training": {v: str(p.datasets.open(v).resolve()) for v in sorted(versions)},
        "heads": {
            name: head.model_dump() for name, head in p.config.monitoring.scoring.heads.items()
        },
        "heads_root": str(p.workspace.root.resolve()),
        "unsafe": _unsafe(p),
        "environments": _environments(p, [p.releases.get(r) for r in drawn]),
        "benchmark": _benchmark(p),
        "cache": str(p.workspace.evaluations.resolve()),
        "context": {"service": p.config.service, **context},
    }


def hidden_period(p: Parts, *, attempt: str, at: float) -> str:
    """Names the stretch in which the same prompts are hidden."""
    if p.config.evaluation.hidden.rotate == "month":
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m")
    return attempt


def tracked(decisions: Mapping[str, GateDecision]) -> dict[str, float]:
    """Differences of every metric, as a tracker takes them."""
    found: dict[str, float] = {}
    for name, decision in decisions.items():
        for m in decision.metrics:
            value = m.difference if m.difference is not None else m.candidate
            if value is not None:
                found[f"{name}/{m.metric}" + (f"/{m.slice}" if m.slice else "")] = value
    return found


def log_report(
    p: Parts,
    key: str,
    folder: Path,
    *,
    params: Mapping[str, Json],
    metrics: Mapping[str, float],
) -> None:
    """Hand an evaluation to the tracker, its page and its facts as artifacts. ``folder``: that of
    ``report.html`` and ``report.json``."""
    p.tracker.log(key, params=params, metrics=metrics, artifacts=folder / "report.html")
    p.tracker.log(key, artifacts=folder / "report.json")


def _benchmark(p: Parts) -> Mapping[str, Json] | None:
    config, serving = p.config.evaluation.benchmark, p.config.serving
    if not config.in_worker or serving.type != "local":
        return None
    return {
        "workspace": str(p.workspace.root.resolve()),
        "worker": serving.worker.model_dump(mode="json"),
        "concurrency": config.concurrency,
        "waves": config.waves,
        "hourly_price": serving.hourly_price,
        "currency": p.config.decision.budget.currency,
    }


def _unsafe(p: Parts) -> Mapping[str, Json] | None:
    """When the configured safety signal calls a picture unsafe."""
    for signal in p.config.monitoring.signals.values():
        if signal.of == "safety" and signal.score is not None:
            return {"score": signal.score, "above": signal.unsafe_above}
    return None


def _from_anywhere(p: Parts, path: str) -> str:
    return path if is_remote(path) else str(p.workspace.resolve(path).resolve())


def _arm(p: Parts, name: str, release_id: str) -> Mapping[str, Json]:
    release = p.releases.get(release_id)
    upstream = _upstream(p, release)
    learnt = dataset_of(p, release_id)
    return {
        **({"upstream": upstream} if upstream is not None else {}),
        "name": name,
        "release_id": release_id,
        "path": str(p.releases.folder(release).resolve()),
        "generation": dict(release.serving.generation),
        "environment": release.serving.environment,
        "training": [] if learnt is None else [learnt.version],
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
