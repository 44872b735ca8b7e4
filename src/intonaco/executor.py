"""Does the effects that states ask for. Every one may be tried again and comes out the same.

``Executor.run`` looks at an effect once and returns ``Pending``, ``Done`` or ``Failed``; it never
waits for long work. Long work is a job that the training backend keeps under the effect's key, so
that a controller that was killed finds it again instead of starting a second.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from intonaco.clock import Clock
from intonaco.codec import as_json, digest
from intonaco.config import Config, Recipe
from intonaco.datasets import curation
from intonaco.errors import BackendError, ConfigError, IntonacoError
from intonaco.jobs import job_folder
from intonaco.ledger import Effect, Ledger
from intonaco.messages import PROTOCOL_HEADER, PROTOCOL_VERSION, GenerateRequest
from intonaco.monitoring.probes import ProbeSet, compare
from intonaco.protocols import (
    DatasetStore,
    Matrix,
    Registry,
    ServingBackend,
    Tracker,
    TrafficRouter,
    TrainingBackend,
)
from intonaco.releases import ReleaseStore, check_folder, read_serving_spec
from intonaco.types import (
    Action,
    DatasetVersion,
    Finding,
    JobSpec,
    JobState,
    JobStatus,
    Json,
    Provenance,
    Release,
    Update,
)
from intonaco.workspace import Workspace

PROBE_TOLERANCE = 1.0  # mean absolute difference in 8-bit levels that is not a change


@dataclass(frozen=True, slots=True)
class Pending:
    """Not at its end; look again."""


@dataclass(frozen=True, slots=True)
class Done:
    result: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failed:
    error: str


Outcome = Pending | Done | Failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the executor works with; ``app`` puts it together."""

    config: Config
    workspace: Workspace
    ledger: Ledger
    releases: ReleaseStore
    datasets: DatasetStore
    training: TrainingBackend
    serving: ServingBackend
    router: TrafficRouter
    registry: Registry
    tracker: Tracker
    embed: Callable[[Sequence[str]], Matrix]  # texts to the extractor's vectors
    probe: Callable[[str, str, int], bytes]  # (release, prompt, seed) to PNG bytes
    smoke: Callable[[str, Release], float]  # (worker's URL, release) to seconds of one picture
    clock: Clock


