"""Effects on data: dataset versions, and how much labelled data there is."""

from __future__ import annotations

import tempfile
from pathlib import Path

from intonaco.codec import digest
from intonaco.datasets import curation, replay
from intonaco.errors import ConfigError
from intonaco.executor.parts import Done, Outcome, Parts
from intonaco.ledger import Effect
from intonaco.types import (
    Action,
    DatasetVersion,
    Finding,
    Update,
)


def dataset(p: Parts, effect: Effect) -> Outcome:
    update = p.ledger.get(Update, effect.subject)
    recipe = p.config.training.recipes[str(effect.payload["name"])]
    base = dataset_of(p, update.champion)
    if base is None:
        if p.config.data.train is None:
            raise ConfigError("data.train: not given, and there is no release to start from")
        version = p.datasets.put(p.workspace.resolve(p.config.data.train), name="train")
        return _have_dataset(p, version, f"{version.items} items of data.train")
    fresh = _fresh_items(p, update)
    if not fresh and update.plan.action is Action.FULL_RETRAIN:
        return _have_dataset(p, base, f"{base.items} items that the champion learnt from")
    if not fresh:
        raise ConfigError(
            "data.pool: no labelled item belongs to what moved",
            hint="label some of the requests that the finding shows and add them to data.pool",
        )
    old = curation.read_folder(p.datasets.open(base.version))
    items, mix = [*fresh, *old], None
    if update.plan.action is Action.FINE_TUNE:
        seed = int(digest([update.update_id, effect.payload["name"]])[:8], 16)
        items, mix = replay.mix(
            fresh, old, recipe.replay, sampling=recipe.replay_sampling, seed=seed
        )
    with tempfile.TemporaryDirectory(dir=p.workspace.root) as folder:
        target = Path(folder) / "items"
        curation.write_folder(items, target)
        version = p.datasets.put(
            target,
            name=str(effect.payload["name"]),
            parents=(base.version,),
            replay=mix.share if mix else 0.0,
            mix=mix,
        )
    replayed = len(items) - len(fresh)
    return _have_dataset(p, version, f"{len(fresh)} new items and {replayed} of old")


def _fresh_items(p: Parts, update: Update) -> list[curation.Item]:
    """Items that the plan wants learnt: of the dataset version that set it off, those that the
    champion has not seen; else of the pool, those nearest to a moved cluster."""
    if update.plan.dataset_version is not None:
        return _new_in(p, update.plan.dataset_version, dataset_of(p, update.champion))
    if p.config.data.pool is None:
        return []
    pool = curation.read_folder(p.workspace.resolve(p.config.data.pool))
    if not update.plan.clusters:
        return pool
    vectors = p.embed([item.texts[0] for item in pool])
    return curation.select_moved(pool, vectors, update.plan.clusters)


def _new_in(p: Parts, version: str, base: DatasetVersion | None) -> list[curation.Item]:
    folder = p.datasets.open(version)
    items = curation.read_folder(folder)
    if base is None:
        return items
    difference = p.datasets.diff(base.version, version)
    new = {*difference.added, *difference.changed}
    return [i for i in items if i.file.relative_to(folder).as_posix() in new]


def labelled(p: Parts, effect: Effect) -> Outcome:
    """How many labelled items of the pool belong to what a finding says has moved."""
    finding = p.ledger.get(Finding, str(effect.payload["finding"]))
    pool = curation.read_folder(p.workspace.resolve(str(p.config.data.pool)))
    vectors = p.embed([item.texts[0] for item in pool])
    return Done({"items": len(curation.select_moved(pool, vectors, finding.clusters))})


def _have_dataset(p: Parts, version: DatasetVersion, text: str) -> Done:
    with p.ledger.begin() as tx:
        tx.put(version, id=version.version, at=p.clock.now())
    return Done({"version": version.version, "text": text})


def dataset_of(p: Parts, release_id: str | None) -> DatasetVersion | None:
    if release_id is None:
        return None
    version = p.releases.get(release_id).provenance.dataset_version
    return p.ledger.find(DatasetVersion, version) if version else None
