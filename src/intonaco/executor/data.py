"""Effects on data: dataset versions, and how much labelled data there is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from intonaco.codec import digest
from intonaco.config import Recipe
from intonaco.datasets import checking, curation, replay
from intonaco.datasets.generated import bound_generated
from intonaco.datasets.objects import staging
from intonaco.datasets.validation import validate
from intonaco.errors import ConfigError, Conflict
from intonaco.executor import curating
from intonaco.executor.parts import Done, Outcome, Parts, Pending
from intonaco.ledger import Effect
from intonaco.types import (
    Action,
    DatasetVersion,
    Finding,
    ReplayMix,
    Update,
)


def dataset(p: Parts, effect: Effect) -> Outcome:
    update = p.ledger.get(Update, effect.subject)
    if update.phase.final:  # cancelled while it waited: nobody is to be asked for its data
        raise Conflict(f"update {update.update_id} is {update.phase}")
    recipe = p.config.training.recipes[str(effect.payload["name"])]
    base = dataset_of(p, update.champion)
    if base is None:
        if p.config.data.train is None:
            raise ConfigError("data.train: not given, and there is no release to start from")
        version, out = put_checked(p, p.workspace.resolve(p.config.data.train), name="train")
        return _have_dataset(p, version, f"{version.items} items of data.train{out}")
    curated = curating.curated(p, update)
    if isinstance(curated, Pending):
        return curated
    fresh = [*_without_withdrawn(p, _fresh_items(p, update)), *curated]
    learnt = curation.read_folder(p.datasets.open(base.version))
    old = _without_withdrawn(p, learnt)
    if not fresh and update.plan.action is Action.FULL_RETRAIN and len(old) == len(learnt):
        return _have_dataset(p, base, f"{base.items} items that the champion learnt from")
    if not fresh and update.plan.action is not Action.FULL_RETRAIN:
        raise ConfigError(
            "data.pool: no labelled item belongs to what moved",
            hint="label some of the requests that the finding shows and add them to data.pool",
        )
    recipe_of_replay = recipe if update.plan.action is Action.FINE_TUNE else None
    seed = int(digest([update.update_id, effect.payload["name"]])[:8], 16)
    items, mix = _mixed(p, fresh, old, recipe_of_replay, seed)
    replayed = len(items) - len({i.file for i in items} & {i.file for i in fresh})
    with staging(p.workspace.datasets) as folder:
        target = folder / "items"
        curation.write_folder(items, target)
        version, out = put_checked(
            p,
            target,
            name=str(effect.payload["name"]),
            parents=(base.version,),
            replay=mix.share if mix else 0.0,
            mix=mix,
        )
    text = f"{len(items) - replayed} new items and {replayed} of old{out}"
    if generated := sum(item.generated for item in items):
        text += f"; {generated} were made by a model"
    return _have_dataset(p, version, text)


def _mixed(
    p: Parts,
    fresh: list[curation.Item],
    old: list[curation.Item],
    recipe: Recipe | None,
    seed: int,
) -> tuple[list[curation.Item], ReplayMix | None]:
    """New items with old ones as the recipe says (None: all), and with more real old ones where a
    model made too many; and the mix that came of it."""
    items, mix = [*fresh, *old], None
    if recipe is not None:
        items, mix = replay.mix(
            fresh, old, recipe.replay, sampling=recipe.replay_sampling, seed=seed
        )
    if not any(item.generated for item in items):
        return items, mix
    most = p.config.data.curation.max_generated
    bounded = bound_generated(items, old, most, np.random.default_rng(seed))
    if mix is not None and len(bounded) != len(items):
        new = {item.file for item in fresh}
        drawn = [item for item in bounded if item.file not in new]
        mix = replace(
            mix,
            share=round(len(drawn) / max(1, len(bounded)), 4),
            new=len(bounded) - len(drawn),
            replayed=len(drawn),
            topics=dict(sorted(Counter(item.topic for item in drawn).items())),
        )
    return bounded, mix


def _without_withdrawn(p: Parts, items: list[curation.Item]) -> list[curation.Item]:
    """Without what was learnt from people who do not agree any more."""
    if not any(item.provenance for item in items):
        return items
    return curating.still_agreed(items, curating.consents(p))


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
    new = set(p.datasets.diff(base.version, version).new)
    return [i for i in items if i.file.relative_to(folder).as_posix() in new]


def labelled(p: Parts, effect: Effect) -> Outcome:
    """How many labelled items of the pool belong to what a finding says has moved."""
    finding = p.ledger.get(Finding, str(effect.payload["finding"]))
    pool = curation.read_folder(p.workspace.resolve(str(p.config.data.pool)))
    vectors = p.embed([item.texts[0] for item in pool])
    return Done({"items": len(curation.select_moved(pool, vectors, finding.clusters))})


def check(p: Parts, effect: Effect) -> Outcome:
    """Whether a dataset version or a folder is what it should be. ``problem`` is empty if so; no
    caption is in it."""
    version, folder = effect.payload.get("version"), effect.payload.get("folder")
    place = p.datasets.open(str(version)) if version else p.workspace.resolve(str(folder))
    held_out = folder is not None and folder == p.config.data.reference
    rules = (
        checking.storing(p.config.data) if held_out else checking.rules_of(p.config, p.workspace)
    )
    report = validate(place, rules)
    counts = dict(sorted(report.counts.items()))
    problem = ""
    if report.failures or not report.entries:
        kinds = ", ".join(f"{n} {kind}" for kind, n in counts.items())
        worst = (report.failures or report.problems)[:1]
        first = f" (first: {worst[0].file})" if worst else ""
        problem = f"{len(report.entries)} items are good; {kinds or 'there is none'}{first}"
    found = sum(counts.values())
    return Done(
        {"items": len(report.entries), "problems": found, "counts": counts, "problem": problem}
    )


def put_checked(
    p: Parts,
    folder: Path,
    *,
    name: str,
    parents: Sequence[str] = (),
    replay: float = 0.0,
    mix: ReplayMix | None = None,
) -> tuple[DatasetVersion, str]:
    """A checked version of a folder, and what the check left out of it. Raises ConfigError that
    names the first offending file."""
    pipeline = checking.pipeline_of(p.config, p.workspace, p.ledger)
    rules = checking.rules_of(p.config, p.workspace, pipeline)
    now = p.clock.now()
    store = partial(p.datasets.put, name=name, parents=parents, replay=replay, mix=mix)
    version, report = checking.put(store, folder, rules, p.workspace, now)
    counts = ", ".join(f"{n} {kind}" for kind, n in sorted(report.counts.items()))
    return version, f" (the check left out {counts})" if counts else ""


def _have_dataset(p: Parts, version: DatasetVersion, text: str) -> Done:
    with p.ledger.begin() as tx:
        tx.put(version, id=version.version, at=p.clock.now())
    return Done({"version": version.version, "text": text})


def dataset_of(p: Parts, release_id: str | None) -> DatasetVersion | None:
    if release_id is None:
        return None
    version = p.releases.get(release_id).provenance.dataset_version
    return p.ledger.find(DatasetVersion, version) if version else None
