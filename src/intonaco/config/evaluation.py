"""``evaluation``: how a candidate is proven."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from intonaco.config.base import Count, Positive, Section
from intonaco.config.review import ReviewConfig


class Margins(Section):
    """Non-inferiority margins of the offline gate, absolute and fixed beforehand.

    ``adherence``: CLIP cosine. ``slice_adherence``: the same within each slice.
    ``distance``: relative MMD^2. ``recall``: share of reference images covered.
    ``latency``: log ratio. ``memory``: ratio, a hard limit."""

    adherence: Positive = 0.02
    slice_adherence: Positive = 0.05
    distance: Positive = 0.01
    recall: Positive = 0.10
    latency: Positive = 0.10
    memory: Positive = 1.25


class Evaluation(Section):
    prompts: str | None = None  # jsonl {"prompt_id", "prompt", "slice"}
    seeds_per_prompt: Count = 4
    batch_size: Count = 32
    latency_rounds: Count = 10
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    margins: Margins = Margins()
    min_improvement: Annotated[float, Field(ge=0)] = 0.01  # cosine, on what an update is to improve
    floor_adherence: float | None = None  # absolute, for a first release that has nothing to beat
    threads: Count = 1
    review: ReviewConfig = ReviewConfig()
