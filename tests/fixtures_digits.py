"""A Stable Diffusion 3 of 1.2 million parameters that learns digits on one core."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from intonaco.demo.data import SIZE, WORDS
from intonaco.demo.model import build_tokenizer

TEXT_TOKENS = 1  # of the T5 that it does without: as many zeros stand for it


def build_mmdit(seed: int = 0) -> Any:
    """Untrained, for 32x32 RGB."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = build_tokenizer(WORDS)
        return StableDiffusion3Pipeline(
            transformer=SD3Transformer2DModel(
                sample_size=SIZE // 4,
                patch_size=2,
                in_channels=4,
                out_channels=4,
                num_layers=3,
                attention_head_dim=32,
                num_attention_heads=4,
                caption_projection_dim=128,
                joint_attention_dim=128,
                pooled_projection_dim=128,
                pos_embed_max_size=8,
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=AutoencoderKL(
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
                shift_factor=0.0,
            ),
            text_encoder=_text_encoder(tokenizer),
            tokenizer=tokenizer,
            text_encoder_2=_text_encoder(tokenizer),
            tokenizer_2=build_tokenizer(WORDS),
            text_encoder_3=None,
            tokenizer_3=None,
        )


def _text_encoder(tokenizer: Any) -> Any:
    """Random and frozen, with word embeddings of unit scale (as in ``intonaco.demo.model``)."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder = CLIPTextModelWithProjection(config).eval().requires_grad_(False)
    with torch.no_grad():
        encoder.get_input_embeddings().weight.mul_(50.0)
    return encoder
