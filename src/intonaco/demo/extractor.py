"""The demo's extractor: a small real CLIP of handwritten digits, trained as a job.

``python -m intonaco.demo.extractor JOB_FOLDER``; payload ``{"data", "seed"}`` and optionally
``{"heldout"}`` (another npz, only measured on). It is trained on its own part of the digits, which
neither the image model nor the judge ever sees. It is in essence a classifier of ten digits, so
nothing follows from it about composition or taste.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its customary name)
from numpy.typing import NDArray
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from intonaco import jobs
from intonaco.demo.data import NAMES, PHRASINGS, SIZE, WORDS
from intonaco.demo.model import build_tokenizer
from intonaco.errors import ConfigError
from intonaco.evaluation.features import ClipExtractor, folder_digest
from intonaco.types import Json

NAME = "digits-clip32"
PIXELS = 16  # the digits have 8x8: more only costs time
MAX_TOKENS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Measured on three splits: see ``train``."""

    steps: int = 500
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    temperature: float = 10.0
    ema_decay: float = 0.98


def build(words: CLIPTokenizer) -> CLIPModel:
    """An untrained model: a vision transformer on 2x2 patches of 8 pixels, a one-layer text tower,
    32 shared dimensions. Few, large patches learn from 330 images what 4-pixel patches did not."""
    text = {
        "vocab_size": len(words),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    vision = {
        "image_size": PIXELS,
        "patch_size": 8,
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "hidden_act": "gelu",
    }
    return CLIPModel(
        CLIPConfig(
            text_config={**text, "projection_dim": 32},
            vision_config={**vision, "projection_dim": 32},
            projection_dim=32,
            extractor_name=NAME,
        )
    )


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Turned, sheared, stretched, shifted, brightened and noisy copies [n, 3, PIXELS, PIXELS] of
    images [n, 3, h, w] in 0 to 1."""
    n = len(images)

    def spread(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator) * 2 - 1

    angle = spread(n) * math.radians(12)
    across, down, shear = 1 + 0.15 * spread(n), 1 + 0.15 * spread(n), 0.2 * spread(n)
    move = torch.zeros(n, 2, 3)
    move[:, 0, 0] = across * angle.cos()
    move[:, 0, 1] = shear - across * angle.sin()
    move[:, 1, 0] = down * angle.sin()
    move[:, 1, 1] = down * angle.cos()
    move[:, 0, 2] = 0.14 * spread(n)
    move[:, 1, 2] = 0.10 * spread(n)
    where = F.affine_grid(move, [n, 3, PIXELS, PIXELS], align_corners=False)
    moved = F.grid_sample(images, where, align_corners=False, padding_mode="zeros")
    noise = torch.randn(n, 1, PIXELS, PIXELS, generator=generator)
    return (moved * (1 + 0.2 * spread(n, 1, 1, 1)) + 0.05 * noise).clamp(0, 1)


def train(
    job: jobs.JobFolder,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    seed: int,
    recipe: Recipe,
) -> tuple[CLIPModel, CLIPTokenizer]:
    """Contrastive training against one phrasing per digit and step, so that all images of a digit
    are positives of its text: cross-entropy of the scaled cosines (as CLIP), plus the squared error
    of the cosines to 1 (matched) and 0 (not), which makes the raw cosine a calibrated score. The
    moving average of the weights is kept."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    words = build_tokenizer(WORDS, MAX_TOKENS)
    model = build(words)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    digits = torch.from_numpy(labels)
    tokens = words(
        [p.format(name) for name in NAMES for p in PHRASINGS],
        padding="max_length",
        max_length=MAX_TOKENS,
        return_tensors="pt",
    ).input_ids.view(len(NAMES), len(PHRASINGS), -1)
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups,
        lr=recipe.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=recipe.weight_decay,
    )
    average = [p.detach().clone() for p in parameters]
    every = torch.arange(len(NAMES))
    model.train()
    for step in range(recipe.steps):
        warm = min(1.0, (step + 1) / 30)
        rate = warm * (0.5 * (1 + math.cos(math.pi * step / recipe.steps)) + 0.01)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * rate
        rows = torch.randint(0, len(pixels), (recipe.batch_size,), generator=generator)
        phrasing = torch.randint(0, len(PHRASINGS), (len(NAMES),), generator=generator)
        seen = (augment(pixels[rows], generator) - 0.5) / 0.5
        image = _unit(model.visual_projection(model.vision_model(pixel_values=seen).pooler_output))
        told = model.text_model(input_ids=tokens[every, phrasing]).pooler_output
        cosine = image @ _unit(model.text_projection(told)).T
        target = F.one_hot(digits[rows], len(NAMES)).float()
        loss = F.cross_entropy(recipe.temperature * cosine, digits[rows])
        loss = loss + 10.0 * F.mse_loss(cosine, target)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types there
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        keep = min(recipe.ema_decay, (step + 1) / (step + 10))
        with torch.no_grad():
            for mean, value in zip(average, parameters, strict=True):
                mean.lerp_(value, 1 - keep)
        job.progress("train", step + 1, recipe.steps, text=f"loss {loss.item():.3f}")
    with torch.no_grad():
        for mean, value in zip(average, parameters, strict=True):
            value.copy_(mean)
        model.logit_scale.fill_(math.log(recipe.temperature))
    return model.eval(), words


