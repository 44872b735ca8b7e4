"""A dataset as the denoiser sees it: latents and text embeddings, encoded once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from intonaco.errors import ConfigError
from intonaco.training.vae import posterior_means


@dataclass(frozen=True, slots=True, kw_only=True)
class Captioned:
    """One item of an image folder: where its image is and the texts it may be trained with."""

    file: Path
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """All on one device. ``choices[i, :counts[i]]`` are the rows of ``texts`` of item i."""

    latents: Tensor  # [n, c, h, w], scaled to unit variance
    texts: Tensor  # [distinct texts, tokens, width]
    empty: Tensor  # [tokens, width], embedding of ""
    choices: Tensor  # [n, most texts of an item]
    counts: Tensor  # [n]

    def __len__(self) -> int:
        return len(self.latents)


def read_captioned(folder: Path) -> list[Captioned]:
    """The items of an image folder with ``metadata.jsonl``. Those without consent are left out
    whatever came before. Raises ConfigError if nothing is left."""
    items = []
    try:
        lines = (folder / "metadata.jsonl").read_text().splitlines()
    except FileNotFoundError:
        raise ConfigError(f"{folder} has no metadata.jsonl") from None
    for line in filter(None, lines):
        entry = json.loads(line)
        text = entry["text"]
        if entry.get("consent", True):
            texts = (text,) if isinstance(text, str) else tuple(text)
            items.append(Captioned(file=folder / entry["file_name"], texts=texts))
    if not items:
        raise ConfigError(f"{folder} has no items to train on")
    return items


def load_images(files: Sequence[Path], size: int) -> Tensor:
    """Images [n, 3, size, size] in -1 to 1, cropped to a centred square where they are not."""
    arrays = []
    for file in files:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
        if image.size != (size, size):
            image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
        arrays.append(np.asarray(image))
    stacked = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
    return stacked.float() / 127.5 - 1.0


def image_size(pipeline: Any) -> int:
    """Pixels a side that the pipeline's denoiser works at."""
    return int(pipeline.unet.config.sample_size) * int(pipeline.vae_scale_factor)


def build_cache(pipeline: Any, items: Sequence[Captioned], images: Tensor) -> Cache:
    """Encode images [n, 3, h, w] and every distinct text of ``items`` once. Held in memory."""
    device = pipeline.unet.device
    known: dict[str, int] = {}
    rows = [[known.setdefault(text, len(known)) for text in item.texts] for item in items]
    most = max(len(row) for row in rows)
    return Cache(
        latents=(posterior_means(pipeline.vae, images) * pipeline.vae.config.scaling_factor).to(
            device
        ),
        texts=_embed(pipeline, list(known)),
        empty=_embed(pipeline, [""])[0],
        choices=torch.tensor([row + [0] * (most - len(row)) for row in rows]),
        counts=torch.tensor([len(row) for row in rows]),
    )


@torch.no_grad()
def _embed(pipeline: Any, texts: list[str], batch_size: int = 64) -> Tensor:
    """[n, tokens, width], by the pipeline's own ``encode_prompt``, as it is in service."""
    device = pipeline.unet.device
    parts = [
        pipeline.encode_prompt(texts[i : i + batch_size], device, 1, False)[0]
        for i in range(0, len(texts), batch_size)
    ]
    return torch.cat(parts)
