"""Feature extraction: images and prompts to unit vectors of one space, with a pinned CLIP.

The extractor is never part of a release: the same one looks at champion and candidate, in the gate
and in live traffic. Its digest covers every file that decides a feature: weights, configuration,
tokenizer, preprocessing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoTokenizer, CLIPModel

from intonaco import config
from intonaco.codec import digest
from intonaco.errors import ConfigError
from intonaco.plugins import resolve
from intonaco.protocols import FeatureExtractor
from intonaco.releases import PICKLES, file_digest

log = logging.getLogger(__name__)
BUILT_IN = {"clip": "intonaco.evaluation.features:ClipExtractor"}
NEEDED = ("config.json", "model.safetensors", "preprocessor_config.json")
Features = NDArray[np.float32]


def folder_digest(folder: Path) -> str:
    """sha256 over the names and contents of a folder's files, hidden ones left out."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith(".")]
    return digest({p.relative_to(folder).as_posix(): file_digest(p) for p in files})


class ImagePreparation:
    """What ``preprocessor_config.json`` says: resize, centre crop, rescale, normalise.

    Done with PIL and NumPy, since the processors of transformers need torchvision for some of it.
    Raises ConfigError for a setting that it does not know how to follow.
    """

    def __init__(self, folder: Path) -> None:
        file = folder / "preprocessor_config.json"
        try:
            settings: dict[str, Any] = json.loads(file.read_text())
        except ValueError as error:
            raise ConfigError(f"{file} is not valid JSON: {error}") from error
        on = {k: bool(settings.get(f"do_{k}", True)) for k in ("resize", "rescale", "normalize")}
        self.size = _size(settings.get("size"), file, "size") if on["resize"] else None
        crop = settings.get("crop_size") if settings.get("do_center_crop", False) else None
        self.crop = None if crop is None else _size(crop, file, "crop_size")
        self.resample = Image.Resampling(int(settings.get("resample", Image.Resampling.BICUBIC)))
        self.factor = float(settings.get("rescale_factor", 1 / 255)) if on["rescale"] else 1.0
        ones, zeros = [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]
        mean = settings.get("image_mean", zeros) if on["normalize"] else zeros
        std = settings.get("image_std", ones) if on["normalize"] else ones
        self.mean = np.asarray(mean, dtype=np.float32)
        self.std = np.asarray(std, dtype=np.float32)

    def __call__(self, images: Sequence[Any]) -> torch.Tensor:
        """Pixels [n, 3, h, w] float32 of PIL images or uint8 arrays [h, w, 3]."""
        pixels = np.stack([self._pixels(image) for image in images]).astype(np.float32)
        pixels = (pixels * np.float32(self.factor) - self.mean) / self.std
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))

    def _pixels(self, image: Any) -> NDArray[np.uint8]:
        picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
        picture = picture.convert("RGB")
        if self.size is not None:
            target = _target(picture.size, self.size)
            if target != picture.size:
                picture = picture.resize(target, self.resample)
        if self.crop is not None:
            width, height = self.crop["width"], self.crop["height"]
            left, top = (picture.width - width) // 2, (picture.height - height) // 2
            picture = picture.crop((left, top, left + width, top + height))
        return np.asarray(picture, dtype=np.uint8)


class ClipExtractor:
    """A ``transformers.CLIPModel`` folder as a ``FeatureExtractor``.

    ``folder`` holds what ``save_pretrained`` of model, tokenizer and image processor write.
    ``digest``: refuse a folder whose digest is another. ``threads`` is the number of threads of the
    whole process. Raises ConfigError: a file is missing, a pickle is there, the digest is wrong.
    """

    def __init__(
        self, folder: Path, digest: str | None = None, threads: int = 1, *, batch_size: int = 64
    ) -> None:
        _check(folder)
        self.digest = folder_digest(folder)
        if digest is not None and digest != self.digest:
            raise ConfigError(
                f"extractor {folder} has the digest {self.digest}, {digest} is configured",
                hint="scores of different extractors cannot be compared: put the pinned one back, "
                "or set extractor.digest and let the monitors learn what is normal again",
            )
        torch.set_num_threads(threads)
        self._model = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        self._model.eval().requires_grad_(False)
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._prepare = ImagePreparation(folder)
        self._batch_size = batch_size
        self._max_length = int(self._model.config.text_config.max_position_embeddings)
        self.name: str = getattr(self._model.config, "extractor_name", None) or folder.name
        log.info(
            "extractor loaded",
            extra={"action": "extractor_loaded", "extractor": self.name, "digest": self.digest},
        )

    @property
    def dimension(self) -> int:
        """Width of the features."""
        return int(self._model.config.projection_dim)

    @torch.inference_mode()
    def images(self, images: Sequence[Any]) -> Features:
        """Unit rows [n, d] of PIL images or uint8 arrays [h, w, 3]."""
        rows = [
            _unit(self._model.get_image_features(pixel_values=self._prepare(images[i:j])))
            for i, j in self._batches(len(images))
        ]
        return self._stack(rows)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Features:
        """Unit rows [n, d] of prompts; one that is too long is cut."""
        rows = []
        for i, j in self._batches(len(texts)):
            tokens = self._tokenizer(
                list(texts[i:j]),
                padding=True,
                truncation=True,
                max_length=self._max_length,
                return_tensors="pt",
            )
            out = self._model.get_text_features(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            )
            rows.append(_unit(out))
        return self._stack(rows)

    def _batches(self, n: int) -> list[tuple[int, int]]:
        return [(i, min(i + self._batch_size, n)) for i in range(0, n, self._batch_size)]

    def _stack(self, rows: list[Features]) -> Features:
        if not rows:
            return np.zeros((0, self.dimension), dtype=np.float32)
        return np.concatenate(rows)


