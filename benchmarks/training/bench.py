"""How many images a second does training take in, against the step of diffusers' example?

The peer is the step of diffusers' `examples/text_to_image/train_text_to_image.py` with its
defaults: read and scale the picture, tokenise, encode it by the VAE and its caption by CLIP in
every step, plain AdamW, no moving average. The script itself imports torchvision, so its step is
written out here instead. Our loop reads latents and texts from its cache, and keeps a moving
average besides.

Same model, pictures, batch, float32, one thread; the two take turns, which goes first too, and the
ratio is the median over the rounds. `sd15`: the shape of Stable Diffusion 1.5 with an eighth of
all its channels, random weights and 128x128 pixels, so that a processor can do it: layers, levels
and attention are as there, and the VAE's and CLIP's share of the work stays near what it is.
`demo`: the demo's model. Filling the cache is not in the rate: `encode_s_per_image` is paid once a
dataset. TRAINING_EFFORT=0.2 does a fifth of the rounds.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FULL_NAMES = True
EFFORT = float(os.environ.get("TRAINING_EFFORT", "1"))
ROUNDS = 6
STEPS = 16
PICTURES = 16
SHAPES = {"sd15": (128, 4), "demo": (32, 32)}  # pixels a side, batch


def run() -> dict[str, float]:
    """Images a second of both, and ratios."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found: dict[str, float] = {}
        for name, (side, batch) in SHAPES.items():
            with tempfile.TemporaryDirectory() as folder:
                for key, value in _compare(name, side, batch, Path(folder)).items():
                    found[f"training.{name}.{key}"] = value
    finally:
        torch.set_num_threads(threads)
    found["training.images_per_s_over_example"] = found["training.sd15.images_per_s_over_example"]
    return found