class Executor:
    """One look at one effect."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self._kinds: Mapping[str, Callable[[Effect], Outcome]] = {
            "dataset": self._dataset,
            "train": self._train,
            "assemble": self._assemble,
            "evaluate": self._evaluate,
            "register": self._register,
            "stage": self._stage,
            "retire": self._retire,
            "probe": self._probe,
            "labelled": self._labelled,
        }

    def run(self, effect: Effect) -> Outcome:
        """Raises BackendError with ``retriable`` for trouble that may pass; anything else that a
        person can mend comes back as ``Failed``."""
        try:
            return self._kinds[effect.kind](effect)
        except BackendError as error:
            if error.retriable:
                raise
            return Failed(str(error))
        except IntonacoError as error:
            return Failed(str(error))

    # ------------------------------------------------------------------ data

    def _dataset(self, effect: Effect) -> Outcome:
        p = self.parts
        update = p.ledger.get(Update, effect.subject)
        recipe = p.config.training.recipes[str(effect.payload["name"])]
        base = self._dataset_of(update.champion)
        if base is None:
            if p.config.data.train is None:
                raise ConfigError("data.train: not given, and there is no release to start from")
            version = p.datasets.put(p.workspace.resolve(p.config.data.train), name="train")
            return self._have_dataset(version, f"{version.items} items of data.train")
        fresh = self._fresh_items(update)
        if not fresh:
            raise ConfigError(
                "data.pool: no labelled item belongs to what moved",
                hint="label some of the requests that the finding shows and add them to data.pool",
            )
        old = curation.read_folder(p.datasets.open(base.version))
        replay = recipe.replay if update.plan.action is Action.FINE_TUNE else None
        seed = int(digest([update.update_id, effect.payload["name"]])[:8], 16)
        rng = np.random.default_rng(seed)
        items = [*fresh, *old] if replay is None else curation.mix(fresh, old, replay, rng)
        with tempfile.TemporaryDirectory(dir=p.workspace.root) as folder:
            target = Path(folder) / "items"
            curation.write_folder(items, target)
            version = p.datasets.put(
                target,
                name=str(effect.payload["name"]),
                parents=(base.version,),
                replay=replay or 0.0,
            )
        replayed = len(items) - len(fresh)
        return self._have_dataset(version, f"{len(fresh)} new items and {replayed} of old")

    def _fresh_items(self, update: Update) -> list[curation.Item]:
        """Items of the pool that the plan wants learnt: those nearest to a moved cluster."""
        p = self.parts
        if p.config.data.pool is None:
            return []
        pool = curation.read_folder(p.workspace.resolve(p.config.data.pool))
        if not update.plan.clusters:
            return pool
        vectors = p.embed([item.texts[0] for item in pool])
        return curation.select_moved(pool, vectors, update.plan.clusters)

    def _labelled(self, effect: Effect) -> Outcome:
        """How many labelled items of the pool belong to what a finding says has moved."""
        p = self.parts
        finding = p.ledger.get(Finding, str(effect.payload["finding"]))
        pool = curation.read_folder(p.workspace.resolve(str(p.config.data.pool)))
        vectors = p.embed([item.texts[0] for item in pool])
        return Done({"items": len(curation.select_moved(pool, vectors, finding.clusters))})

    def _have_dataset(self, version: DatasetVersion, text: str) -> Done:
        with self.parts.ledger.begin() as tx:
            tx.put(version, id=version.version, at=self.parts.clock.now())
        return Done({"version": version.version, "text": text})

    def _dataset_of(self, release_id: str | None) -> DatasetVersion | None:
        if release_id is None:
            return None
        version = self.parts.releases.get(release_id).provenance.dataset_version
        return self.parts.ledger.find(DatasetVersion, version) if version else None

    # ------------------------------------------------------------------ training

    def _train(self, effect: Effect) -> Outcome:
        p = self.parts
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
                "base": self._base(recipe, champion),
            },
            max_seconds=p.config.training.max_seconds,
        )
        status = self._job(spec)
        if isinstance(status, Pending | Failed):
            return status
        folder = job_folder(p.workspace, effect.key) / str(status.result["pipeline"])
        generation = (
            champion.serving.generation if champion else p.config.model.generation.model_dump()
        )
        serving = read_serving_spec(
            folder,
            generation=generation,
            dtype=p.config.model.dtype,
            fused=recipe.method == "lora",
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
        self._have_release(release)
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
        return Done({"release_id": release.release_id, "seconds": seconds, "cost": cost})

    def _base(self, recipe: Recipe, champion: Release | None) -> str | None:
        if recipe.init == "champion":
            if champion is None:
                raise ConfigError(
                    "training.recipes: init is 'champion', but there is no champion yet",
                    hint="give a folder or module:callable as init of the recipe",
                )
            return str(self.parts.releases.folder(champion).resolve())
        if ":" in recipe.init:
            return None
        return str(self.parts.workspace.resolve(recipe.init).resolve())

    def _assemble(self, effect: Effect) -> Outcome:
        """A release from the champion's weights with another sampler or other defaults; without a
        champion, from the folder that ``model.path`` names."""
        p = self.parts
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
            shutil.copytree(self._weights(champion), folder)
            if change.get("scheduler"):
                _change_scheduler(folder, change["scheduler"])
            spec = read_serving_spec(
                folder,
                generation=generation,
                dtype=serving.dtype if serving else p.config.model.dtype,
                fused=serving.fused if serving else False,
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
        self._have_release(release)
        return Done({"release_id": release.release_id, "dataset_version": dataset_version})

    def _weights(self, champion: Release | None) -> Path:
        """The pipeline folder that a release is assembled from."""
        p = self.parts
        if champion is not None:
            return p.releases.folder(champion)
        if p.config.model.path is None:
            raise ConfigError("model.path: not given, and there is no champion to assemble from")
        folder = p.workspace.resolve(p.config.model.path)
        check_folder(folder)
        return folder

    def _have_release(self, release: Release) -> None:
        with self.parts.ledger.begin() as tx:
            tx.put(release, id=release.release_id, at=release.provenance.created_at)

    # ------------------------------------------------------------------ evaluation, registry

    def _evaluate(self, effect: Effect) -> Outcome:
        p = self.parts
        config = p.config.evaluation
        update = p.ledger.get(Update, effect.subject)
        if config.prompts is None or p.config.data.reference is None or p.config.extractor is None:
            raise ConfigError(
                "evaluation.prompts, data.reference and extractor are needed to evaluate"
            )
        digest = p.config.extractor.digest or self._scorers_digest()
        if digest is None:
            return Pending()  # nobody has said yet which extractor judges live traffic
        champion_data = self._dataset_of(update.champion)
        versions = [
            p.ledger.get(DatasetVersion, c.dataset_version)
            for c in update.candidates
            if c.dataset_version
        ]
        learnt = sorted({topic for v in versions for topic in v.topics})
        keep = sorted(champion_data.topics) if champion_data else learnt
        made = [c for c in update.candidates if c.release_id]
        spec = JobSpec(
            key=effect.key,
            entrypoint="intonaco.evaluation.job",
            payload={
                "champion": self._arm("champion", update.champion) if update.champion else None,
                "candidates": [self._arm(c.name, str(c.release_id)) for c in made],
                "prompts": str(p.workspace.resolve(config.prompts).resolve()),
                "reference": str(p.workspace.resolve(p.config.data.reference).resolve()),
                "extractor": {
                    **p.config.extractor.model_dump(),
                    "path": str(p.workspace.resolve(p.config.extractor.path).resolve()),
                    "digest": digest,
                },
                "seeds_per_prompt": config.seeds_per_prompt,
                "batch_size": config.batch_size,
                "latency_rounds": config.latency_rounds,
                "threads": config.threads,
                "alpha": config.alpha,
                "margins": config.margins.model_dump(),
                "dtype": p.config.model.dtype,
                "generation": p.config.model.generation.model_dump(),
                "keep": keep,
                "improve": sorted(set(learnt) - set(keep)),
                "cache": str((p.workspace.root / "evaluations").resolve()),
            },
            max_seconds=p.config.training.max_seconds,
        )
        status = self._job(spec)
        if isinstance(status, Pending | Failed):
            return status
        folder = job_folder(p.workspace, effect.key)
        report = json.loads((folder / str(status.result["report"])).read_text())
        relative = p.workspace.relative(folder / "out")
        return Done({"report": report, "folder": relative, "seconds": status.seconds})

    def _scorers_digest(self) -> str | None:
        """The extractor that the scorer loaded: candidates are judged by the same."""
        scorer = self.parts.workspace.process("scorer")
        return str(scorer.facts["digest"]) if scorer and scorer.facts.get("digest") else None

    def _arm(self, name: str, release_id: str) -> Mapping[str, Json]:
        release = self.parts.releases.get(release_id)
        return {
            "name": name,
            "release_id": release_id,
            "path": str(self.parts.releases.folder(release).resolve()),
            "generation": dict(release.serving.generation),
        }

    def _register(self, effect: Effect) -> Outcome:
        p = self.parts
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

    # ------------------------------------------------------------------ serving

    def _stage(self, effect: Effect) -> Outcome:
        p = self.parts
        release = p.releases.get(str(effect.payload["name"]))
        p.serving.deploy(release)
        status = p.serving.status(release.release_id)
        if status.error:
            p.serving.retire(release.release_id)
            return Failed(status.error)
        if not status.ready:
            return Pending()
        if status.attested != release.release_id:
            p.serving.retire(release.release_id)
            return Failed(f"the worker loaded {status.attested}, not {release.release_id}")
        seconds = p.smoke(status.urls[0], release)
        return Done(
            {"text": f"staged: identity attested, first picture in {seconds * 1000:.0f} ms"}
        )

    def _retire(self, effect: Effect) -> Outcome:
        """Drain for longer than the longest request, then end."""
        p = self.parts
        release_id = str(effect.payload["name"])
        update = p.ledger.get(Update, effect.subject)
        waited = p.clock.now() - update.phase_since
        try:
            observed = p.router.observed()
            table = p.ledger.latest_routing()
            routed = table is not None and any(a.release == release_id for a in table.arms)
            busy = (
                routed
                or observed.in_flight.get(release_id, 0) > 0
                or (table is not None and observed.epoch < table.epoch)
            )
        except BackendError:
            busy = True
        if busy and waited < p.config.rollout.drain_seconds:
            return Pending()
        p.serving.drain(release_id)
        p.serving.retire(release_id)
        return Done({"waited": waited})

    def _probe(self, effect: Effect) -> Outcome:
        """Draw the probes again and compare them with what the release drew when it was new."""
        p = self.parts
        release_id, name = str(effect.payload["release"]), str(effect.payload["name"])
        folder = p.workspace.root / "probes" / release_id
        distances: dict[str, float | None] = {}
        for probe in ProbeSet(p.config.monitoring.probes).probes:
            file = folder / name / f"{probe.key}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(p.probe(release_id, probe.prompt, probe.seed))
            before = folder / "baseline" / f"{probe.key}.png"
            distances[probe.key] = image_distance(before, file) if before.exists() else None
        return Done(as_json(compare(distances, PROBE_TOLERANCE)))

    # ------------------------------------------------------------------ jobs

    def _job(self, spec: JobSpec) -> JobStatus | Pending | Failed:
        handle = self.parts.training.submit(spec)
        status = self.parts.training.poll(handle)
        if status.state is JobState.RUNNING:
            return Pending()
        if status.state is not JobState.SUCCEEDED:
            return Failed(status.error or f"the job was {status.state}")
        return status


def smoke_test(url: str, release: Release) -> float:
    """Draw one picture at a worker; seconds it took. Raises BackendError."""
    generation = release.serving.generation
    request = GenerateRequest(
        request_id="smoke",
        prompt="smoke test",
        seed=1,
        steps=int(generation["steps"]),
        guidance_scale=float(generation["guidance_scale"]),
        width=int(generation["width"]),
        height=int(generation["height"]),
    )
    try:
        response = httpx.post(
            f"{url}/generate",
            json=as_json(request),
            headers={PROTOCOL_HEADER: PROTOCOL_VERSION},
            timeout=60.0,
        )
    except httpx.HTTPError as error:
        raise BackendError(
            f"smoke test: {type(error).__name__}", backend="worker", retriable=True
        ) from error
    if response.status_code != 200:
        raise BackendError(
            f"smoke test: the worker answered {response.status_code}",
            backend="worker",
            retriable=response.status_code in (429, 503),
        )
    return response.elapsed.total_seconds()


def image_distance(a: Path, b: Path) -> float:
    """Mean absolute difference of two pictures in 8-bit levels; inf if their sizes differ."""
    with Image.open(a) as first, Image.open(b) as second:
        if first.size != second.size:
            return float("inf")
        x = np.asarray(first.convert("RGB"), dtype=np.float64)
        y = np.asarray(second.convert("RGB"), dtype=np.float64)
    return float(np.abs(x - y).mean())


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
