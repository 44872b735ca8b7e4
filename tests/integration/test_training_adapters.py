"""Fine-tunes that are released as an adapter beside the base's own files, and what follows them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tests import fixtures_tiny
from tests.integration.test_serving_engine_adapters import spoilt

from intonaco import config
from intonaco.clock import FakeClock
from intonaco.codec import encode
from intonaco.executor import Done, Failed, Outcome, Parts
from intonaco.executor.training import train
from intonaco.folders import ADAPTER_FILE
from intonaco.jobs import JobFolder, job_folder
from intonaco.ledger import Effect, Ledger
from intonaco.messages import GenerateRequest
from intonaco.releases import ReleaseStore, base_id
from intonaco.serving.worker.base import SharedBase
from intonaco.serving.worker.engine import load
from intonaco.testing.datasets import MemoryDatasetStore
from intonaco.testing.registry import MemoryRegistry
from intonaco.testing.serving import MemoryRouter, MemoryServingBackend
from intonaco.testing.tracking import MemoryTracker
from intonaco.testing.training import MemoryTrainingBackend
from intonaco.training import export
from intonaco.training import job as training_job
from intonaco.training.families import Family
from intonaco.training.lora import RELEASED, save_adapter
from intonaco.types import Action, Candidate, Cause, JobSpec, Json, Phase, Plan, Release, Update
from intonaco.workspace import Workspace

# The libraries' own deprecations.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning:diffusers"),
]

CONFIG = """
service: tiny
model: {generation: {steps: 2, guidance_scale: 1.5, width: 32, height: 32}}
decision: {fine_tune: [beside], full_retrain: [full], budget: {hourly_price: 3.0}}
data: {reference: data}
training:
  recipes:
    beside: &beside
      {steps: 2, batch_size: 4, learning_rate: 0.01, warm_up_steps: 0,
       lora: {rank: 4, alpha: 8, targets: [to_q, conv1, ff.net.2], fused: false}}
    larger: {<<: *beside, lora: {rank: 8, alpha: 8, targets: [to_q], fused: false}}
    fused: {<<: *beside, lora: {rank: 4, alpha: 8, targets: [to_q, conv1, ff.net.2]}}
    full: {<<: *beside, method: full}
    watched: {<<: *beside, validation: {every: 1, items: 2}}
