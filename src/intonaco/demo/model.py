"""The demo's image model before training: Stable Diffusion, small enough for one CPU core.

Every part is a stock library class (KL autoencoder, CLIP text encoder and tokenizer, conditional
UNet, DPM-Solver++ on rectified-flow sigmas), so that training, serving and registering it exercise
the same code as a large model. About 0.5 million parameters; see docs/decisions for the recipe.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from intonaco.demo.data import SIZE, WORDS

_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,'-!?"
_TEXT_WIDTH = 64
# In a random text encoder, prompts that differ by one digit's name are almost the same vector.
# Word embeddings of unit scale (0.02 * 50) make the word count for more than its position.
_EMBEDDING_SCALE = 50.0


def build_tokenizer(words: Iterable[str], max_tokens: int = 12) -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer, built in memory, with one token for each of ``words``.

    A word outside the vocabulary falls back to letters.
    """
    vocabulary: dict[str, int] = {}
    merges: list[tuple[str, str]] = []

    def add(token: str) -> None:
        vocabulary.setdefault(token, len(vocabulary))

    add("<|startoftext|>")
    add("<|endoftext|>")
    for letter in _LETTERS:
        add(letter)
        add(letter + "</w>")
    for word in sorted({word for word in words if len(word) > 1}):
        joined = word[0]
        for part in [*word[1:-1], word[-1] + "</w>"]:
            if (joined, part) not in merges:
                merges.append((joined, part))
            joined += part
            add(joined)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_tokens)


def build_pipeline(seed: int = 0) -> Any:
    """An untrained StableDiffusionPipeline for 32x32 RGB images. The same seed gives the same
    weights; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = build_tokenizer(WORDS)
        return StableDiffusionPipeline(
            vae=_autoencoder(),
            text_encoder=_text_encoder(tokenizer),
            tokenizer=tokenizer,
            unet=_unet(),
            scheduler=DPMSolverMultistepScheduler(
                num_train_timesteps=1000,
                prediction_type="flow_prediction",
                use_flow_sigmas=True,
                flow_shift=1.0,
                steps_offset=1,  # unused with flow sigmas; the library warns of anything else
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def _text_encoder(tokenizer: Any) -> Any:
    """Random and frozen: the vocabulary is small enough that cross-attention learns the rest."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=_TEXT_WIDTH,
        intermediate_size=2 * _TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=_TEXT_WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder = CLIPTextModel(config).eval().requires_grad_(False)
    with torch.no_grad():
        encoder.get_input_embeddings().weight.mul_(_EMBEDDING_SCALE)
    return encoder


def _autoencoder() -> Any:
    """32x32x3 to 8x8x4 latents. ``scaling_factor`` is set once it is trained."""
    return AutoencoderKL(
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


def _unet() -> Any:
    return UNet2DConditionModel(
        sample_size=SIZE // 4,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=_TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )
