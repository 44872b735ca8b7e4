"""Pictures between requests, tensors and PNG bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from intonaco.serving.worker.core import InvalidRequest
from intonaco.serving.worker.tasks import vae_of


def png(image: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format="PNG", compress_level=1)
    return out.getvalue()


def conditioning_image(text: str, size: tuple[int, int]) -> Image.Image:
    """RGB of a request's base64 image at ``size`` (width, height); what is transparent is white,
    as viewers show it. Raises InvalidRequest."""
    image = _opened(text, "image").convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    flat = Image.alpha_composite(white, image).convert("RGB")
    return flat if flat.size == size else flat.resize(size, Image.Resampling.LANCZOS)


def mask_image(text: str, size: tuple[int, int]) -> Image.Image:
    """8-bit grey of a request's base64 mask: white is painted, black kept. Raises
    InvalidRequest."""
    mask = _opened(text, "mask").convert("L")
    return mask if mask.size == size else mask.resize(size, Image.Resampling.NEAREST)


def _opened(text: str, field: str) -> Image.Image:
    try:
        # The protocol knows PNGs only; of the decoders for other formats some start programs.
        image = Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=("PNG",))
        image.load()
    except Exception as error:  # decoders of foreign bytes raise nearly anything
        raise InvalidRequest(f"{field}: not a PNG in base64") from error
    return image


def unfinished(pipeline: Any, latents: Any, *, width: int, height: int) -> Sequence[Image.Image]:
    """PIL images of latents [n, …] in the middle of a run, noise and all.

    Empty where the latents' layout is not known here: packed ones are unpacked as Flux does it, 4-d
    ones are decoded, others (Flux 2, Qwen-Image) are not.
    """
    vae = vae_of(pipeline)
    if vae is None:
        return _as_images(latents) if latents.ndim == 4 and latents.shape[1] in (1, 3) else []
    if latents.ndim == 3:
        unpack = getattr(pipeline, "_unpack_latents", None)
        if unpack is None:
            return []
        latents = unpack(latents, height, width, pipeline.vae_scale_factor)
    config = vae.config
    if latents.ndim != 4 or latents.shape[1] != config.get("latent_channels"):
        return []
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and std is not None:
        shape = (1, len(mean), 1, 1)
        like = {"device": latents.device, "dtype": latents.dtype}
        scale = torch.tensor(std, **like).view(shape) / config.scaling_factor
        latents = latents * scale + torch.tensor(mean, **like).view(shape)
    else:
        latents = latents / config.scaling_factor + (config.get("shift_factor") or 0.0)
    # SDXL's VAE overflows in float16; the pipeline itself decodes in float32 then.
    upcast = vae.dtype == torch.float16 and config.get("force_upcast")
    if upcast:
        vae.to(dtype=torch.float32)
    try:
        return _as_images(vae.decode(latents.to(vae.dtype), return_dict=False)[0])
    finally:
        if upcast:
            vae.to(dtype=torch.float16)


def _as_images(pixels: Any) -> Sequence[Image.Image]:
    levels = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    rows = levels.permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(r[..., 0] if r.shape[-1] == 1 else r) for r in rows]
