"""The evaluation job: ``python -m intonaco.evaluation.job JOB_FOLDER``.

Payload: ``champion`` ({"release_id", "path"} or null), ``candidates`` ([{"name", "release_id",
"path"}]), ``prompts`` (jsonl), ``reference`` (image folder with metadata.jsonl), ``extractor``
({"type", "path", "digest"}), ``seeds_per_prompt``, ``batch_size``, ``latency_rounds``, ``threads``,
``generation`` (steps, guidance_scale, width, height), ``keep`` and ``improve`` (slices; neither
given: all are kept); optional ``cache`` (folder), ``alpha`` (0.05), ``margins``, ``dtype``,
``device``. An arm's own ``generation`` and ``dtype`` win over the common ones; one with
``upstream`` (settings of a server that is not ours) is drawn by that server. Paths are absolute.

Writes ``out/report.json`` (what ``gate.decide`` reads), ``out/images/NAME.npz``,
``out/grids/NAME.png``. Result: ``{"report": "out/report.json", "seconds"}``. A candidate that
cannot be evaluated is an entry of the report's ``errors``; a champion that cannot is an error of
the job.
"""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers.utils import logging as transformers_logging

from intonaco import config
from intonaco.codec import as_json, digest
from intonaco.environments import EnvironmentStore, environment_lock
from intonaco.errors import ConfigError
from intonaco.evaluation.comparison import (
    FRECHET,
    NEIGHBOURS,
    ArmImages,
    Costs,
    Reference,
    compare,
    describe,
)
from intonaco.evaluation.drawing import ApartSampler
from intonaco.evaluation.elsewhere import ServerSampler
from intonaco.evaluation.features import cosines, load_extractor
from intonaco.evaluation.metrics import frechet_distance, precision_recall
from intonaco.evaluation.prompts import Shot, read_prompts, shots, shots_digest
from intonaco.evaluation.sampling import (
    Drawer,
    Images,
    Sampler,
    generate,
    latency_kind,
    time_pair,
)
from intonaco.jobs import JobFolder, main
from intonaco.protocols import FeatureExtractor
from intonaco.types import Json
from intonaco.workspace import Workspace, write_atomic, write_json

