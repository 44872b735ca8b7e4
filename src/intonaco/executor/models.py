"""Effects that make releases: training and assembling."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from intonaco.config import Recipe
from intonaco.environments import EnvironmentStore
from intonaco.errors import ConfigError
from intonaco.executor.jobs import job_ceiling, job_seconds, run_job
from intonaco.executor.parts import Done, Failed, Outcome, Parts, Pending
from intonaco.jobs import job_folder
from intonaco.ledger import Effect
from intonaco.releases import check_folder, read_serving_spec
from intonaco.sources import local_folder
from intonaco.types import (
    JobSpec,
    Json,
    Provenance,
    Release,
    ServingSpec,
    Update,
)
from intonaco.upstreams import read_facts, serving_spec, write_facts


def train(p: Parts, effect: Effect) -> Outcome:
    update = p.ledger.get(Update, effect.subject)
    candidate = update.candidate(str(effect.payload["name"]))
    recipe = p.config.training.recipes[candidate.name]
    champion = p.releases.get(update.champion) if update.champion else None
    spec = JobSpec(
        key=effect.key,
        entrypoint="intonaco.training.job",
        payload={
            "recipe": recipe.model_dump(mode="json"),
            "dataset": str(p.datasets.open(str(candidate.dataset_version)).resolve()),
            "base": _base(p, recipe, champion),
            **_adapters_of(recipe, champion),
            **_held_out(p, recipe),
            "dataset_version": candidate.dataset_version,
            "cache": str(p.workspace.encoded.resolve()),
            "cache_gb": p.config.training.cache_gb,
            **job_ceiling(p.config, update, candidate.name),
        },
        max_seconds=job_seconds(p.config, update, candidate.name),
    )
    status = run_job(p, spec)
    if isinstance(status, Pending | Failed):
        return status
    folder = job_folder(p.workspace, effect.key) / str(status.result["pipeline"])
    generation = champion.serving.generation if champion else p.config.model.generation.model_dump()
    adapters = tuple(status.result.get("adapters", ()))
    serving = read_serving_spec(
        folder,
        generation=generation,
        **_options(p),
        adapters=adapters,
        fused=recipe.method == "lora" and not adapters,
    )
    release = p.releases.add(
        folder,
        serving,
        Provenance(
            created_at=p.clock.now(),
            parent=update.champion,
            recipe=candidate.name,
            dataset_version=candidate.dataset_version,
            training_job=effect.key,
            update_id=update.update_id,
            code_revision=code_revision(),
            note=update.plan.reason,
        ),
    )
    _have_release(p, release)
    seconds = status.seconds
    cost = seconds / 3600 * p.config.decision.budget.hourly_price
    p.tracker.log(
        effect.key,
        params={"recipe": candidate.name, **recipe.model_dump(mode="json")},
        metrics={
            "seconds": seconds,
            "cost": cost,
            **{k: float(v) for k, v in status.result.items() if isinstance(v, int | float)},
        },
    )
    return Done(
        {
            "release_id": release.release_id,
            "seconds": seconds,
            "cost": cost,
            "stopped": status.result.get("stopped"),
        }
    )


def _base(p: Parts, recipe: Recipe, champion: Release | None) -> str | None:
    if recipe.init == "champion":
        if champion is None:
            raise ConfigError(
                "training.recipes: init is 'champion', but there is no champion yet",
                hint="give a folder or module:callable as init of the recipe",
            )
        return str(p.releases.folder(champion).resolve())
    if ":" in recipe.init:
        return None
    return str(p.workspace.resolve(recipe.init).resolve())


def _adapters_of(recipe: Recipe, champion: Release | None) -> Mapping[str, Json]:
    """What stands beside the weights that the recipe starts from."""
    if recipe.init != "champion" or champion is None:
        return {}
    return {"adapters": list(champion.serving.adapters), "fused": champion.serving.fused}


def _held_out(p: Parts, recipe: Recipe) -> Mapping[str, Json]:
    """Where the items are that the recipe wants its loss on. Raises ConfigError."""
    if recipe.validation is None:
        return {}
    if p.config.data.reference is None:
        raise ConfigError(
            "training.recipes: validation needs data.reference",
            hint="name a folder of held-out items, or take validation out of the recipe",
        )
    return {"validation": str(p.workspace.resolve(p.config.data.reference).resolve())}


def assemble(p: Parts, effect: Effect) -> Outcome:
    """A release from the champion's weights with another sampler, other defaults or in another
    environment; without a champion, from the folder that ``model.path`` names. Where other people's
    servers serve, a release of what is declared of one."""
    update = p.ledger.get(Update, effect.subject)
    champion = p.releases.get(update.champion) if update.champion else None
    change = update.plan.assemble
    serving = champion.serving if champion else None
    generation = {
        **(serving.generation if serving else p.config.model.generation.model_dump()),
        **change.get("generation", {}),
    }
    dataset_version = champion.provenance.dataset_version if champion else None
    with tempfile.TemporaryDirectory(dir=p.workspace.root) as temporary:
        folder = Path(temporary) / "pipeline"
        if p.config.serving.type == "http":
            spec = _declared(p, folder, change, champion, generation)
        else:
            shutil.copytree(_weights(p, champion), folder)
            if change.get("scheduler"):
                _change_scheduler(folder, change["scheduler"])
            spec = read_serving_spec(
                folder,
                generation=generation,
                **(_options_of(serving) if serving else _options(p)),
                adapters=serving.adapters if serving else p.config.model.adapters,
                fused=serving.fused if serving else p.config.model.fused,
                environment=_environment(p, change.get("environment"), champion),
            )
        release = p.releases.add(
            folder,
            spec,
            Provenance(
                created_at=p.clock.now(),
                parent=update.champion,
                recipe=str(effect.payload["name"]),
                dataset_version=dataset_version,
                update_id=update.update_id,
                code_revision=code_revision(),
                note=update.plan.reason,
            ),
        )
    _have_release(p, release)
    return Done({"release_id": release.release_id, "dataset_version": dataset_version})


def _declared(
    p: Parts,
    folder: Path,
    change: Mapping[str, Json],
    champion: Release | None,
    generation: Mapping[str, Json],
) -> ServingSpec:
    """The declaration of the upstream that is asked for, else of the champion's, as it is now.
    Raises ConfigError."""
    for field in ("scheduler", "environment"):
        if change.get(field):
            raise ConfigError(f"{field}: the model is served elsewhere, and its owner chooses it")
    name = str(change.get("upstream") or "")
    if not name and champion is not None:
        name, _ = read_facts(p.releases.folder(champion), champion)
    upstream = p.config.serving.upstreams.get(name)
    if upstream is None:
        raise ConfigError(f"serving.upstreams: there is no {name!r}")
    write_facts(folder, name, upstream)
    return serving_spec(name, upstream, generation)


def _environment(p: Parts, wanted: Json, champion: Release | None) -> str | None:
    """Where an assembled release runs: where it is asked to, else where the champion does if that
    can be built again, else here. Raises NotFound."""
    known = EnvironmentStore(p.workspace)
    if wanted:
        return known.lock(str(wanted)).digest
    if champion is not None and known.knows(champion.serving.environment):
        return champion.serving.environment
    return None


def _weights(p: Parts, champion: Release | None) -> Path:
    """The pipeline folder that a release is assembled from."""
    if champion is not None:
        return p.releases.folder(champion)
    if p.config.model.path is None:
        raise ConfigError("model.path: not given, and there is no champion to assemble from")
    folder = local_folder(p.config.model.path, p.workspace)
    check_folder(folder)
    return folder


def _options(p: Parts) -> dict[str, Any]:
    """Those of the configuration that are facts of a release."""
    model = p.config.model
    return {
        "dtype": model.dtype,
        "attention": model.attention,
        "compile": model.compile,
        "options": model.options,
    }


def _options_of(serving: ServingSpec) -> dict[str, Any]:
    return {
        "dtype": serving.dtype,
        "attention": serving.attention,
        "compile": serving.compile,
        "options": serving.options,
        "safety_filter": serving.safety_filter,
    }


def _have_release(p: Parts, release: Release) -> None:
    with p.ledger.begin() as tx:
        tx.put(release, id=release.release_id, at=release.provenance.created_at)


def code_revision() -> str | None:
    """The git revision that this code runs from, if it runs from a checkout."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _change_scheduler(folder: Path, change: Mapping[str, Json]) -> None:
    """Write another sampler into a pipeline folder: {"class": name, "config": {…}}."""
    index = json.loads((folder / "model_index.json").read_text())
    file = folder / "scheduler" / "scheduler_config.json"
    config = {**json.loads(file.read_text()), **change.get("config", {})}
    if change.get("class"):
        index["scheduler"] = ["diffusers", change["class"]]
        config["_class_name"] = change["class"]
    for path, value in ((folder / "model_index.json", index), (file, config)):
        path.unlink()
        path.write_text(json.dumps(value, indent=2) + "\n")
