"""The evaluation job: ``python -m intonaco.evaluation.job JOB_FOLDER``.

Payload: ``champion`` ({"release_id", "path"} or null), ``candidates`` ([{"name", "release_id",
"path"}]), ``prompts`` (jsonl), ``reference`` (image folder with metadata.jsonl), ``extractor``
({"type", "path", "digest"}), ``seeds_per_prompt``, ``batch_size``, ``latency_rounds``, ``threads``,
``generation`` (steps, guidance_scale, width, height), ``keep`` and ``improve`` (slices; neither
given: all are kept). Optional: ``cache`` (folder), ``settings`` (``evaluation`` of the
configuration), ``alpha``, ``success`` (metrics), by candidate ``alphas`` and ``attempts`` (which
one for its trigger), ``superiority`` (whether something must improve), ``dtype``, ``device``,
``hidden`` (ids of prompts that nothing may show) and ``hidden_period``, ``training`` (folder of
each dataset version), ``heads`` with ``heads_root``, ``unsafe`` ({"score", "above"}),
``benchmark`` (``order.Benchmark``), ``context`` (for the report). An arm's own ``generation`` and
``dtype`` win over the common ones; ``training`` are its dataset versions, ``first_seed`` the number
of its first seed (of an A/A run). One with ``upstream`` (settings of a server that is not ours) is
drawn by that server. Paths are absolute.

Writes ``out/report.json`` (what ``gate.decide`` reads), ``out/report.html`` (for people),
``out/prompts.jsonl`` (scores of each prompt that may be shown), ``out/images/NAME.npz``,
``out/grids/NAME.png``. Result: ``{"report": "out/report.json", "seconds"}``. A candidate that
cannot be evaluated is an entry of the report's ``errors``; a champion that cannot is an error of
the job.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import io
import json
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers.utils import logging as transformers_logging

from intonaco.codec import as_json, digest
from intonaco.environments import EnvironmentStore, environment_lock
from intonaco.evaluation import benchmark
from intonaco.evaluation.arms import ArmImages, Costs, Reference
from intonaco.evaluation.cache import EvaluationCache
from intonaco.evaluation.comparison import (
    FRECHET,
    NEIGHBOURS,
    compare,
    describe,
    served_slices,
)
from intonaco.evaluation.drawing import ApartSampler
from intonaco.evaluation.elsewhere import ServerSampler
from intonaco.evaluation.features import load_extractor
from intonaco.evaluation.gate import GateDecision
from intonaco.evaluation.looking import Looking
from intonaco.evaluation.material import (
    MOST_TRAINING,
    ImageFolder,
    features_of,
    read_folder,
    shared_files,
)
from intonaco.evaluation.metrics import frechet_distance, precision_recall
from intonaco.evaluation.order import CHAMPION, ArmSpec, Order
from intonaco.evaluation.parts import by_kind, by_secrecy, prompt_rows
from intonaco.evaluation.prompts import Shot, leaked, shots_digest, version_of
from intonaco.evaluation.report import write_report
from intonaco.evaluation.reproducing import here
from intonaco.evaluation.sampling import (
    Drawer,
    Images,
    Sampler,
    generate,
    latency_kind,
    time_pair,
)
from intonaco.evaluation.served import ServedArm, time_in_turns
from intonaco.evaluation.verdicts import decided
from intonaco.jobs import JobFolder, main
from intonaco.monitoring.heads import Heads
from intonaco.protocols import FeatureExtractor
from intonaco.types import Json
from intonaco.workspace import Workspace, write_atomic, write_json

log = logging.getLogger(__name__)
GRID_COLUMNS = 8
SMALL = 96  # pixels: shown larger than they are, with their pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What came of an arm. ``sampler``: kept only where arms are timed here."""

    images: Images
    scores: ArmImages
    tensor_bytes: int | None
    sampler: Drawer | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """``figures``: for the report; None where arms were not timed in workers."""

    costs: Costs
    kind: str
    figures: Mapping[str, Json] | None = None


