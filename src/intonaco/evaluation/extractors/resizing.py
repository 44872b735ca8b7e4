"""Ways to make a picture 299 x 299, which published numbers differ in.

None is right for all: what matters is that both sides of a comparison had the same. "tensorflow1"
is that of the first FID code and of torch-fidelity: bilinear, taken at corners, without smoothing
first, so that fine texture turns into noise. "clean" is clean-fid's (Parmar et al. 2022): PIL's
bicubic, smoothed as it should be, of each channel in float. "pytorch" is pytorch-fid's: bilinear at
pixel centres, without smoothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

Resize = Callable[[NDArray[np.uint8], int], torch.Tensor]


def rgb(image: Any) -> NDArray[np.uint8]:
    """uint8 [h, w, 3] of a PIL image or an array."""
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    return np.asarray(picture.convert("RGB"), dtype=np.uint8)


def tensorflow1(pixels: NDArray[np.uint8], side: int) -> torch.Tensor:
    """Float32 [3, side, side] in 0 ... 255."""
    x = torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float()
    low_y, high_y, part_y = _corners(x.shape[1], side)
    low_x, high_x, part_x = _corners(x.shape[2], side)
    top, bottom = x[:, low_y], x[:, high_y]
    top = top[:, :, low_x] + (top[:, :, high_x] - top[:, :, low_x]) * part_x
    bottom = bottom[:, :, low_x] + (bottom[:, :, high_x] - bottom[:, :, low_x]) * part_x
    return top + (bottom - top) * part_y[:, None]


def _corners(size: int, side: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    at = torch.arange(side, dtype=torch.float32) * torch.tensor(size / side, dtype=torch.float32)
    low = at.long()
    return low, (low + 1).clamp_max(size - 1), at - low


def clean(pixels: NDArray[np.uint8], side: int) -> torch.Tensor:
    """Float32 [3, side, side] in 0 ... 255."""
    channels = [
        np.asarray(
            Image.fromarray(pixels[:, :, i].astype(np.float32)).resize(
                (side, side), Image.Resampling.BICUBIC
            )
        )
        for i in range(3)
    ]
    return torch.from_numpy(np.stack(channels).clip(0.0, 255.0))


def pytorch(pixels: NDArray[np.uint8], side: int) -> torch.Tensor:
    """Float32 [3, side, side] in 0 ... 255."""
    x = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float()
    return torch.nn.functional.interpolate(
        x, size=(side, side), mode="bilinear", align_corners=False
    )[0]


RESIZES: dict[str, Resize] = {"clean": clean, "pytorch": pytorch, "tensorflow1": tensorflow1}
