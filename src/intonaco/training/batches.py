"""Which items a step trains on, with which noise at which times.

Everything random of a step comes from one CPU generator, in one order and for the whole batch
whichever part of it a device computes: so a seed means the same on every device and on any number
of them, and the generator's state is all that a checkpoint must keep of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from intonaco.config import Recipe
from intonaco.training.cache import Bucket, Cache
from intonaco.training.objective import Objective


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """A batch, as drawn. ``without``: whose text is dropped."""

    bucket: Bucket
    items: Tensor  # [b]
    texts: Tensor  # [b], rows of the cache's texts
    without: Tensor  # [b], bool
    inside: Tensor | None  # [b, c, h, w], where in the posterior; None: its mean
    noise: Tensor  # [b, c, h, w]
    times: Tensor  # [b]

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What of a draw one device computes at once, on that device."""

    latents: Tensor  # [b, c, h, w]
    noise: Tensor  # [b, c, h, w]
    times: Tensor  # [b]
    condition: dict[str, Tensor]  # [b, …]
    frames: Tensor  # [b, 6]


def draw_batch(
    cache: Cache, objective: Objective, recipe: Recipe, tokens: list[int], random: torch.Generator
) -> Draw:
    """Items of one bucket with replacement, every item of the dataset equally often; one of each
    item's texts; no text with probability ``caption_dropout`` (classifier-free guidance, Ho and
    Salimans 2022, arXiv:2207.12598). ``tokens``: of an image, by bucket."""
    n = recipe.batch_size
    number = 0
    if len(cache.buckets) > 1:
        sizes = torch.tensor([len(bucket) for bucket in cache.buckets])
        picked = torch.randint(0, len(cache), (1,), generator=random)
        number = int(torch.bucketize(picked, sizes.cumsum(0), right=True))
    bucket = cache.buckets[number]
    items = torch.randint(0, len(bucket), (n,), generator=random)
    which = (torch.rand(n, generator=random) * bucket.counts[items]).long()
    without = torch.rand(n, generator=random) < recipe.caption_dropout
    shape = (n, *bucket.means.parts[0].shape[1:])
    inside = torch.randn(shape, generator=random) if recipe.latents == "sample" else None
    noise = torch.randn(shape, generator=random)
    return Draw(
        bucket=bucket,
        items=items,
        texts=bucket.choices[items, which],
        without=without,
        inside=inside,
        noise=noise,
        times=objective.draw(n, random, tokens[number]),
    )


def gather(cache: Cache, draw: Draw, part: slice, device: torch.device) -> Batch:
    """The rows of a part of a draw."""
    items, without = draw.items[part], draw.without[part]
    latents = draw.bucket.means.take(items)
    if draw.inside is not None:
        latents = latents + draw.bucket.deviations.take(items) * draw.inside[part]
    condition = {}
    for name, rows in cache.texts.items():
        said = rows.take(draw.texts[part])
        dropped = without.view(-1, *[1] * (said.ndim - 1))
        condition[name] = torch.where(dropped, cache.empty[name], said).to(device)
    return Batch(
        # Convolutions are faster in this layout, and all that follows takes it from here.
        latents=latents.to(device, memory_format=torch.channels_last),
        noise=draw.noise[part].to(device),
        times=draw.times[part].to(device),
        condition=condition,
        frames=draw.bucket.frames[items].to(device),
    )


def parts_of(n: int, rank: int, count: int, accumulation: int) -> list[slice]:
    """The parts of a batch of n that one of ``count`` devices computes, one after the other."""
    share = n // count
    size = share // accumulation
    first = rank * share
    return [slice(first + i * size, first + (i + 1) * size) for i in range(accumulation)]
