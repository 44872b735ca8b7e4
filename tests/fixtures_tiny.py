"""Tiny pipelines with random weights: real classes, real files, no training.

``build`` makes the StableDiffusionPipeline that most tests use (two seeds give two releases);
``build_*`` one of each other family, in a tenth of a second.
"""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from intonaco.releases import ReleaseStore, read_serving_spec
from intonaco.types import Provenance, Release
from intonaco.workspace import Workspace

if TYPE_CHECKING:  # torch and diffusers are imported where they are used
    from intonaco.serving.worker.engine import Engine

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
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
    from transformers import CLIPTextModel

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    text = _clip(CLIPTextModel, hidden=64, inner=128)
    with torch.no_grad():
        text.get_input_embeddings().weight.mul_(50.0)
    vae = _vae(channels=(8, 16, 16))
    unet = _unet(SIZE // 4)
    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=1.0,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer(),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _clip(cls: Any, hidden: int = 32, inner: int = 64) -> Any:
    from transformers import CLIPTextConfig

    tok = tokenizer()
    return cls(
        CLIPTextConfig(
            vocab_size=len(tok),
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=tok.model_max_length,
            projection_dim=hidden,
            bos_token_id=tok.bos_token_id,
            eos_token_id=tok.eos_token_id,
            pad_token_id=tok.pad_token_id,
        )
    ).eval()


def _vae(latents: int = 4, channels: tuple[int, ...] = (8, 16), **more: Any) -> Any:
    """With two levels of channels two pixels a latent: 16x16 latents of a 32x32 image."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=latents,
        sample_size=SIZE,
        mid_block_add_attention=False,
        scaling_factor=1.0,
        **more,
    )


def _unet(side: int, **more: Any) -> Any:
    """``side``: of the latents."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=side,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=4,
        norm_num_groups=8,
        **more,
    )


def build_sdxl() -> Any:
    import torch
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    unet = _unet(
        SIZE // 2,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32 + 6 * 8,
    )
    return StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=_clip(CLIPTextModel),
        text_encoder_2=_clip(CLIPTextModelWithProjection),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        unet=unet,
        scheduler=EulerDiscreteScheduler(),
        add_watermarker=False,
    )


def build_sd3() -> Any:
    import torch
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )
    from transformers import CLIPTextModelWithProjection

    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=SIZE // 2,
        patch_size=2,
        in_channels=16,  # which its inpainting asks for
        out_channels=16,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=64,
        pooled_projection_dim=64,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_vae(16, shift_factor=0.0),
        text_encoder=_clip(CLIPTextModelWithProjection),
        tokenizer=tokenizer(),
        text_encoder_2=_clip(CLIPTextModelWithProjection),
        tokenizer_2=tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )


def build_flux() -> Any:
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel, T5Config, T5EncoderModel, T5Tokenizer

    torch.manual_seed(0)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    tokenizer_2 = T5Tokenizer(vocab=pieces, model_max_length=16)
    t5 = T5Config(
        vocab_size=len(tokenizer_2), d_model=32, d_ff=64, d_kv=8, num_layers=1, num_heads=4
    )
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_vae(shift_factor=0.0),
        text_encoder=_clip(CLIPTextModel),
        tokenizer=tokenizer(),
        text_encoder_2=T5EncoderModel(t5).eval(),
        tokenizer_2=tokenizer_2,
        transformer=transformer,
    )


def build_kontext() -> Any:
    """Flux that is shown pictures: made of the same parts."""
    from diffusers import FluxKontextPipeline

    return FluxKontextPipeline(**build_flux().components)


def build_inpaint() -> Any:
    """A pipeline that only paints within a mask, as the published inpainting models do."""
    from diffusers import StableDiffusionInpaintPipeline

    return StableDiffusionInpaintPipeline(**build().components, requires_safety_checker=False)


def build_dit() -> Any:
    """Class-conditional, 16x16."""
    import torch
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1000,
        norm_num_groups=4,
    )
    torch.nn.init.normal_(transformer.proj_out_2.weight)  # a fresh one answers zero to all classes
    return DiTPipeline(
        transformer=transformer, vae=_vae(), scheduler=DDIMScheduler(clip_sample=False)
    )


def build_ddpm() -> Any:
    """Unconditional, in pixels, 16x16."""
    import torch
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        block_out_channels=(16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    return DDPMPipeline(unet, DDPMScheduler())


def engine(root: Path, pipeline: Any, *, device: str = "cpu", **release: Any) -> Engine:
    """A worker's engine of a pipeline, by way of a release in ``root``. ``release``: as of
    ``add_release``."""
    from intonaco.serving.worker.engine import load

    workspace = Workspace(root)
    made = add_release(workspace, save_pipeline(pipeline, root / "p"), **release)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = load(made, workspace.resolve(made.path), device=device, threads=1)
    assert loaded.release_id == made.release_id
    return loaded


def picture(
    mode: str = "RGB",
    *,
    size: tuple[int, int] = (SIZE, SIZE),
    seed: int | None = None,
    level: int = 128,
    alpha: int = 255,
    half: bool = False,
) -> str:
    """A base64 PNG: noise of a seed, or one level; a mask (mode "L") is white, or half of it."""
    width, height = size
    if seed is not None:
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
        image = Image.fromarray(pixels).convert(mode)
    elif mode == "L":
        image = Image.new("L", size, 255)
        if half:
            image.paste(0, (0, 0, width // 2, height))
    else:
        image = Image.new(mode, size, (level,) * 3 + ((alpha,) if mode == "RGBA" else ()))
    out = io.BytesIO()
    image.save(out, format="PNG")
    return base64.b64encode(out.getvalue()).decode()


def save(folder: Path, seed: int = 0) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own deprecations
        return save_pipeline(build(seed), folder)


def save_pipeline(pipeline: Any, folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own deprecations
        pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def add_release(
    workspace: Workspace,
    folder: Path,
    *,
    recipe: str | None = None,
    service: str = "tiny",
    generation: Mapping[str, Any] = GENERATION,
    **options: Any,
) -> Release:
    """``options``: as of ``read_serving_spec``."""
    spec = read_serving_spec(folder, generation=generation, **options)
    provenance = Provenance(created_at=1.0, recipe=recipe)
    return ReleaseStore(workspace, service).add(folder, spec, provenance)