class ClipScorer:
    """Raw cosine of image and prompt, -1 to 1: no rescaling, no clamping."""

    name = "clip"

    def __init__(self, extractor: FeatureExtractor) -> None:
        self.extractor = extractor

    def score(self, images: Sequence[Any], prompts: Sequence[str]) -> NDArray[np.floating[Any]]:
        """Cosines [n]. Raises ValueError unless there are as many prompts as images."""
        if len(images) != len(prompts):
            raise ValueError(f"{len(images)} images for {len(prompts)} prompts")
        return cosines(self.extractor.images(images), self.extractor.texts(prompts))


def cosines(images: NDArray[Any], texts: NDArray[Any]) -> NDArray[np.floating[Any]]:
    """Row by row cosines [n] of unit rows."""
    out: NDArray[np.floating[Any]] = np.einsum("nd,nd->n", images, texts, dtype=np.float64)
    return out


def load_extractor(spec: config.Extractor, root: Path, *, threads: int = 1) -> FeatureExtractor:
    """The configured extractor. ``spec.path`` is relative to ``root``. ``type`` is "clip", an entry
    point of ``intonaco.extractor`` or ``module:attribute``, called with (folder, digest, threads).
    Raises ConfigError."""
    make = resolve("extractor", spec.type, BUILT_IN)
    made = make(root / spec.path, spec.digest, threads)
    if not isinstance(made, FeatureExtractor):
        raise ConfigError(
            f"extractor.type {spec.type!r} made a {type(made).__name__}, which is no extractor",
            hint="it needs name, digest, images(images) and texts(texts)",
        )
    return made


def _check(folder: Path) -> None:
    if not folder.is_dir():
        raise ConfigError(
            f"extractor folder {folder} does not exist",
            hint="extractor.path must name a folder that `CLIPModel.save_pretrained` wrote",
        )
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    if missing:
        raise ConfigError(f"extractor folder {folder} has no {', '.join(missing)}")
    pickles = [p for p in sorted(folder.rglob("*")) if p.suffix in PICKLES]
    if pickles:
        raise ConfigError(f"{pickles[0]} is a pickle, which can run code when it is loaded")


def _unit(out: Any) -> Features:
    # transformers 5 wraps what 4 returned as a tensor
    projected = out if isinstance(out, torch.Tensor) else out.pooler_output
    unit = torch.nn.functional.normalize(projected.float(), dim=-1)
    return cast(Features, unit.numpy())


def _size(value: Any, file: Path, field: str) -> dict[str, int]:
    if isinstance(value, int):
        return {"shortest_edge": value} if field == "size" else {"height": value, "width": value}
    if isinstance(value, dict):
        size = {k: int(v) for k, v in value.items() if v is not None}
        if set(size) in ({"shortest_edge"}, {"height", "width"}):
            return size
    raise ConfigError(
        f"{file}: {field} is {value!r}; known are a number, {{shortest_edge}}, {{height, width}}"
    )


def _target(size: tuple[int, int], wanted: dict[str, int]) -> tuple[int, int]:
    width, height = size
    if "shortest_edge" not in wanted:
        return wanted["width"], wanted["height"]
    short = wanted["shortest_edge"]
    if width <= height:
        return short, int(short * height / width)
    return int(short * width / height), short
