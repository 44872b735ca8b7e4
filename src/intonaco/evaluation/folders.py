"""A comparison from pictures alone: two image folders of the same prompts, no model.

Each folder holds images and ``metadata.jsonl``, one line an image: ``file_name``, ``prompt`` (or
``text``), and if there are any ``seed``, ``prompt_id`` and ``slice``. Images pair by prompt and
seed. What pictures cannot tell (time, memory) is not judged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from intonaco import config
from intonaco.codec import as_json
from intonaco.errors import ConfigError
from intonaco.evaluation.arms import Reference
from intonaco.evaluation.cache import EvaluationCache
from intonaco.evaluation.comparison import compare
from intonaco.evaluation.features import load_extractor
from intonaco.evaluation.gate import GateDecision
from intonaco.evaluation.looking import Looking
from intonaco.evaluation.material import features_of, read_folder
from intonaco.evaluation.order import CHAMPION
from intonaco.evaluation.parts import by_kind, prompt_rows
from intonaco.evaluation.prompts import KINDS, Kind, Prompt, Shot, normal, shots_digest, version_of
from intonaco.evaluation.report import write_report
from intonaco.evaluation.reproducing import here
from intonaco.evaluation.verdicts import PICTURES, of_pictures
from intonaco.monitoring.heads import Heads
from intonaco.types import Json

Images = NDArray[np.uint8]
METADATA = "metadata.jsonl"
ALL = "all"  # slice of images that name none


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """One image of a folder."""

    file: Path
    shot: Shot


def read_drawn(folder: Path) -> dict[tuple[str, int], Drawn]:
    """The images of a folder by (prompt id, seed). Without a seed they are numbered within their
    prompt. Raises ConfigError that names the line."""
    file = folder / METADATA
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{file} cannot be read: {error}",
            hint='one line an image: {"file_name": "a.png", "prompt": "...", "seed": 1}',
        ) from error
    found: dict[tuple[str, int], Drawn] = {}
    counts: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            raw = json.loads(line)
            text = raw["prompt"] if "prompt" in raw else raw["text"]
            if not isinstance(text, str):
                raise TypeError(f"prompt is a {type(text).__name__}, it must be text")
            prompt_id = str(raw.get("prompt_id") or normal(text))
            seed = int(raw.get("seed", counts.get(prompt_id, 0)))
            kind: Kind = raw.get("kind", KINDS[0])
            if kind not in KINDS:
                raise ValueError(f"kind is {kind!r}, it is {' or '.join(KINDS)}")
            shot = Shot(
                prompt=Prompt(
                    prompt_id=prompt_id, prompt=text, slice=str(raw.get("slice") or ALL), kind=kind
                ),
                seed=seed,
            )
            drawn = Drawn(file=folder / str(raw["file_name"]), shot=shot)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{file}, line {number}: {type(error).__name__}: {error}",
                hint='one line an image: {"file_name": "a.png", "prompt": "...", "seed": 1}',
            ) from error
        counts[prompt_id] = counts.get(prompt_id, 0) + 1
        if (prompt_id, seed) in found:
            raise ConfigError(f"{file}, line {number}: prompt and seed {seed} again")
        found[prompt_id, seed] = drawn
    if not found:
        raise ConfigError(f"{file} is empty")
    return found


def compare_folders(
    champion: Path,
    candidate: Path,
    *,
    reference: Path | None,
    extractor: config.Extractor,
    root: Path,
    settings: config.Evaluation,
    improve: Sequence[str],
    cache: Path | None,
    target: Path,
) -> tuple[Mapping[str, Json], GateDecision]:
    """Write ``report.json`` and ``report.html`` under ``target``; the report and what it says.
    ``root``: what the extractor's path is relative to. Raises ConfigError."""
    arms = {CHAMPION: read_drawn(champion), candidate.name: read_drawn(candidate)}
    if candidate.name == CHAMPION:
        raise ConfigError(f"the candidate's folder may not be called {CHAMPION!r}")
    first, second = arms.values()
    if missing := sorted(set(first) ^ set(second)):
        where = candidate if missing[0] in first else champion
        raise ConfigError(
            f"{where} lacks prompt {missing[0][0]!r} with seed {missing[0][1]}"
            + (f" (and {len(missing) - 1} more differ)" if len(missing) > 1 else ""),
            hint="both folders need the same prompts and seeds",
        )
    keys = list(first)
    shots = tuple(first[key].shot for key in keys)
    for key in keys:
        if normal(first[key].shot.prompt.prompt) != normal(second[key].shot.prompt.prompt):
            raise ConfigError(
                f"prompt {key[0]!r} has other words in {candidate} than in {champion}",
                hint="both folders need the same prompts and seeds",
            )
    kept = EvaluationCache(cache)
    loaded = load_extractor(extractor, root)
    look = Looking(loaded, shots, heads=Heads.load({}, root, loaded), unsafe=None, cache=kept)
    images = {name: _read([of_arm[key].file for key in keys]) for name, of_arm in arms.items()}
    scores = {name: look.arm(arm) for name, arm in images.items()}
    if len({arm.shape[1:] for arm in images.values()}) > 1:
        look.skipped["detail"] = "the folders hold pictures of different sizes"
        scores = {name: replace(arm, detail=None) for name, arm in scores.items()}
    real = None if reference is None else read_folder(reference, "--reference")
    dimension = scores[CHAMPION].features.shape[1]
    yardstick = Reference(
        features=np.zeros((0, dimension))
        if real is None
        else features_of(real, loaded, kept, "--reference"),
        topics=() if real is None else real.topics,
        extractor=look.digest,
    )
    if real is None:
        for metric in ("distance", "recall"):
            look.skipped[metric] = "no reference images were given"
    if unknown := [name for name in improve if name not in look.slices]:
        raise ConfigError(
            f"--improve {unknown[0]}: no picture is of that slice",
            hint=f"there are {', '.join(look.slices)}",
        )
    keep = [s for s in look.slices if s not in improve] or list(look.slices)
    results = compare(
        scores[CHAMPION],
        scores[candidate.name],
        yardstick,
        None,
        keep=keep,
        improve=list(improve),
        alpha=settings.alpha,
        margins=settings.margins,
        extractor=loaded.name,
    )
    decision = of_pictures(results, least=settings.min_improvement if improve else None)
    report: dict[str, Json] = {
        "kind": PICTURES,
        "champion": {"release_id": champion.name},
        "candidates": [candidate.name],
        "keep": keep,
        "improve": list(improve),
        "alpha": settings.alpha,
        "extractor": {"name": loaded.name, "digest": loaded.digest},
        "shots": {
            "digest": shots_digest(shots),
            "images_per_arm": len(shots),
            "prompts": len({s.prompt.prompt_id for s in shots}),
            "prompts_digest": version_of({s.prompt.prompt_id: s.prompt for s in shots}.values()),
        },
        "reference_images": len(yardstick.features),
        "arms": {
            name: {"release_id": None, "adherence": {"overall": float(arm.adherence.mean())}}
            for name, arm in scores.items()
        },
        "comparisons": {candidate.name: as_json(results)},
        "splits": {
            candidate.name: {
                "kinds": by_kind(scores[CHAMPION], scores[candidate.name], shots, settings.alpha)
            }
        },
        "skipped": look.skipped,
        "notes": ["From pictures alone: time and memory are not judged, nor who drew them"],
        "errors": {},
        "small_pictures": max(arm.shape[1] for arm in images.values()) <= 96,
        "verdicts": {
            candidate.name: {
                "verdict": str(decision.verdict),
                "reasons": list(decision.reasons),
            }
        },
        "reproduce": {
            **here("cpu", 1),
            "command": "intonaco eval compare",
            "folders": {"champion": champion.name, "candidate": candidate.name},
            "settings": settings.model_dump(mode="json"),
        },
    }
    target.mkdir(parents=True, exist_ok=True)
    (target / "report.json").write_text(json.dumps(report, indent=1))
    rows = prompt_rows(scores, shots, ())
    write_report(report, {candidate.name: decision}, rows, images, target / "report.html")
    return report, decision


def _read(files: Sequence[Path]) -> Images:
    """Pictures of one size [n, h, w, 3]. Raises ConfigError."""
    pictures: list[NDArray[Any]] = []
    for file in files:
        try:
            with Image.open(file) as picture:
                pictures.append(np.asarray(picture.convert("RGB"), dtype=np.uint8))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{file} cannot be read: {error!r}") from error
        if pictures[-1].shape != pictures[0].shape:
            raise ConfigError(
                f"{file} is {pictures[-1].shape[1]}x{pictures[-1].shape[0]}, {files[0]} is not",
                hint="all pictures of a folder must have one size",
            )
    return np.stack(pictures)