def _compare(name: str, side: int, batch: int, root: Path) -> Mapping[str, float]:
    from intonaco.config import Recipe
    from intonaco.training.cache import cached
    from intonaco.training.families import family_of
    from intonaco.training.items import read_captioned
    from intonaco.training.loop import Hooks, train_denoiser
    from intonaco.training.objective import objective_of

    pipeline = build(name, side)
    recipe = Recipe(
        method="full",
        steps=STEPS,
        batch_size=batch,
        resolution=side,
        max_aspect=1.0,
        caption_dropout=0.0,
        min_snr_gamma=None,
        report_every=STEPS,
    )
    items = read_captioned(write_pictures(root / "data", side + side // 4))
    family = family_of(pipeline, recipe)
    objective = objective_of(pipeline.scheduler, recipe)
    begun = time.perf_counter()
    cache = cached(root / "cache", family, items, recipe)
    encoded = time.perf_counter() - begun
    pipeline.unet.requires_grad_(True)

    def ours() -> None:
        hooks = Hooks(clock=time.perf_counter)
        train_denoiser(family, cache, objective, recipe, hooks, seed=0)

    def theirs() -> None:
        example(pipeline, [(item.file, item.texts[0]) for item in items], side, batch, STEPS)

    rates: dict[str, list[float]] = {"ours": [], "example": []}
    both: list[tuple[str, Callable[[], None]]] = [("ours", ours), ("example", theirs)]
    for _, warm in both:
        warm()
    for n in range(max(2, round(ROUNDS * EFFORT))):
        for who, work in both if n % 2 else both[::-1]:
            begun = time.perf_counter()
            work()
            rates[who].append(STEPS * batch / (time.perf_counter() - begun))
    ratios = [a / b for a, b in zip(rates["ours"], rates["example"], strict=True)]
    return {
        "images_per_s": statistics.median(rates["ours"]),
        "example_images_per_s": statistics.median(rates["example"]),
        "images_per_s_over_example": statistics.median(ratios),
        "encode_s_per_image": encoded / len(items),
    }


def example(
    pipeline: Any, items: list[tuple[Path, str]], side: int, batch: int, steps: int
) -> list[float]:
    """The example's training steps, with its defaults; the loss of each."""
    import torch
    from torch.nn import functional as F  # noqa: N812 (its customary name)

    unet, vae, text, tokenizer = (
        pipeline.unet,
        pipeline.vae,
        pipeline.text_encoder,
        pipeline.tokenizer,
    )
    scheduler = pipeline.scheduler
    vae.requires_grad_(False)
    text.requires_grad_(False)
    unet.train()
    optimizer = torch.optim.AdamW(
        unet.parameters(), lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8
    )
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    order = torch.Generator().manual_seed(0)
    losses = []
    batches = _batches(items, batch, order)
    for _ in range(steps):
        chosen = next(batches)
        pixels = torch.stack([_pixels(file, side) for file, _ in chosen])
        tokens = tokenizer(
            [caption for _, caption in chosen],
            max_length=tokenizer.model_max_length,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ).input_ids
        latents = vae.encode(pixels).latent_dist.sample() * vae.config.scaling_factor
        noise = torch.randn_like(latents)
        times = torch.randint(0, scheduler.config.num_train_timesteps, (batch,)).long()
        noisy = scheduler.add_noise(latents, noise, times)
        states = text(tokens, return_dict=False)[0]
        said = unet(noisy, times, states, return_dict=False)[0]
        loss = F.mse_loss(said.float(), noise.float(), reduction="mean")
        losses.append(loss.item())  # the script gathers it in every step
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types there
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
    return losses


def _batches(items: list[Any], batch: int, order: Any) -> Iterator[list[Any]]:
    import torch

    left: list[int] = []
    while True:
        while len(left) < batch:
            left += torch.randperm(len(items), generator=order).tolist()
        yield [items[k] for k in left[:batch]]
        del left[:batch]


def _pixels(file: Path, side: int) -> Any:
    """Resize, centre crop, to [-1, 1]: what the script has torchvision do, [3, side, side]."""
    import torch

    with Image.open(file) as opened:
        image = opened.convert("RGB")
    scale = side / min(image.size)
    wide, high = (round(s * scale) for s in image.size)
    image = image.resize((wide, high), Image.Resampling.BILINEAR)
    left, top = (wide - side) // 2, (high - side) // 2
    image = image.crop((left, top, left + side, top + side))
    values = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255.0
    return values * 2.0 - 1.0


def build(name: str, side: int) -> Any:
    """A pipeline with random weights that is trained for noise, as the script trains."""
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from intonaco.demo.model import build_pipeline

    torch.manual_seed(0)
    made = build_pipeline()
    made.set_progress_bar_config(disable=True)
    scheduler = DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1
    )
    made.register_modules(scheduler=scheduler)
    if name == "sd15":
        made.tokenizer.model_max_length = 77
        config = CLIPTextConfig(
            vocab_size=len(made.tokenizer),
            hidden_size=96,
            intermediate_size=384,
            num_hidden_layers=12,
            num_attention_heads=12,
            max_position_embeddings=77,
            bos_token_id=made.tokenizer.bos_token_id,
            eos_token_id=made.tokenizer.eos_token_id,
            pad_token_id=made.tokenizer.pad_token_id,
        )
        made.register_modules(
            text_encoder=CLIPTextModel(config).eval(),
            vae=AutoencoderKL(
                block_out_channels=(16, 32, 64, 64),
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=2,
                norm_num_groups=8,
                sample_size=side,
                scaling_factor=0.18215,
            ),
            unet=UNet2DConditionModel(
                sample_size=side // 8,
                block_out_channels=(40, 80, 160, 160),
                layers_per_block=2,
                cross_attention_dim=96,
                attention_head_dim=8,
                norm_num_groups=8,
            ),
        )
        made.vae_scale_factor = 8
    for part in (made.vae, made.text_encoder):
        part.requires_grad_(False)
    return made


def write_pictures(folder: Path, side: int) -> Path:
    """An image folder of smooth random pictures."""
    folder.mkdir()
    random = np.random.default_rng(0)
    lines = []
    for n in range(PICTURES):
        small = random.integers(0, 256, (8, 8, 3), np.uint8)
        image = Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)
        image.save(folder / f"{n}.png")
        lines.append(json.dumps({"file_name": f"{n}.png", "text": f"a handwritten {n % 10}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder
