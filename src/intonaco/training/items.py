"""The items of a dataset version, and the shapes they are trained in.

Pictures of other shapes than a square are neither squeezed nor cut to one: each goes to the
*bucket* whose sides are nearest to its own (as NovelAI described it in 2022,
https://blog.novelai.net/novelai-improvements-on-stable-diffusion-e10d38db82ac), is scaled until it
covers it, and only what sticks out is cut off. A batch is of one bucket.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from intonaco.codec import lines_of
from intonaco.config import Recipe
from intonaco.errors import ConfigError
from intonaco.training.families import Family


@dataclass(frozen=True, slots=True, kw_only=True)
class Captioned:
    """One item of an image folder: where its image is and the texts it may be trained with."""

    file: Path
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """Pixels."""

    width: int
    height: int


def read_captioned(folder: Path) -> list[Captioned]:
    """The items of an image folder with ``metadata.jsonl``. Those without consent are left out
    whatever came before. Raises ConfigError if nothing is left."""
    items = []
    try:
        lines = lines_of((folder / "metadata.jsonl").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{folder} has no metadata.jsonl") from None
    for line in lines:
        entry = json.loads(line)
        text = entry["text"]
        if entry.get("consent", True):
            texts = (text,) if isinstance(text, str) else tuple(text)
            items.append(Captioned(file=folder / entry["file_name"], texts=texts or ("",)))
    if not items:
        raise ConfigError(f"{folder} has no items to train on")
    return items


def load_images(files: Sequence[Path], shape: Shape) -> tuple[Tensor, Tensor]:
    """Images [n, 3, h, w] in -1 to 1, scaled to cover the shape and cut around their middle, and
    their frames [n, 6] (see ``families.base``)."""
    arrays, frames = [], []
    for file in files:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
        width, height = image.size
        scale = max(shape.width / width, shape.height / height)
        left = max(0.0, (width * scale - shape.width) / 2)
        top = max(0.0, (height * scale - shape.height) / 2)
        if (width, height) != (shape.width, shape.height):
            image = ImageOps.fit(image, (shape.width, shape.height), Image.Resampling.BICUBIC)
        arrays.append(np.asarray(image))
        frames.append([height, width, round(top), round(left), shape.height, shape.width])
    stacked = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
    return stacked.float() / 127.5 - 1.0, torch.tensor(frames)


def square_of(family: Family, recipe: Recipe) -> Shape:
    """The square that a recipe trains at. Raises ConfigError if the denoiser cannot take it."""
    side = recipe.resolution or family.side
    if side % family.multiple or (family.longest is not None and side > family.longest):
        most = f" up to {family.longest}" if family.longest is not None else ""
        raise ConfigError(
            f"resolution: {side} pixels do not fit this model",
            hint=f"give a multiple of {family.multiple}{most}",
        )
    if family.squares and side != family.side:
        raise ConfigError(
            f"resolution: this model is made for {family.side} pixels, and {side} were asked for",
            hint="leave resolution out of the recipe",
        )
    return Shape(side, side)


def shapes_of(family: Family, recipe: Recipe) -> list[Shape]:
    """The buckets: as many pixels as the square, or just fewer, up to ``max_aspect``."""
    square = square_of(family, recipe)
    if family.squares or recipe.max_aspect == 1.0:
        return [square]
    area = square.width * square.height
    step = family.multiple * max(1, round(square.width / 16 / family.multiple))
    shapes = {square}
    for short in range(step, square.width, step):
        long = area // short // step * step
        fits = family.longest is None or long <= family.longest
        if fits and long / short <= recipe.max_aspect:
            shapes |= {Shape(short, long), Shape(long, short)}
    return sorted(shapes)


def sort_into(shapes: Sequence[Shape], items: Sequence[Captioned]) -> dict[Shape, list[int]]:
    """The numbers of the items in each bucket that has any, in the order of the items. Raises
    ConfigError for a file that is no image."""
    found: dict[Shape, list[int]] = {}
    for number, item in enumerate(items):
        try:
            with Image.open(item.file) as opened:
                turned = opened.getexif().get(0x0112, 1) >= 5  # lies on its side
                width, height = opened.size[::-1] if turned else opened.size
        except OSError as error:
            raise ConfigError(f"{item.file} cannot be read as an image: {error}") from error
        found.setdefault(nearest(shapes, width, height), []).append(number)
    return dict(sorted(found.items()))


def nearest(shapes: Sequence[Shape], width: int, height: int) -> Shape:
    """The shape of which least must be cut off; of equal ones the largest."""
    ratio = math.log(width / height)
    return min(
        shapes,
        key=lambda s: (
            round(abs(math.log(s.width / s.height) - ratio), 9),
            -s.width * s.height,
        ),
    )
