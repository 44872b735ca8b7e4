"""``evaluation``: how a candidate is proven."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from intonaco.config.base import Count, Positive, Section


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


class Benchmark(Section):
    """How time, throughput and memory are measured: in serving workers of their own, champion and
    candidate in turns. ``in_worker: false`` times them in the evaluation's process instead, where
    two workers do not fit beside what serves. ``waves``: of ``concurrency`` requests at once, for
    throughput; fewer than 5 give no interval, 0 measures none."""

    in_worker: bool = True
    concurrency: Count = 4
    waves: Annotated[int, Field(ge=0)] = 5


class Hidden(Section):
    """The share of the prompts that no report shows, so that nobody can learn them by heart.
    ``rotate``: others are hidden for each update, or each calendar month (UTC)."""

    share: Annotated[float, Field(ge=0, le=0.9)] = 0.2
    rotate: Literal["update", "month"] = "update"


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
    benchmark: Benchmark = Benchmark()
    hidden: Hidden = Hidden()
    cache_gb: Positive = 10.0  # of drawn images and features; the longest unused go first
    cache_days: Positive = 30.0  # unused for so long, they go too