log = logging.getLogger(__name__)
CHAMPION = "champion"
GRID_COLUMNS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmSpec:
    """One arm to evaluate, as the payload gives it."""

    name: str
    release_id: str | None
    folder: Path
    generation: Mapping[str, Json]
    dtype: str
    environment: str = ""  # id; empty: this interpreter's
    upstream: Mapping[str, Json] | None = None  # settings of the server that draws it


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What came of an arm."""

    images: Images
    scores: ArmImages
    tensor_bytes: int
    sampler: Drawer


class Evaluation:
    """One run of the job."""

    def __init__(self, job: JobFolder) -> None:
        self.job = job
        payload = job.payload
        self.payload = payload
        self.device = str(payload.get("device", "cpu"))
        self.threads = int(payload.get("threads", 1))
        self.batch_size = int(payload.get("batch_size", 32))
        self.alpha = float(payload.get("alpha", config.Evaluation().alpha))
        self.margins = config.Margins.model_validate(payload.get("margins", {}))
        prompts = read_prompts(Path(payload["prompts"]))
        self.shots = shots(prompts, int(payload.get("seeds_per_prompt", 4)))
        self.slices = tuple(dict.fromkeys(p.slice for p in prompts))
        self.improve = self._known_slices("improve")
        self.keep = self._known_slices("keep") or tuple(
            s for s in self.slices if s not in self.improve
        )
        champion = payload.get("champion")
        self.champion = None if champion is None else self._arm({**champion, "name": CHAMPION})
        self.candidates = [self._arm(entry) for entry in payload["candidates"]]
        names = [CHAMPION, *(c.name for c in self.candidates)]
        if len(set(names)) < len(names):
            raise ConfigError(f"arms must have different names, got {', '.join(names)}")
        torch.set_num_threads(self.threads)
        transformers_logging.disable_progress_bar()
        given = payload["extractor"]
        self.extractor: FeatureExtractor = load_extractor(
            config.Extractor.model_validate(given), Path("/"), threads=self.threads
        )
        self.distance = f"{FRECHET}{self.extractor.name}"
        self.texts = self.extractor.texts([s.prompt.prompt for s in self.shots])
        self._generated = 0
        self._apart: list[ApartSampler | ServerSampler] = []
        self.environments = self._environments()
        self.cache = Path(payload["cache"]) if payload.get("cache") else None

    def run(self) -> Mapping[str, Json]:
        """The report."""
        try:
            return self._run()
        finally:
            for sampler in self._apart:
                sampler.close()

    def _run(self) -> Mapping[str, Json]:
        reference = read_reference(Path(self.payload["reference"]), self.extractor)
        arms: dict[str, Json] = {}
        comparisons: dict[str, Json] = {}
        errors: dict[str, str] = {}
        champion = None
        if self.champion is not None:
            champion = self.measure(self.champion)
            arms[CHAMPION] = self.summary(self.champion, champion, reference)
        for spec in self.candidates:
            try:
                measured = self.measure(spec)
                arms[spec.name] = self.summary(spec, measured, reference)
                comparisons[spec.name] = self.judge(spec, champion, measured, reference, arms)
            except Exception as error:  # one broken candidate must not hide the others
                log.exception("candidate %s", spec.name, extra={"action": "evaluation_failed"})
                errors[spec.name] = f"{type(error).__name__}: {error}"
        return {
            "champion": self.champion and {"release_id": self.champion.release_id},
            "candidates": [c.name for c in self.candidates],
            "keep": list(self.keep),
            "improve": list(self.improve),
            "alpha": self.alpha,
            "extractor": {"name": self.extractor.name, "digest": self.extractor.digest},
            "shots": {"digest": shots_digest(self.shots), "images_per_arm": len(self.shots)},
            "reference_images": len(reference.features),
            "latency_kind": "wall seconds of a server's answer"
            if self._not_ours
            else latency_kind(self.device),
            "not_ours": self._not_ours,
            "memory_kind": "bytes of parameters and buffers",
            "arms": arms,
            "comparisons": comparisons,
            "errors": errors,
        }

    def measure(self, spec: ArmSpec) -> Measured:
        """Generate an arm's images, or take them from the cache, extract features, save both."""
        sampler = self._sampler(spec)
        total = len(self.shots) * (len(self.candidates) + (self.champion is not None))
        before = self._generated

        def report(done: int) -> None:
            self._generated = before + done
            text = f"{spec.name}: {done} of {len(self.shots)} images"
            self.job.progress("generate", self._generated, total, text)

        key = self._key(spec)
        images = self._cached(
            f"{key}.npz" if key else None,
            lambda: generate(sampler, self.shots, self.batch_size, report),
        )
        report(len(self.shots))
        self.job.progress("features", self._generated, total, f"{spec.name}: looking at the images")
        features = self._cached(
            f"{key}-{self.extractor.digest[:16]}.npz" if key else None,
            lambda: np.asarray(self.extractor.images(list(images))),
        )
        scores = ArmImages(
            prompt_ids=tuple(s.prompt.prompt_id for s in self.shots),
            slices=tuple(s.prompt.slice for s in self.shots),
            adherence=cosines(features, self.texts).astype(np.float64),
            features=features.astype(np.float64),
        )
        self._save(spec.name, images)
        return Measured(
            images=images, scores=scores, tensor_bytes=sampler.tensor_bytes, sampler=sampler
        )

    def _environments(self) -> EnvironmentStore | None:
        """Where arms are drawn in processes of their own: needed if one names another environment
        than this, and then done for all, so that their times are alike."""
        given = self.payload.get("environments")
        arms = [*self.candidates, *([self.champion] if self.champion else [])]
        if not given or all(a.environment in ("", environment_lock()) for a in arms):
            return None
        return EnvironmentStore(
            Workspace(Path(given["workspace"])),
            base=str(given["base"]),
            timeout_s=float(given["timeout_s"]),
        )

    @property
    def _not_ours(self) -> bool:
        """Whether other people's servers draw every arm."""
        arms = [*self.candidates, *([self.champion] if self.champion else [])]
        return all(a.upstream is not None for a in arms)

    def _sampler(self, spec: ArmSpec) -> Drawer:
        if spec.upstream is not None:
            server = ServerSampler.start(spec.folder, spec.generation, spec.upstream)
            self._apart.append(server)
            return server
        if self.environments is None:
            return Sampler.load(spec.folder, spec.generation, dtype=spec.dtype, device=self.device)
        self.job.progress("environment", 0, 1, f"{spec.name}: in an environment of its own")
        sampler = ApartSampler.start(
            spec.folder,
            spec.generation,
            dtype=spec.dtype,
            device=self.device,
            threads=self.threads,
            environments=self.environments,
            environment=spec.environment or environment_lock(),
        )
        self._apart.append(sampler)
        return sampler

    def judge(
        self,
        spec: ArmSpec,
        champion: Measured | None,
        measured: Measured,
        reference: Reference,
        arms: dict[str, Json],
    ) -> Json:
        """Metrics of a candidate, against the champion where there is one."""
        if champion is None:
            found = describe(measured.scores, slices=self.keep, alpha=self.alpha, floor=None)
            return as_json(found)
        rounds = int(self.payload.get("latency_rounds", 10))
        timing = time_pair(
            champion.sampler,
            measured.sampler,
            self.shots[:: max(1, len(self.shots) // rounds)],
            rounds,
            lambda n: self.job.progress(
                "latency", n, rounds, f"{spec.name}: timing, round {n} of {rounds}"
            ),
        )
        arms[spec.name]["seconds_per_image"] = timing.candidate_seconds
        arms[CHAMPION]["seconds_per_image"] = timing.champion_seconds
        self.job.progress("compare", 0, 1, f"{spec.name}: comparing with the champion")
        found = compare(
            champion.scores,
            measured.scores,
            reference,
            Costs(
                log_ratios=timing.log_ratios,
                champion_seconds=timing.champion_seconds,
                candidate_seconds=timing.candidate_seconds,
                memory=(champion.tensor_bytes, measured.tensor_bytes),
            ),
            keep=self.keep,
            improve=self.improve,
            alpha=self.alpha,
            margins=self.margins,
            extractor=self.extractor.name,
        )
        return as_json(found)

    def summary(self, spec: ArmSpec, measured: Measured, reference: Reference) -> dict[str, Json]:
        """Figures of one arm by itself."""
        scores = measured.scores
        by_slice = {s: float(scores.adherence[scores.rows([s])].mean()) for s in self.slices}
        hits = self._hit_rates(scores)
        out: dict[str, Json] = {
            "release_id": spec.release_id,
            "generation": dict(spec.generation),
            "adherence": {"overall": float(scores.adherence.mean()), "by_slice": by_slice},
            "hit_rate": {"overall": float(np.mean(list(hits.values()))), "by_slice": hits},
            "memory_bytes": measured.tensor_bytes,
            "images": f"out/images/{spec.name}.npz",
            "grid": f"out/grids/{spec.name}.png",
        }
        asked = (*self.keep, *self.improve)
        rows, real = scores.rows(asked), reference.of(asked)
        if min(len(rows), len(real)) > NEIGHBOURS:
            pr = precision_recall(real, scores.features[rows], k=NEIGHBOURS)
            out[self.distance] = frechet_distance(scores.features[rows], real)
            out["precision"], out["recall"] = pr.precision, pr.recall
        return out

    def _hit_rates(self, scores: ArmImages) -> dict[str, float]:
        """Share of each slice's images that are nearer to their slice's prompts than to others'."""
        centres = np.stack(
            [self.texts[scores.rows([s])].mean(0, dtype=np.float64) for s in self.slices]
        )
        centres /= np.linalg.norm(centres, axis=1, keepdims=True)
        nearest = np.array(self.slices)[(scores.features @ centres.T).argmax(1)]
        hit = nearest == np.array(scores.slices)
        return {s: float(hit[scores.rows([s])].mean()) for s in self.slices}

    def _known_slices(self, field: str) -> tuple[str, ...]:
        given = tuple(str(s) for s in self.payload.get(field) or ())
        unknown = [s for s in given if s not in self.slices]
        if unknown:
            raise ConfigError(
                f"evaluation: {field} names {', '.join(unknown)}, for which there are no prompts; "
                f"slices of the prompts: {', '.join(self.slices)}",
                hint="add prompts with that slice to evaluation.prompts",
            )
        return given

    def _arm(self, entry: Mapping[str, Any]) -> ArmSpec:
        return ArmSpec(
            name=str(entry["name"]),
            release_id=entry.get("release_id"),
            folder=Path(entry["path"]),
            generation={**self.payload.get("generation", {}), **(entry.get("generation") or {})},
            dtype=str(entry.get("dtype") or self.payload.get("dtype", "float32")),
            environment=str(entry.get("environment") or ""),
            upstream=entry.get("upstream"),
        )

    def _key(self, spec: ArmSpec) -> str | None:
        """Names everything that decides an arm's images; None if they cannot be kept."""
        if self.cache is None or spec.release_id is None or spec.upstream is not None:
            return None  # what a server draws today it need not draw tomorrow
        return digest(
            {
                "release": spec.release_id,
                "generation": dict(spec.generation),
                "dtype": spec.dtype,
                "device": self.device,
                "batch_size": self.batch_size,
                "shots": shots_digest(self.shots),
                # where it is drawn, which is here if nothing says how to build another
                "environment": (self.environments and spec.environment) or environment_lock(),
            }
        )

    def _cached(self, name: str | None, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        if name is None or self.cache is None:
            return make()
        file = self.cache / name
        if file.exists():
            with np.load(file, allow_pickle=False) as kept:
                values: NDArray[Any] = kept["values"]
            return values
        values = make()
        write_atomic(file, _npz(values=values))
        return values

    def _save(self, name: str, images: Images) -> None:
        raw = _npz(
            images=images,
            prompt_ids=np.array([s.prompt.prompt_id for s in self.shots]),
            slices=np.array([s.prompt.slice for s in self.shots]),
            seeds=np.array([s.seed for s in self.shots], dtype=np.int64),
        )
        write_atomic(self.job.out / "images" / f"{name}.npz", raw)
        picture = io.BytesIO()
        Image.fromarray(sample_grid(images, self.shots, self.slices)).save(picture, format="PNG")
        write_atomic(self.job.out / "grids" / f"{name}.png", picture.getvalue())


def read_reference(folder: Path, extractor: FeatureExtractor) -> Reference:
    """Features of an image folder with ``metadata.jsonl``. Raises ConfigError."""
    file = folder / "metadata.jsonl"
    try:
        lines = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
        pictures = [np.asarray(Image.open(folder / e["file_name"]).convert("RGB")) for e in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"data.reference: {file} cannot be read: {error!r}") from error
    if not lines:
        raise ConfigError(f"data.reference: {file} is empty")
    topics = [e.get("topic") for e in lines]
    return Reference(
        features=np.asarray(extractor.images(pictures), dtype=np.float64),
        topics=() if not any(topics) else tuple(str(t) for t in topics),
    )


def sample_grid(images: Images, all_shots: Sequence[Shot], slices: Sequence[str]) -> Images:
    """One row a slice, images of different prompts side by side, uint8 [rows, columns, 3]."""
    height, width = images.shape[1:3]
    grid = np.zeros((len(slices) * height, GRID_COLUMNS * width, 3), dtype=np.uint8)
    for row, name in enumerate(slices):
        of_slice = [i for i, s in enumerate(all_shots) if s.prompt.slice == name]
        firsts = list({all_shots[i].prompt.prompt_id: i for i in reversed(of_slice)}.values())[::-1]
        shown = [*firsts, *(i for i in of_slice if i not in firsts)][:GRID_COLUMNS]
        for column, i in enumerate(shown):
            top, left = row * height, column * width
            grid[top : top + height, left : left + width] = images[i]
    return grid


def _npz(**arrays: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # it has one of another type
    return buffer.getvalue()


def run(job: JobFolder) -> Mapping[str, Json]:
    """The job. Raises ConfigError for a wrong payload, BackendError for a broken champion."""
    started = time.monotonic()
    report = Evaluation(job).run()
    write_json(job.out / "report.json", report)
    return {"report": "out/report.json", "seconds": time.monotonic() - started}


if __name__ == "__main__":
    main(run)
