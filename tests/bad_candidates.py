"""Candidates that the gate has to refuse, and one that it should not: real releases, each made from
one small trained model in a way in which that goes wrong in practice."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its customary name)
from diffusers import DiffusionPipeline
from PIL import Image
from tests.fixtures_training import run_job

from intonaco.app import App, open_app
from intonaco.codec import encode
from intonaco.config import Evaluation
from intonaco.demo import extractor as demo_extractor
from intonaco.demo import setup
from intonaco.demo.data import FIRST_TOPICS, PHRASINGS, DemoData, write_demo_data
from intonaco.evaluation import gate
from intonaco.evaluation import job as evaluation
from intonaco.evaluation.gate import GateDecision
from intonaco.executor import Parts
from intonaco.executor.evaluating import extractor_digest, payload, slices_of
from intonaco.jobs import JobFolder
from intonaco.releases import read_serving_spec
from intonaco.types import DatasetVersion, JobSpec, Json, Provenance, Release

GENERATION = {"steps": 10, "guidance_scale": 1.5, "width": 32, "height": 32}
GRAIN = 2.0  # standard deviations of the weights


@dataclass(slots=True)
class World:
    """The demo's workspace with its extractor and a champion that draws 0 to 4."""

    root: Path
    app: App
    p: Parts
    data: DemoData
    champion: Release
    learnt: DatasetVersion
    made: dict[str, Release] = field(default_factory=dict)

    # ------------------------------------------------------------------ making candidates

    @classmethod
    def make(cls, root: Path, size: setup.Size, topics: Sequence[str]) -> World:
        """Data, extractor and champion by the demo's recipe, with prompts of ``topics``."""
        workspace = setup.make_workspace(root / "w")
        setup.write_config(workspace, size, seed=0, ask=False)
        data = write_demo_data(workspace.root / "data", 0)
        lines = data.eval_prompts.read_text().splitlines(keepends=True)
        chosen = [line for line in lines if json.loads(line)["slice"] in topics]
        data.eval_prompts.write_text("".join(chosen))
        found = extractor(root / "extractor", data, seed=0, steps=size.extractor_steps)
        (workspace.root / "models").mkdir()
        (root / "extractor" / str(found["path"])).rename(workspace.root / "models" / "extractor")
        setup.pin_extractor(workspace, str(found["digest"]))
        app = open_app(workspace.root)
        p = app.parts()
        learnt = p.datasets.put(data.train, name="train")
        with p.ledger.begin() as tx:
            tx.put(learnt, id=learnt.version, at=0.0)
        folder, _ = run_job(root / "base", p.datasets.open(learnt.version), None, recipe(p, "base"))
        champion = add(p, folder, learnt.version)
        return cls(root=root, app=app, p=p, data=data, champion=champion, learnt=learnt)

    @property
    def folder(self) -> Path:
        """The champion's pipeline."""
        return self.p.releases.folder(self.champion)

    def tuned(self, name: str, items: Path, **settings: Any) -> Release:
        """The champion, fine-tuned on an image folder by the demo's recipe."""
        version = self.p.datasets.put(items, name=name)
        with self.p.ledger.begin() as tx:
            tx.put(version, id=version.version, at=0.0)
        folder, _ = run_job(
            self.root / name,
            self.p.datasets.open(version.version),
            self.folder,
            recipe(self.p, "without-replay", **settings),
        )
        return self.keep(name, add(self.p, folder, version.version))

    def changed(self, name: str, change: Callable[[Any], None]) -> Release:
        """The champion with its weights changed in place."""
        pipeline = DiffusionPipeline.from_pretrained(self.folder)
        with torch.no_grad():
            change(pipeline)
        pipeline.save_pretrained(self.root / name, safe_serialization=True)
        return self.keep(name, add(self.p, self.root / name, self.learnt.version))

    def set_otherwise(self, name: str, **generation: Json) -> Release:
        """The champion's weights with other defaults."""
        settings = {**GENERATION, **generation}
        return self.keep(name, add(self.p, self.folder, self.learnt.version, settings))

    def keep(self, name: str, release: Release) -> Release:
        self.made[name] = release
        return release

    # ------------------------------------------------------------------ judging them

    def judge(
        self,
        name: str,
        releases: Mapping[str, Release],
        *,
        superiority: bool,
        in_workers: bool = False,
        **changes: Any,
    ) -> tuple[dict[str, Any], dict[str, GateDecision]]:
        """Report and verdicts of the real job, asked as the loop asks. Without ``in_workers`` arms
        are timed in the job's own process."""
        versions = [
            self.p.ledger.get(DatasetVersion, r.provenance.dataset_version)
            for r in releases.values()
            if superiority and r.provenance.dataset_version
        ]
        keep, improve = slices_of(self.p, self.champion.release_id, versions)
        asked = payload(
            self.p,
            champion=self.champion.release_id,
            candidates={n: r.release_id for n, r in releases.items()},
            keep=keep,
            improve=improve,
            extractor=extractor_digest(self.p),
            attempt=name,
            at=0.0,
            context={},
            superiority=superiority,
        )
        if not in_workers:
            asked["benchmark"] = None
        report = run_evaluation(self.root / f"eval-{name}", {**asked, **changes})
        return report, self.decide(report, asked["shots"], superiority=superiority)

    def decide(
        self, report: Mapping[str, Json], shots: str, *, superiority: bool
    ) -> dict[str, GateDecision]:
        """As the loop's gate does."""
        return gate.decide(
            report,
            self.settings,
            gate.Expected(
                extractor=extractor_digest(self.p),
                shots=shots,
                superiority=superiority,
            ),
        )

    @property
    def settings(self) -> Evaluation:
        return self.p.config.evaluation


