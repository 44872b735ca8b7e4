"""What workers are asked, of what a user wants. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from intonaco.messages import GenerateRequest
from intonaco.serving.gateway.api import Wanted
from intonaco.serving.gateway.dispatch import Asked
from intonaco.serving.gateway.uploads import Upload
from intonaco.types import Json


def ask(
    wanted: Wanted,
    defaults: Mapping[str, Json],
    upload: Upload | None,
    *,
    request_id: str,
    unit: str,
    digest: str,
    seed: int,
) -> Sequence[Asked]:
    """One an image: the same request, seeds in a row from ``seed``. ``defaults``: the champion's,
    for what the user did not choose. ``digest``: of the unit, which is all that a worker learns of
    it."""
    chosen: dict[str, float] = {}
    if wanted.steps is not None:
        chosen["steps"] = wanted.steps
    if wanted.guidance_scale is not None:
        chosen["guidance_scale"] = wanted.guidance_scale
    size = (upload.width, upload.height) if upload else wanted.size
    if size is not None:
        chosen["width"], chosen["height"] = size
    values = dict(defaults) | chosen
    first = GenerateRequest(
        request_id=request_id,
        prompt=wanted.prompt,
        negative_prompt=wanted.negative_prompt,
        seed=seed,
        steps=int(values["steps"]),
        guidance_scale=float(values["guidance_scale"]),
        width=int(values["width"]),
        height=int(values["height"]),
        unit=digest,
        image=upload.image if upload else None,
        mask=upload.mask if upload else None,
        strength=wanted.strength,
        partial_images=wanted.partial_images or 0,
    )
    return [
        Asked(
            request=first
            if wanted.n == 1
            else replace(first, request_id=f"{request_id}-{k}", seed=seed + k),
            unit=unit,
            chosen=frozenset(chosen),
        )
        for k in range(wanted.n)
    ]
