"""Datasets and training jobs of tests: folders of made-up pictures, jobs run in this process."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from intonaco.codec import encode
from intonaco.config import Recipe
from intonaco.jobs import JobFolder
from intonaco.types import JobSpec, Json


def write_pictures(
    folder: Path,
    texts: Sequence[str] = ("a two", "a three"),
    *,
    count: int = 6,
    sizes: Sequence[tuple[int, int]] = ((32, 32),),
) -> Path:
    """An image folder of smooth random pictures, in turn of each text and size."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    lines = []
    for n in range(count):
        small = random.integers(0, 256, (4, 4, 3), np.uint8)
        image = Image.fromarray(small).resize(sizes[n % len(sizes)], Image.Resampling.BICUBIC)
        image.save(folder / f"{n}.png")
        lines.append(json.dumps({"file_name": f"{n}.png", "text": texts[n % len(texts)]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def write_job(
    root: Path, dataset: Path, base: Path | None, recipe: Mapping[str, Any], **payload: Json
) -> JobFolder:
    """A job's folder with its spec."""
    settings = {"steps": 4, "batch_size": 4, "learning_rate": 3e-3, "warm_up_steps": 1, **recipe}
    told = {
        "recipe": Recipe.model_validate(settings).model_dump(mode="json"),
        "dataset": str(dataset),
        "base": str(base) if base else None,
        "seed": 1,
        **payload,
    }
    root.mkdir(parents=True, exist_ok=True)
    spec = JobSpec(key="k", entrypoint="intonaco.training.job", payload=told)
    (root / "spec.json").write_text(encode(spec))
    return JobFolder(root)


def run_job(
    root: Path, dataset: Path, base: Path | None, recipe: Mapping[str, Any], **payload: Json
) -> tuple[Path, Mapping[str, Json]]:
    """Run the job here; its pipeline folder and result."""
    from intonaco.training import job as training_job

    job = write_job(root, dataset, base, recipe, **payload)
    result = training_job.run(job)
    return root / str(result["pipeline"]), result
