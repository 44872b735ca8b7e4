"""Effects that make releases without training, and what all makers of releases share."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from intonaco.environments import EnvironmentStore
from intonaco.errors import ConfigError
from intonaco.executor.parts import Done, Outcome, Parts
from intonaco.ledger import Effect
from intonaco.releases import check_folder, read_serving_spec
from intonaco.sources import local_folder
from intonaco.types import (
    Json,
    Provenance,
    Release,
    ServingSpec,
    Update,
)
from intonaco.upstreams import read_facts, serving_spec, write_facts


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
                **(_options_of(serving) if serving else options(p)),
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
    have_release(p, release)
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


def options(p: Parts) -> dict[str, Any]:
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


def have_release(p: Parts, release: Release) -> None:
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