registry: {type: none}
tracker: {type: none}
"""
ASK = GenerateRequest(
    request_id="r", prompt="a two", seed=7, steps=2, guidance_scale=1.5, width=32, height=32
)


@dataclass
class World:
    """The executor with real training jobs, run in this process."""

    root: Path
    trained: int = 0
    limits: Mapping[str, float] = field(default_factory=dict)
    payloads: list[Mapping[str, Json]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.workspace = Workspace(self.root / "w")
        self.releases = ReleaseStore(self.workspace, "tiny")
        self.ledger = Ledger.open(self.workspace.ledger, "tiny")
        data = self.root / "data"
        data.mkdir()
        lines = []
        for n in range(4):
            Image.new("RGB", (32, 32), (n * 60, 90, 0)).save(data / f"{n}.png")
            lines.append(json.dumps({"file_name": f"{n}.png", "text": "a two", "topic": "two"}))
        (data / "metadata.jsonl").write_text("\n".join(lines) + "\n")
        datasets = MemoryDatasetStore(self.root / "scratch")
        self.dataset = datasets.put(data, name="train").version
        self.parts = Parts(
            config=config.parse(CONFIG),
            workspace=self.workspace,
            ledger=self.ledger,
            releases=self.releases,
            datasets=datasets,
            training=MemoryTrainingBackend(on_submit=self._job),
            serving=MemoryServingBackend(),
            router=MemoryRouter(),
            registry=MemoryRegistry(),
            tracker=MemoryTracker(),
            embed=lambda texts: torch.zeros(len(texts), 2).numpy(),
            probe=lambda release, prompt, seed: None,
            smoke=lambda url, release: 0.0,
            clock=FakeClock(),
        )

    def _job(self, spec: JobSpec) -> Mapping[str, Json]:
        folder = job_folder(self.workspace, spec.key)
        folder.mkdir(parents=True)
        (folder / "spec.json").write_text(encode(spec))
        self.payloads.append(spec.payload)
        return training_job.run(JobFolder(folder))

    def add(self, folder: Path, **options: Any) -> Release:
        release = fixtures_tiny.add_release(self.workspace, folder, **options)
        with self.ledger.begin() as tx:
            tx.put(release, id=release.release_id, at=1.0)
        return release

    def outcome(self, recipe: str, champion: Release) -> Outcome:
        self.trained += 1
        update = Update(
            update_id=f"u{self.trained}",
            service_id="tiny",
            plan=Plan(
                plan_id="p",
                service_id="tiny",
                at=0.0,
                action=Action.FINE_TUNE,
                cause=Cause.REQUESTED,
                reason="",
                limits=self.limits,
            ),
            phase=Phase.TRAIN,
            created_at=0.0,
            phase_since=0.0,
            champion=champion.release_id,
            candidates=(Candidate(name=recipe, dataset_version=self.dataset),),
        )
        with self.ledger.begin() as tx:
            tx.put(update, id=update.update_id, at=0.0)
        effect = Effect(
            key=f"k{self.trained}", kind="train", subject=update.update_id, payload={"name": recipe}
        )
        return train(self.parts, effect)

    def train(self, recipe: str, champion: Release) -> Release:
        outcome = self.outcome(recipe, champion)
        assert isinstance(outcome, Done), outcome
        return self.releases.get(str(outcome.result["release_id"]))

    def folder(self, release: Release) -> Path:
        return self.releases.folder(release)

    def picture(self, release: Release) -> bytes:
        engine = load(release, self.folder(release), device="cpu", threads=1)
        assert engine.release_id == release.release_id
        return engine.generate([ASK], 1).images[0].tobytes()  # type: ignore[no-any-return]  # a picture


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    world = World(tmp_path_factory.mktemp("adapters"))
    yield world
    world.ledger.close()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def base(world: World) -> Release:
    return world.add(fixtures_tiny.save(world.root / "base"))


@pytest.fixture(scope="module")
def first(world: World, base: Release) -> Release:
    return world.train("beside", base)


def test_a_job_is_told_its_limits_and_where_the_rest_lies(
    world: World, base: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.train("beside", base)
    told = world.payloads[-1]
    assert told["cache"] == str(world.workspace.encoded.resolve())
    assert told["cache_gb"] == 50.0
    assert told["dataset_version"] == world.dataset
    assert (told["max_seconds"], told["hourly_price"]) == (86_400.0, 3.0)
    assert "max_money" not in told, "none was reserved"
    assert "validation" not in told
    assert len([p for p in world.workspace.encoded.iterdir() if p.is_dir()]) == 1

    monkeypatch.setattr(world, "limits", {"watched": 1200.0})
    data = world.workspace.root / "data"
    if not data.exists():
        data.symlink_to(world.root / "data")
    world.train("watched", base)
    told = world.payloads[-1]
    assert (told["max_seconds"], told["max_money"]) == (1200.0, 1.0)
    assert told["validation"] == str((world.root / "data").resolve())


def adapter(world: World, release: Release) -> Path:
    return world.folder(release) / "adapters" / RELEASED / ADAPTER_FILE


def test_a_fine_tune_beside_its_base(world: World, base: Release, first: Release) -> None:
    assert (first.serving.adapters, first.serving.fused) == ((RELEASED,), False)
    assert base_id(first.serving) == base_id(base.serving)
    files = {
        p.relative_to(world.folder(base)): p for p in world.folder(base).rglob("*") if p.is_file()
    }
    assert len(files) > 5
    for relative, file in files.items():
        assert file.samefile(world.folder(first) / relative), "a link, not a copy"
    tensors = load_file(adapter(world, first))
    layers = {name.rsplit(".lora_", 1)[0] for name in tensors}
    assert {layer.rsplit(".", 1)[-1] for layer in layers} == {"to_q", "conv1", "2"}
    assert any((t != 0).any() for name, t in tensors.items() if ".lora_B." in name), "it learnt"
    assert world.picture(first) != world.picture(base)


def test_both_are_served_over_one_base(world: World, base: Release, first: Release) -> None:
    engine = load(base, world.folder(base), device="cpu", threads=1, base_only=True)
    shared = SharedBase(engine, world.releases)
    for release in (first, base):
        over = shared.prepare(release.release_id)().engine
        assert over.generate([ASK], 1).images[0].tobytes() == world.picture(release)


def test_the_next_one_trains_the_champions_adapter_further(
    world: World, base: Release, first: Release
) -> None:
    second = world.train("beside", first)
    assert world.payloads[-1]["adapters"] == [RELEASED]
    assert base_id(second.serving) == base_id(base.serving)
    before, after = load_file(adapter(world, first)), load_file(adapter(world, second))
    assert before.keys() == after.keys()
    moved = [n for n in before if not torch.equal(before[n], after[n])]
    assert len(moved) == len(before)
    # It goes on from there: two steps move it less than a new start would.
    new = load_file(adapter(world, world.train("beside", base)))
    assert all(torch.equal(new[n], before[n]) for n in new), "the same start, the same end"
    a = [n for n in before if ".lora_A." in n]
    step = sum((after[n] - before[n]).norm().item() for n in a)
    size = sum(before[n].norm().item() for n in a)
    assert 0 < step < 0.5 * size


def test_what_is_fused_starts_from_what_was_served(
    world: World, base: Release, first: Release
) -> None:
    for recipe in ("fused", "full"):
        release = world.train(recipe, first)
        assert release.serving.adapters == ()
        assert not list(world.folder(release).rglob("*lora*"))
        weights = load_file(world.folder(release) / "unet/diffusion_pytorch_model.safetensors")
        plain = load_file(world.folder(base) / "unet/diffusion_pytorch_model.safetensors")
        assert weights.keys() == plain.keys()
    payload = world.payloads[-1]
    job = JobFolder(world.root / "nothing trained")
    (job.root).mkdir()
    recipe_ = {**payload["recipe"], "learning_rate": 1e-12, "weight_decay": 0.0}
    spec = JobSpec(key="n", entrypoint="", payload={**payload, "recipe": recipe_})
    (job.root / "spec.json").write_text(encode(spec))
    result = training_job.run(job)
    start = world.add(job.root / str(result["pipeline"]))
    assert near(world.picture(start), world.picture(first)) < 1.0
    assert near(world.picture(start), world.picture(base)) > 1.0


def near(a: bytes, b: bytes) -> float:
    """Mean distance in 8-bit levels."""
    x, y = (torch.frombuffer(bytearray(v), dtype=torch.uint8).float() for v in (a, b))
    return (x - y).abs().mean().item()


def test_an_adapter_that_cannot_be_trained_further_is_refused(
    world: World, base: Release, first: Release
) -> None:
    refused = world.outcome("larger", first)
    assert isinstance(refused, Failed)
    assert "rank 4 and alpha 8 on" in refused.error

    folder = world.root / "half"
    shutil.copytree(world.folder(first), folder)
    half = world.add(folder, adapters=(f"{RELEASED}:0.5",))
    refused = world.outcome("beside", half)
    assert isinstance(refused, Failed)
    assert "at scale 1" in refused.error
    fused = world.add(folder, adapters=(RELEASED,), fused=True)
    refused = world.outcome("beside", fused)
    assert isinstance(refused, Failed)
    assert "fused on loading" in refused.error


def test_an_adapter_lost_on_its_way_to_the_disk_is_noticed(
    world: World, base: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(family: Family, folder: Path) -> None:
        save_adapter(family, folder)
        spoilt(folder, lambda t: t.update({k: v + 1 for k, v in t.items() if "conv1" in k}))

    monkeypatch.setattr(export, "save_adapter", save)
    outcome = world.outcome("beside", replace(base))
    assert isinstance(outcome, Failed)
    assert "the saved adapter is not the trained one" in outcome.error