def save(model: CLIPModel, words: CLIPTokenizer, folder: Path) -> None:
    """Write the folder that ``ClipExtractor`` loads."""
    model.save_pretrained(folder, safe_serialization=True)
    words.save_pretrained(folder)
    preparation = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": PIXELS, "width": PIXELS},
        "resample": 2,
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preparation, indent=2))


def measure(
    extractor: ClipExtractor, images: NDArray[np.uint8], labels: NDArray[np.int64]
) -> Mapping[str, float]:
    """Zero-shot accuracy and mean cosines of images to all phrasings of their own digit and of the
    others."""
    seen = extractor.images(list(images))
    texts = extractor.texts([p.format(name) for name in NAMES for p in PHRASINGS])
    cosine = (seen @ texts.T).reshape(len(images), len(NAMES), len(PHRASINGS))
    own = np.zeros((len(images), len(NAMES)), dtype=bool)
    own[np.arange(len(images)), labels] = True
    return {
        "accuracy": float((cosine.mean(2).argmax(1) == labels).mean()),
        "matched": float(cosine[own].mean()),
        "matched_sd": float(cosine[own].mean(1).std()),
        "mismatched": float(cosine[~own].mean()),
    }


def run(job: jobs.JobFolder) -> Mapping[str, Json]:
    """The job. Raises ConfigError if the data cannot be read."""
    payload = job.payload
    torch.set_num_threads(1)
    images, labels = _read(Path(payload["data"]))
    if payload.get("heldout"):
        test_images, test_labels = _read(Path(payload["heldout"]))
    else:  # every tenth is measured on instead of learnt
        test = np.arange(len(labels)) % 10 == 0
        test_images, test_labels = images[test], labels[test]
        images, labels = images[~test], labels[~test]
    recipe = Recipe(steps=int(payload.get("steps", Recipe().steps)))
    model, words = train(job, images, labels, int(payload.get("seed", 0)), recipe)
    folder = job.out / "extractor"
    save(model, words, folder)
    extractor = ClipExtractor(folder)
    measured = measure(extractor, test_images, test_labels)
    return {
        "path": "out/extractor",
        "digest": folder_digest(folder),
        "name": NAME,
        "images": len(labels),
        "heldout_images": len(test_labels),
        "accuracy_heldout": measured["accuracy"],
        "cosine_matched": measured["matched"],
        "cosine_matched_sd": measured["matched_sd"],
        "cosine_mismatched": measured["mismatched"],
    }


def _read(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            images, labels = file["images"], file["labels"].astype(np.int64)
    except (OSError, KeyError, ValueError) as error:
        raise ConfigError(f"{path} holds no images and labels: {error}") from error
    if images.dtype != np.uint8 or images.shape[1:] != (SIZE, SIZE, 3):
        raise ConfigError(f"{path}: images must be uint8 [n, {SIZE}, {SIZE}, 3]")
    return images, labels


def _unit(x: Any) -> torch.Tensor:
    return F.normalize(x, dim=-1)


if __name__ == "__main__":
    jobs.main(run)