def recipe(p: Parts, name: str, **changes: Any) -> dict[str, Any]:
    known = p.config.training.recipes["from-scratch" if name == "base" else name]
    return {**known.model_dump(mode="json"), **changes}


def add(
    p: Parts, folder: Path, version: str, generation: Mapping[str, Json] = GENERATION
) -> Release:
    spec = read_serving_spec(folder, generation=generation)
    return p.releases.add(folder, spec, Provenance(created_at=0.0, dataset_version=version))


def extractor(root: Path, data: DemoData, *, seed: int, steps: int) -> Mapping[str, Json]:
    """A CLIP of digits, trained by the demo's job."""
    root.mkdir(parents=True)
    given = {"data": str(data.extractor), "seed": seed, "steps": steps}
    spec = JobSpec(key="x", entrypoint="intonaco.demo.extractor", payload=given)
    (root / "spec.json").write_text(encode(spec))
    return demo_extractor.run(JobFolder(root))


def run_evaluation(folder: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    folder.mkdir(parents=True)
    spec = JobSpec(key="k", entrypoint="intonaco.evaluation.job", payload=given)
    (folder / "spec.json").write_text(encode(spec))
    result = evaluation.run(JobFolder(folder))
    report: dict[str, Any] = json.loads((folder / str(result["report"])).read_text())
    return report


# ------------------------------------------------------------------------------ the nine


def collapsed(world: World) -> Release:
    """Learns from its own pictures, one of each digit: it draws that one for every seed."""
    pipeline = DiffusionPipeline.from_pretrained(world.folder)
    pipeline.set_progress_bar_config(disable=True)
    pictures = pipeline(
        [f"a handwritten {topic}" for topic in FIRST_TOPICS],
        num_inference_steps=10,
        guidance_scale=1.5,
        width=32,
        height=32,
        generator=[torch.Generator().manual_seed(7) for _ in FIRST_TOPICS],
    ).images
    folder = write_items(world.root / "one-each", pictures, FIRST_TOPICS)
    return world.tuned("collapse", folder, steps=120)


def forgetful(world: World) -> Release:
    """Learns 5 to 9 and sees no 0 to 4 meanwhile."""
    return world.tuned("forgetting", world.data.pool)


def memorising(world: World) -> Release:
    """Trained for long on two of the training images of each digit."""
    folder = world.data.train
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    chosen = [
        line for topic in FIRST_TOPICS for line in [x for x in lines if x["topic"] == topic][:2]
    ]
    pictures = [Image.open(folder / line["file_name"]) for line in chosen]
    target = write_items(world.root / "few", pictures, [line["topic"] for line in chosen])
    return world.tuned("memorisation", target, steps=500, batch_size=16)


def deaf(world: World) -> Release:
    """Nothing of the prompt reaches the picture: cross-attention gives zeros."""

    def change(pipeline: Any) -> None:
        for name, module in pipeline.unet.named_modules():
            if name.endswith("attn2"):
                module.to_out[0].weight.zero_()
                module.to_out[0].bias.zero_()

    return world.changed("prompt-ignoring", change)


def blurring(world: World) -> Release:
    """A decoder that learnt from pictures that were made smaller and enlarged again."""
    pixels = torch.stack(
        [_tensor(Image.open(path)) for path in sorted(world.data.train.glob("*.png"))[:160]]
    )
    soft = F.interpolate(
        F.interpolate(pixels, scale_factor=0.25, mode="area"), size=32, mode="bilinear"
    )
    generator = torch.Generator().manual_seed(0)

    def change(pipeline: Any) -> None:
        vae = pipeline.vae
        latents = vae.encode(pixels).latent_dist.mode()
        optimizer = torch.optim.AdamW(vae.decoder.parameters(), lr=2e-3)
        with torch.enable_grad():
            for _ in range(80):
                rows = torch.randint(0, len(pixels), (16,), generator=generator)
                loss = F.l1_loss(vae.decode(latents[rows]).sample, soft[rows])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]  # torch has no types there
                optimizer.step()

    return world.changed("blur", change)


def noisy(world: World) -> Release:
    """A decoder whose last weights were damaged: grain where pictures were smooth. The damage has
    no mean, and is the same for the three colours, so nothing but fine detail changes."""
    generator = torch.Generator().manual_seed(0)

    def change(pipeline: Any) -> None:
        weight = pipeline.vae.decoder.conv_out.weight
        damage = torch.randn(weight.shape[1:], generator=generator)
        damage = damage - damage.mean((1, 2), keepdim=True)
        weight.add_(GRAIN * weight.std() * damage)

    return world.changed("noise", change)


def slow(world: World) -> Release:
    """The same weights with three times the steps."""
    return world.set_otherwise("slow-down", steps=30)


def hungry(world: World) -> Release:
    """A vocabulary that nobody uses: the same pictures from a model twice as large."""

    def change(pipeline: Any) -> None:
        known = pipeline.text_encoder.get_input_embeddings().weight.shape[0]
        pipeline.text_encoder.resize_token_embeddings(known + 12_000, mean_resizing=False)

    return world.changed("memory-growth", change)


def replaying(world: World) -> Release:
    """The good one: learns 5 to 9, and goes on seeing 0 to 4."""
    lines = []
    target = world.root / "replayed"
    target.mkdir()
    for folder in (world.data.pool, world.data.train):
        for n, line in enumerate((folder / "metadata.jsonl").read_text().splitlines()):
            if folder == world.data.pool or n % 3 < 2:
                lines.append(line)
                name = json.loads(line)["file_name"]
                (target / name).write_bytes((folder / name).read_bytes())
    (target / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return world.tuned("good", target, steps=setup.QUICK.tune_steps)


def write_items(folder: Path, pictures: Sequence[Any], topics: Sequence[str]) -> Path:
    """An image folder, each picture under every phrasing."""
    folder.mkdir()
    lines = []
    for n, (picture, topic) in enumerate(zip(pictures, topics, strict=True)):
        picture.save(folder / f"{n}.png")
        line = {
            "file_name": f"{n}.png",
            "text": [p.format(topic) for p in PHRASINGS],
            "topic": topic,
            "consent": True,
        }
        lines.append(json.dumps(line))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def _tensor(image: Image.Image) -> torch.Tensor:
    """[3, h, w] in -1 to 1."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1
