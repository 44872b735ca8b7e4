"""A tiny StableDiffusionPipeline with random weights: real classes, real files, no training.

Two seeds give two releases.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from intonaco.releases import ReleaseStore, read_serving_spec
from intonaco.types import Provenance, Release
from intonaco.workspace import Workspace

SIZE = 32
GENERATION = {"steps": 2, "guidance_scale": 1.5, "width": SIZE, "height": SIZE}
WORDS = ("a", "handwritten", "zero", "one", "two", "three", "four", "five")


def tokenizer(max_length: int = 12) -> Any:
    """Byte-level BPE in memory, one token a known word, letters for the others."""
    from transformers import CLIPTokenizer

    vocab: dict[str, int] = {}
    merges: list[tuple[str, str]] = []

    def add(token: str) -> None:
        vocab.setdefault(token, len(vocab))

    add("<|startoftext|>")
    add("<|endoftext|>")
    for letter in "abcdefghijklmnopqrstuvwxyz0123456789.,'-!?":
        add(letter)
        add(letter + "</w>")
    for word in (w for w in WORDS if len(w) > 1):
        left = word[0]
        for right in [*word[1:-1], word[-1] + "</w>"]:
            if (left, right) not in merges:
                merges.append((left, right))
            left += right
            add(left)
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max_length)


def build(seed: int = 0) -> Any:
    """An untrained text-to-image latent diffusion pipeline, 32x32, 0.4 M parameters."""
    import torch
    from diffusers import (
        AutoencoderKL,
        DPMSolverMultistepScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    tok = tokenizer()
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tok),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=tok.model_max_length,
            projection_dim=64,
            bos_token_id=tok.bos_token_id,
            eos_token_id=tok.eos_token_id,
            pad_token_id=tok.pad_token_id,
        )
    ).eval()
    with torch.no_grad():
        text.get_input_embeddings().weight.mul_(50.0)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=SIZE,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )
    unet = UNet2DConditionModel(
        sample_size=SIZE // 4,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=1.0,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tok,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save(folder: Path, seed: int = 0) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own deprecations
        build(seed).save_pretrained(folder, safe_serialization=True)
    return folder


def add_release(
    workspace: Workspace, folder: Path, *, recipe: str | None = None, service: str = "tiny"
) -> Release:
    spec = read_serving_spec(folder, generation=GENERATION)
    provenance = Provenance(created_at=1.0, recipe=recipe)
    return ReleaseStore(workspace, service).add(folder, spec, provenance)
