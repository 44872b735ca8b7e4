"""A review with pictures, for tests of the pages."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from intonaco.config import ReviewConfig
from intonaco.evaluation.prompts import Prompt
from intonaco.ledger import Ledger
from intonaco.review import desk
from intonaco.review.pictures import Drawn
from intonaco.types import Review, ReviewArm
from intonaco.workspace import Workspace

START = 1_700_000_000.0
# Names that must not be found anywhere that a reviewer looks.
ARMS = {"champion": "c0ffee" * 10 + "beef", "sharpened-lora": "deca1f" * 10 + "bade"}
COLOURS = {"champion": (60, 90, 150), "sharpened-lora": (180, 90, 40), "third": (60, 130, 60)}


def a_review(
    workspace: Workspace,
    ledger: Ledger,
    *,
    prompts: int = 20,
    side: int = 64,
    arms: dict[str, str] | None = None,
    now: float = START,
    review_id: str = "5e1ec7ed0001",
    **settings: Any,
) -> Review:
    """Opened in the ledger, its pictures on disk."""
    chosen = arms or ARMS
    asked = [
        Prompt(prompt_id=f"p{n}", prompt=f"a lighthouse at dusk, number {n}", slice=f"s{n % 3}")
        for n in range(prompts)
    ]
    drawn = []
    for name, release_id in chosen.items():
        file = workspace.root / f"{name}.npz"
        draw(file, name, asked, side)
        drawn.append(Drawn(arm=ReviewArm(name=name, release_id=release_id), file=file))
    return desk.open_review(
        ledger,
        workspace,
        ReviewConfig.model_validate(settings),
        review_id=review_id,
        arms=drawn,
        prompts=asked,
        alpha=0.05,
        now=now,
        actor="ann",
    )


def draw(
    file: Path, name: str, prompts: list[Prompt], side: int, hidden: Collection[str] = ()
) -> None:
    """Pictures in which a person sees which arm it is, as an evaluation saves them."""
    images = []
    for number, _ in enumerate(prompts):
        image = Image.new("RGB", (side, side), COLOURS[name])
        pen = ImageDraw.Draw(image)
        low, high = side // 5, side - side // 5
        pen.ellipse((low, low, high, high), fill=(240, 220, (number * 37) % 256))
        pen.rectangle((side // 2 - 3, low, side // 2 + 3, side), fill=(30, 30, 30))
        images.append(np.asarray(image))
    np.savez_compressed(
        file,
        images=np.array(images),
        prompt_ids=np.array([p.prompt_id for p in prompts]),
        slices=np.array([p.slice for p in prompts]),
        seeds=np.arange(len(prompts)),
        hidden=np.array([p.prompt_id in hidden for p in prompts]),
    )
