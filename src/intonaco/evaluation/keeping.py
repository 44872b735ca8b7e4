"""An arm's images as the job keeps them: all of them as arrays, and a grid to look at."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from intonaco.evaluation.prompts import Shot
from intonaco.evaluation.sampling import Images
from intonaco.workspace import write_atomic

GRID_COLUMNS = 8


def save_images(
    out: Path,
    name: str,
    images: Images,
    all_shots: Sequence[Shot],
    *,
    slices: Sequence[str],
    hidden: Collection[str],
) -> None:
    """``images/NAME.npz``, which says what was asked and what of it is ``hidden``, and of the rest
    ``grids/NAME.png``."""
    raw = _npz(
        images=images,
        prompt_ids=np.array([s.prompt.prompt_id for s in all_shots]),
        prompts=np.array([s.prompt.prompt for s in all_shots]),
        slices=np.array([s.prompt.slice for s in all_shots]),
        seeds=np.array([s.seed for s in all_shots], dtype=np.int64),
        hidden=np.array([s.prompt.prompt_id in hidden for s in all_shots], dtype=np.bool_),
    )
    write_atomic(out / "images" / f"{name}.npz", raw)
    shown = [i for i, s in enumerate(all_shots) if s.prompt.prompt_id not in hidden]
    grid = sample_grid(images[shown], [all_shots[i] for i in shown], slices)
    picture = io.BytesIO()
    Image.fromarray(grid).save(picture, format="PNG")
    write_atomic(out / "grids" / f"{name}.png", picture.getvalue())


def sample_grid(images: Images, all_shots: Sequence[Shot], slices: Sequence[str]) -> Images:
    """One row a slice, images of different prompts side by side, uint8 [rows, columns, 3]."""
    height, width = images.shape[1:3]
    grid = np.zeros((len(slices) * height, GRID_COLUMNS * width, 3), dtype=np.uint8)
    for row, name in enumerate(slices):
        of_slice = [i for i, s in enumerate(all_shots) if s.prompt.slice == name]
        firsts = list({all_shots[i].prompt.prompt_id: i for i in reversed(of_slice)}.values())[::-1]
        shown = [*firsts, *(i for i in of_slice if i not in firsts)][:GRID_COLUMNS]
        for column, i in enumerate(shown):
            top, left = row * height, column * width
            grid[top : top + height, left : left + width] = images[i]
    return grid


def _npz(**arrays: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # it has one of another type
    return buffer.getvalue()
