"""Pictures as a model's own processor would prepare them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from intonaco.errors import ConfigError


class ImagePreparation:
    """What ``preprocessor_config.json`` says: resize, centre crop, rescale, normalise.

    Done with PIL and NumPy, since the processors of transformers need torchvision for some of it.
    ``identity`` says in words what is done. Raises ConfigError for a setting that it does not know
    how to follow.
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

    @property
    def identity(self) -> str:
        """Two preparations of one identity give the same pixels."""
        steps = ["rgb"]
        if self.size is not None:
            sides = "x".join(str(v) for v in self.size.values())
            steps.append(f"pil-{self.resample.name.lower()}-{'-'.join(self.size)}-{sides}")
        if self.crop is not None:
            steps.append(f"crop-{self.crop['height']}x{self.crop['width']}")
        shift, scale = (" ".join(f"{v:.7g}" for v in x) for x in (self.mean, self.std))
        return " ".join([*steps, f"times {self.factor:.7g}", f"minus {shift}", f"over {scale}"])

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