class Evaluation:
    """One run of the job."""

    def __init__(self, job: JobFolder) -> None:
        self.job = job
        self.payload = job.payload
        self.order = Order.of(job.payload)
        order = self.order
        torch.set_num_threads(order.threads)
        transformers_logging.disable_progress_bar()
        self.extractor: FeatureExtractor = load_extractor(
            order.extractor, Path("/"), threads=order.threads
        )
        self.distance = f"{FRECHET}{self.extractor.name}"
        self.cache = EvaluationCache(order.cache)
        self.look = Looking(
            self.extractor,
            order.shots,
            heads=Heads.load(order.heads, order.heads_root, self.extractor),
            unsafe=order.unsafe,
            cache=self.cache,
        )
        self.skipped = self.look.skipped
        self.keep = order.keep
        self.success = tuple(self.payload.get("success") or order.settings.success)
        self.environments = self._environments()
        self.notes: list[str] = []
        self._generated = 0
        self._kinds: set[str] = set()
        self._resources = contextlib.ExitStack()
        self._served_champion: ServedArm | None = None

    def run(self) -> Mapping[str, Json]:
        """The report; its pictures and pages are written on the way."""
        with self._resources:
            return self._run()

    def _run(self) -> Mapping[str, Json]:
        order = self.order
        reference = self._reference()
        arms: dict[str, Json] = {}
        comparisons: dict[str, Json] = {}
        benchmarks: dict[str, Json] = {}
        splits: dict[str, Json] = {}
        errors: dict[str, str] = {}
        measured: dict[str, Measured] = {}
        alphas = {
            c.name: float(self.payload.get("alphas", {}).get(c.name, order.alpha))
            for c in order.candidates
        }
        champion = None
        if order.champion is not None:
            champion = measured[CHAMPION] = self.measure(order.champion)
            arms[CHAMPION] = self.summary(order.champion, champion, reference)
            self.keep = served_slices(
                champion.scores,
                keep=order.keep,
                improve=order.improve,
                floor=order.settings.floor_adherence,
            )
        for spec in order.candidates:
            alpha = alphas[spec.name]
            try:
                one = measured[spec.name] = self.measure(spec)
                arms[spec.name] = self.summary(spec, one, reference)
                if champion is None:
                    found = describe(one.scores, slices=self.keep, alpha=alpha, floor=None)
                else:
                    timing = self.time(spec, champion, one, alpha)
                    self._kinds.add(timing.kind)
                    if timing.figures is not None:
                        benchmarks[spec.name] = timing.figures
                    arms[spec.name]["seconds_per_image"] = timing.costs.candidate_seconds
                    arms[CHAMPION]["seconds_per_image"] = timing.costs.champion_seconds
                    self.job.progress("compare", 0, 1, f"{spec.name}: comparing with the champion")
                    found = compare(
                        champion.scores,
                        one.scores,
                        reference,
                        timing.costs,
                        keep=self.keep,
                        improve=order.improve,
                        alpha=alpha,
                        margins=order.settings.margins,
                        extractor=self.extractor.name,
                        success=self.success,
                    )
                    pair = (champion.scores, one.scores)
                    splits[spec.name] = {
                        "kinds": by_kind(*pair, order.shots, alpha),
                        "hidden": by_secrecy(*pair, order.hidden, alpha),
                    }
                comparisons[spec.name] = as_json(found)
            except Exception as error:  # one broken candidate must not hide the others
                log.exception("candidate %s", spec.name, extra={"action": "evaluation_failed"})
                errors[spec.name] = f"{type(error).__name__}: {error}"
                measured.pop(spec.name, None)
        report: dict[str, Json] = {
            "champion": order.champion and {"release_id": order.champion.release_id},
            "candidates": [c.name for c in order.candidates],
            "keep": list(self.keep),
            "improve": list(order.improve),
            "alpha": order.alpha,
            "alphas": alphas,
            "success": list(self.success),
            "expected": {
                "attempts": dict(self.payload.get("attempts") or {}),
                "superiority": self.payload.get("superiority"),
            },
            "extractor": {
                "name": self.extractor.name,
                "digest": self.extractor.digest,
                "preprocessing": str(getattr(self.extractor, "preprocessing", "")),
            },
            "shots": {
                "digest": shots_digest(order.shots),
                "images_per_arm": len(order.shots),
                "prompts": len(order.prompts),
                "prompts_by_slice": dict(Counter(p.slice for p in order.prompts)),
                "prompts_digest": version_of(order.prompts),
            },
            "reference_images": len(reference.features),
            "latency_kind": "; ".join(sorted(self._kinds)) or latency_kind(order.device),
            "not_ours": order.not_ours,
            "memory_kind": "bytes of parameters and buffers",
            "arms": arms,
            "comparisons": comparisons,
            "benchmark": benchmarks,
            "splits": splits,
            "hidden": {
                "prompts": len(order.hidden),
                "period": order.hidden_period,
            },
            "skipped": self.skipped,
            "notes": self.notes,
            "errors": errors,
            "small_pictures": max(m.images.shape[1] for m in measured.values()) <= SMALL
            if measured
            else False,
            "reproduce": self._reproduce(),
        }
        decisions = decided(report, order.settings)
        report["verdicts"] = {
            name: {"verdict": str(d.verdict), "reasons": list(d.reasons)}
            for name, d in decisions.items()
        }
        self._write_pages(report, decisions, measured)
        return report

    # ------------------------------------------------------------------ what is measured

    def measure(self, spec: ArmSpec) -> Measured:
        """Generate an arm's images, or take them from the cache, extract features, save both."""
        order, all_shots = self.order, self.order.shots_of(spec)
        total = len(all_shots) * len(order.arms)
        before = self._generated
        sampler: Drawer | None = None

        def report(done: int) -> None:
            self._generated = before + done
            text = f"{spec.name}: {done} of {len(all_shots)} images"
            self.job.progress("generate", self._generated, total, text)

        def draw() -> Images:
            nonlocal sampler
            sampler = self._sampler(spec)
            return generate(sampler, all_shots, order.batch_size, report)

        images: Images = self.cache.images(self._key(spec), len(all_shots), draw)
        report(len(all_shots))
        if sampler is None and not self._timed_in_workers(spec):
            sampler = self._sampler(spec)  # the images were there, but it is to be timed
        tensor_bytes = None if sampler is None else sampler.tensor_bytes
        if self._timed_in_workers(spec) and isinstance(sampler, Sampler):
            sampler = None  # its memory is the worker's
            gc.collect()
            if order.device.startswith("cuda"):
                torch.cuda.empty_cache()
        self.job.progress("features", self._generated, total, f"{spec.name}: looking at the images")
        scores = self.look.arm(images)
        self._save(spec.name, images, all_shots)
        return Measured(images=images, scores=scores, tensor_bytes=tensor_bytes, sampler=sampler)

    def _reference(self) -> Reference:
        order = self.order
        self.job.progress("reference", 0, 1, "looking at the reference")
        folder = read_folder(order.reference, "data.reference")
        training = [
            read_folder(order.training[version], f"dataset {version[:10]}", most=MOST_TRAINING)
            for version in dict.fromkeys(v for arm in order.arms for v in arm.training)
            if version in order.training
        ]
        features = None
        if training:
            self.job.progress("reference", 0, 1, "looking at the training set")
            features = np.concatenate(
                [features_of(f, self.extractor, self.cache, "a dataset") for f in training]
            )
        else:
            self.skipped["copies"] = "no training images are known"
        self._tell_leaks(folder, training)
        return Reference(
            features=features_of(folder, self.extractor, self.cache, "data.reference"),
            topics=folder.topics,
            training=features,
            extractor=self.look.digest,
        )

    def _tell_leaks(self, reference: ImageFolder, training: Sequence[ImageFolder]) -> None:
        """Say what of the yardsticks an arm was trained on."""
        captions = [text for folder in training for text in folder.captions]
        if known := leaked(self.order.prompts, captions):
            self.notes.append(
                f"{len(known)} of {len(self.order.prompts)} prompts are captions of a training "
                "set: adherence on them says less about new prompts"
            )
        if files := shared_files(reference, training):
            self.notes.append(
                f"{len(files)} of {len(reference.files)} reference images are in a training set: "
                "distance and recall flatter who learnt them"
            )

    # ------------------------------------------------------------------ what it costs

    def time(self, spec: ArmSpec, champion: Measured, measured: Measured, alpha: float) -> Timing:
        """Both arms in turns: in workers of their own where that can be, else here."""
        order = self.order
        rounds = order.latency_rounds
        some = order.shots[:: max(1, len(order.shots) // rounds)]

        def report(done: int, of: int) -> None:
            text = f"{spec.name}: timing, {done} of {of}"
            self.job.progress("latency", done, of, text)

        if champion.sampler is None or measured.sampler is None:
            return self._time_in_workers(spec, some, report, alpha)
        timing = time_pair(
            champion.sampler, measured.sampler, some, rounds, lambda n: report(n, rounds)
        )
        kind = latency_kind(order.device)
        costs = Costs(
            log_ratios=timing.log_ratios,
            champion_seconds=timing.champion_seconds,
            candidate_seconds=timing.candidate_seconds,
            memory=(champion.sampler.tensor_bytes, measured.sampler.tensor_bytes),
        )
        self.skipped["latency_p95"] = "arms were not timed in workers of their own"
        return Timing(
            costs=costs, kind="wall seconds of a server's answer" if order.not_ours else kind
        )

    def _time_in_workers(
        self, spec: ArmSpec, some: Sequence[Shot], report: Any, alpha: float
    ) -> Timing:
        order, wanted = self.order, self.order.benchmark
        assert order.champion is not None
        assert wanted is not None
        report(0, order.latency_rounds + wanted.waves)
        if self._served_champion is None:
            self._served_champion = self._serve(order.champion)
            self._resources.callback(self._served_champion.close)
        with contextlib.closing(self._serve(spec)) as served:
            device = served.attest().device
            timed = time_in_turns(
                self._served_champion,
                served,
                some,
                rounds=order.latency_rounds,
                waves=wanted.waves,
                concurrency=wanted.concurrency,
                report=report,
            )
            memory = (self._served_champion.memory(), served.memory())
        cpu = device.startswith("cpu")
        figures = benchmark.summary(
            timed,
            memory,
            cpu=cpu,
            alpha=alpha,
            hourly_price=wanted.hourly_price,
            currency=wanted.currency,
        )
        return Timing(
            costs=benchmark.costs(timed, memory, figures, cpu=cpu),
            kind=figures["compared_by"],
            figures={**figures, "device": device},
        )

    def _serve(self, spec: ArmSpec) -> ServedArm:
        wanted = self.order.benchmark
        assert wanted is not None
        job = hashlib.sha256(str(self.job.root).encode()).hexdigest()[:8]
        return ServedArm.start(
            Workspace(wanted.workspace),
            str(spec.release_id),
            name=f"benchmark-{job}-{spec.name}",
            generation=spec.generation,
            worker=wanted.worker,
            log_file=self.job.root / f"worker-{spec.name}.txt",
            environments=self._store(),
            environment=spec.environment,
            concurrency=wanted.concurrency,
        )

    def _timed_in_workers(self, spec: ArmSpec) -> bool:
        """Whether no arm needs its sampler after its images are drawn."""
        order = self.order
        if order.champion is None:
            return True  # there is nobody to time it against
        return order.benchmark is not None and all(
            arm.upstream is None and arm.release_id for arm in order.arms
        )

    # ------------------------------------------------------------------ who draws

    def _store(self) -> EnvironmentStore | None:
        given = self.order.environments
        if not given:
            return None
        return EnvironmentStore(
            Workspace(Path(given["workspace"])),
            base=str(given["base"]),
            timeout_s=float(given["timeout_s"]),
        )

    def _environments(self) -> EnvironmentStore | None:
        """Where arms are drawn in processes of their own: needed if one names another environment
        than this, and then done for all, so that their times are alike."""
        if all(a.environment in ("", environment_lock()) for a in self.order.arms):
            return None
        return self._store()

    def _sampler(self, spec: ArmSpec) -> Drawer:
        order = self.order
        if spec.upstream is not None:
            server = ServerSampler.start(spec.folder, spec.generation, spec.upstream)
            self._resources.callback(server.close)
            return server
        if self.environments is None:
            return Sampler.load(spec.folder, spec.generation, dtype=spec.dtype, device=order.device)
        self.job.progress("environment", 0, 1, f"{spec.name}: in an environment of its own")
        sampler = ApartSampler.start(
            spec.folder,
            spec.generation,
            dtype=spec.dtype,
            device=order.device,
            threads=order.threads,
            environments=self.environments,
            environment=spec.environment or environment_lock(),
        )
        self._resources.callback(sampler.close)
        return sampler

    def _key(self, spec: ArmSpec) -> str | None:
        """Names everything that decides an arm's images; None if they cannot be kept."""
        if spec.release_id is None or spec.upstream is not None:
            return None  # what a server draws today it need not draw tomorrow
        return digest(
            {
                "release": spec.release_id,
                "generation": dict(spec.generation),
                "dtype": spec.dtype,
                "device": self.order.device,
                "batch_size": self.order.batch_size,
                "shots": shots_digest(self.order.shots_of(spec)),
                # where it is drawn, which is here if nothing says how to build another
                "environment": (self.environments and spec.environment) or environment_lock(),
            }
        )

    # ------------------------------------------------------------------ what is written

    def summary(self, spec: ArmSpec, measured: Measured, reference: Reference) -> dict[str, Json]:
        """Figures of one arm by itself."""
        scores = measured.scores
        slices = self.order.slices
        by_slice = {s: float(scores.adherence[scores.rows([s])].mean()) for s in slices}
        assert scores.hits is not None
        hits = {s: float(scores.hits[scores.rows([s])].mean()) for s in slices}
        out: dict[str, Json] = {
            "release_id": spec.release_id,
            "generation": dict(spec.generation),
            "adherence": {"overall": float(scores.adherence.mean()), "by_slice": by_slice},
            "hit_rate": {"overall": float(np.mean(list(hits.values()))), "by_slice": hits},
            "memory_bytes": measured.tensor_bytes,
            "images": f"out/images/{spec.name}.npz",
            "grid": f"out/grids/{spec.name}.png",
        }
        asked = (*self.order.keep, *self.order.improve)
        rows, real = scores.rows(asked), reference.of(asked)
        if min(len(rows), len(real)) > NEIGHBOURS:
            pr = precision_recall(real, scores.features[rows], k=NEIGHBOURS)
            out[self.distance] = frechet_distance(scores.features[rows], real)
            out["precision"], out["recall"] = pr.precision, pr.recall
        return out

    def _reproduce(self) -> dict[str, Json]:
        """All that it takes to do the same again."""
        order, payload = self.order, self.payload
        return {
            **here(order.device, order.threads),
            "command": f"python -m intonaco.evaluation.job {self.job.root.name}",
            "seeds_per_prompt": order.seeds_per_prompt,
            "batch_size": order.batch_size,
            "latency_rounds": order.latency_rounds,
            "prompts": Path(payload["prompts"]).name,
            "reference": order.reference.name,
            "extractor": {
                "type": order.extractor.type,
                "name": self.extractor.name,
                "digest": self.extractor.digest,
            },
            "releases": {
                arm.name: {
                    "release_id": arm.release_id,
                    "generation": dict(arm.generation),
                    "dtype": arm.dtype,
                    "environment": arm.environment,
                    "training": list(arm.training),
                    "first_seed": arm.first_seed,
                }
                for arm in order.arms
            },
            "settings": order.settings.model_dump(mode="json"),
            **order.context,
        }

    def _write_pages(
        self,
        report: Mapping[str, Json],
        decisions: Mapping[str, GateDecision],
        measured: Mapping[str, Measured],
    ) -> None:
        self.job.progress("report", 0, 1, "writing the report")
        rows = prompt_rows(
            {name: one.scores for name, one in measured.items()},
            self.order.shots,
            self.order.hidden,
        )
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomic(self.job.out / "prompts.jsonl", lines)
        write_report(
            report,
            decisions,
            rows,
            {name: one.images for name, one in measured.items()},
            self.job.out / "report.html",
        )

    def _save(self, name: str, images: Images, all_shots: Sequence[Shot]) -> None:
        raw = _npz(
            images=images,
            prompt_ids=np.array([s.prompt.prompt_id for s in all_shots]),
            slices=np.array([s.prompt.slice for s in all_shots]),
            seeds=np.array([s.seed for s in all_shots], dtype=np.int64),
        )
        write_atomic(self.job.out / "images" / f"{name}.npz", raw)
        shown = [i for i, s in enumerate(all_shots) if s.prompt.prompt_id not in self.order.hidden]
        grid = sample_grid(images[shown], [all_shots[i] for i in shown], self.order.slices)
        picture = io.BytesIO()
        Image.fromarray(grid).save(picture, format="PNG")
        write_atomic(self.job.out / "grids" / f"{name}.png", picture.getvalue())


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
    evaluation = Evaluation(job)
    report = evaluation.run()
    write_json(job.out / "report.json", report)
    settings = evaluation.order.settings
    evaluation.cache.trim(
        keep_bytes=int(settings.cache_gb * 1e9),
        unused_s=settings.cache_days * 86_400.0,
        now=time.time(),
    )
    return {"report": "out/report.json", "seconds": time.monotonic() - started}


if __name__ == "__main__":
    main(run)
