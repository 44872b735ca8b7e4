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
import errno
import gc
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from transformers.utils import logging as transformers_logging

from intonaco.codec import as_json
from intonaco.errors import BackendError, StorageError
from intonaco.evaluation.arms import ArmImages, Reference
from intonaco.evaluation.cache import EvaluationCache
from intonaco.evaluation.comparison import (
    FRECHET,
    NEIGHBOURS,
    compare,
    describe,
    served_slices,
)
from intonaco.evaluation.drawers import Drawers
from intonaco.evaluation.features import load_extractor
from intonaco.evaluation.gate import GateDecision
from intonaco.evaluation.keeping import save_images
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
from intonaco.evaluation.prompts import leaked, shots_digest, version_of
from intonaco.evaluation.report import write_report
from intonaco.evaluation.reproducing import here
from intonaco.evaluation.sampling import (
    Drawer,
    Images,
    Sampler,
    generate,
    latency_kind,
)
from intonaco.evaluation.timing import Stopwatch
from intonaco.evaluation.verdicts import decided
from intonaco.jobs import JobFolder, main
from intonaco.monitoring.heads import Heads
from intonaco.protocols import FeatureExtractor
from intonaco.types import Json
from intonaco.workspace import write_atomic, write_json

log = logging.getLogger(__name__)
FULL = (errno.ENOSPC, errno.EDQUOT)
SMALL = 96  # pixels: shown larger than they are, with their pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What came of an arm. ``sampler``: kept only where arms are timed here."""

    images: Images
    scores: ArmImages
    tensor_bytes: int | None
    sampler: Drawer | None


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
        self.notes: list[str] = []
        self.yardstick: dict[str, Json] = {}  # which reference images, for the report
        self._generated = 0
        self._kinds: set[str] = set()
        self._resources = contextlib.ExitStack()
        self.drawers = Drawers(
            order, self._resources, lambda text: job.progress("environment", 0, 1, text)
        )
        self.stopwatch = Stopwatch(order, self.drawers, job.root, self._resources)

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
                    timing = self.stopwatch.time(
                        spec, (champion.sampler, one.sampler), alpha, self._timing(spec)
                    )
                    if timing.figures is None:
                        self.skipped["latency_p95"] = "arms were not timed in workers of their own"
                    self._kinds.add(timing.kind)
                    if timing.figures is not None:
                        benchmarks[spec.name] = timing.figures
                    arms[spec.name]["seconds_per_image"] = timing.costs.candidate_seconds
                    arms[CHAMPION]["seconds_per_image"] = timing.costs.champion_seconds
                    self.job.progress("compare", 0, 1, f"{spec.name}: comparing with the champion")
                    pair = self._alike(champion, one, spec.name)
                    found = compare(
                        *pair,
                        reference,
                        timing.costs,
                        keep=self.keep,
                        improve=order.improve,
                        alpha=alpha,
                        margins=order.settings.margins,
                        extractor=self.extractor.name,
                        success=self.success,
                    )
                    splits[spec.name] = {
                        "kinds": by_kind(*pair, order.shots, alpha),
                        "hidden": by_secrecy(*pair, order.hidden, alpha),
                    }
                comparisons[spec.name] = as_json(found)
            except Exception as error:  # one broken candidate must not hide the others
                if isinstance(error, OSError) and error.errno in FULL:
                    raise  # and a full disk is no candidate's fault
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
            sampler = self.drawers.sampler(spec)
            return generate(sampler, all_shots, order.batch_size, report)

        images: Images = self.cache.images(self.drawers.key(spec), len(all_shots), draw)
        _check_size(spec, images)
        report(len(all_shots))
        if sampler is None and not self.drawers.timed_in_workers:
            sampler = self.drawers.sampler(spec)  # the images were there, but it is to be timed
        tensor_bytes = None if sampler is None else sampler.tensor_bytes
        if self.drawers.timed_in_workers and isinstance(sampler, Sampler):
            sampler = None  # its memory is the worker's
            gc.collect()
            if order.device.startswith("cuda"):
                torch.cuda.empty_cache()
        self.job.progress("features", self._generated, total, f"{spec.name}: looking at the images")
        scores = self.look.arm(images)
        save_images(
            self.job.out, spec.name, images, all_shots, slices=order.slices, hidden=order.hidden
        )
        return Measured(images=images, scores=scores, tensor_bytes=tensor_bytes, sampler=sampler)

    def _reference(self) -> Reference:
        order = self.order
        self.job.progress("reference", 0, 1, "looking at the reference")
        folder = read_folder(order.reference, "data.reference")
        self.yardstick = {"folder": order.reference.name, "digest": folder.digest}
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

    def _alike(self, champion: Measured, one: Measured, name: str) -> tuple[ArmImages, ArmImages]:
        """Both arms as far as they can be compared: detail is of pictures of one size only."""
        if champion.images.shape == one.images.shape:
            return champion.scores, one.scores
        self.skipped["detail"] = f"{name} draws pictures of another size than the champion"
        return replace(champion.scores, detail=None), replace(one.scores, detail=None)

    def _timing(self, spec: ArmSpec) -> Callable[[int, int], None]:
        return lambda done, of: self.job.progress(
            "latency", done, of, f"{spec.name}: timing, {done} of {of}"
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
            "reference": self.yardstick,
            "extractor": {
                "type": order.extractor.type,
                "name": self.extractor.name,
                "digest": self.extractor.digest,
            },
            "heads": {name: head.model_dump(mode="json") for name, head in order.heads.items()},
            "unsafe": None if order.unsafe is None else asdict(order.unsafe),
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


def _check_size(spec: ArmSpec, images: Images) -> None:
    """Raises BackendError for pictures of another size than was asked for: users would get them."""
    height, width = images.shape[1:3]
    asked = (int(spec.generation.get("width", width)), int(spec.generation.get("height", height)))
    if asked != (width, height):
        raise BackendError(
            f"{spec.name} draws {width}x{height} where {asked[0]}x{asked[1]} is asked for",
            backend="model",
            retriable=False,
        )


def run(job: JobFolder) -> Mapping[str, Json]:
    """The job. Raises ConfigError for a wrong payload, BackendError for a broken champion,
    StorageError for a full disk."""
    started = time.monotonic()
    evaluation = Evaluation(job)
    try:
        report = evaluation.run()
        write_json(job.out / "report.json", report)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise StorageError(
            f"the disk is full: {job.root} or {evaluation.order.cache} cannot be written",
            hint="free some space, or lower evaluation.cache_gb; what was drawn whole is kept",
        ) from error
    settings = evaluation.order.settings
    evaluation.cache.trim(
        keep_bytes=int(settings.cache_gb * 1e9),
        unused_s=settings.cache_days * 86_400.0,
        now=time.time(),
    )
    return {"report": "out/report.json", "seconds": time.monotonic() - started}


if __name__ == "__main__":
    main(run)
