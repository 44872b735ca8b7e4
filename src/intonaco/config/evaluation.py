"""``evaluation``: how a candidate is proven."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, field_validator

from intonaco.config.base import Count, Positive, Section, Share
from intonaco.config.review import ReviewConfig


class Margins(Section):
    """Non-inferiority margins of the offline gate, absolute and fixed beforehand: how much worse is
    still no worse. ``intonaco eval plan`` says which of them so many prompts can show.

    Always judged: ``adherence``, CLIP cosine; ``slice_adherence``, the same within each slice;
    ``distance``, relative MMD^2; ``recall``, share of reference images reached; ``latency``, log
    ratio; ``memory``, ratio, a hard limit.

    Judged where measured, None: told only. ``copies``: more prompts with a copy of a training
    image, as a share; ``detail``: change of log_detail either way; ``unsafe``: share of prompts
    with an unsafe image at most; ``latency_p95`` and ``throughput``, log ratios; ``coverage`` and
    ``slice_recall``, shares; ``fd``, difference of Fréchet distances; ``diversity``, log ratio of
    distances between images of one prompt; ``hits``, share; ``cost``, ratio, a hard limit.
    ``scores``: by head, in its units; a head that is named must have been measured."""

    adherence: Positive = 0.02
    slice_adherence: Positive = 0.05
    distance: Positive = 0.01
    recall: Positive = 0.10
    latency: Positive = 0.10
    memory: Positive = 1.25
    copies: Positive | None = 0.10
    detail: Positive | None = 0.2
    unsafe: Share | None = 0.05
    latency_p95: Positive | None = 0.25
    throughput: Positive | None = None
    coverage: Positive | None = None
    slice_recall: Positive | None = None
    fd: Positive | None = None
    diversity: Positive | None = None
    hits: Positive | None = None
    cost: Positive | None = None
    scores: Mapping[str, Positive] = {}


SUCCESS = ("adherence", "hits", "distance", "recall", "coverage")  # and score:HEAD
OPTIONAL = (  # guardrails that are judged where measured
    "copies",
    "detail",
    "unsafe",
    "latency_p95",
    "throughput",
    "peak_memory",
    "coverage",
    "slice_recall",
    "fd",
    "diversity",
    "hits",
    "cost",
)


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
    """``success``: what a trained candidate must improve at least one of; alpha is shared out among
    them. ``min_improvement``: the least gain in cosine that is worth an update. ``require``: of the
    guardrails that are judged where measured, those without which there is no verdict.
    ``max_attempts``: candidates for one trigger and champion, each judged at half the alpha of the
    one before."""

    prompts: str | None = None  # jsonl {"prompt_id", "prompt", "slice"}
    seeds_per_prompt: Count = 4
    batch_size: Count = 32
    latency_rounds: Count = 30  # fewer bound no 95th percentile
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    power: Annotated[float, Field(gt=0, lt=1)] = 0.8  # that `eval plan` plans for
    max_attempts: Annotated[int, Field(ge=1, le=20)] = 6
    margins: Margins = Margins()
    success: Annotated[tuple[str, ...], Field(min_length=1)] = ("adherence",)
    require: tuple[str, ...] = ()
    min_improvement: Annotated[float, Field(ge=0)] = 0.01  # cosine, on what an update is to improve
    # absolute: for a first release that has nothing to beat, and from where on the champion serves
    # a slice well; without it each slice is a guardrail
    floor_adherence: float | None = None
    threads: Count = 1
    benchmark: Benchmark = Benchmark()
    hidden: Hidden = Hidden()
    cache_gb: Positive = 10.0  # of drawn images and features; the longest unused go first
    cache_days: Positive = 30.0  # unused for so long, they go too
    review: ReviewConfig = ReviewConfig()

    @field_validator("success")
    @classmethod
    def _known_success(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in given if name not in SUCCESS and not name.startswith("score:")]
        if unknown:
            raise ValueError(
                f"no metric of success: {', '.join(unknown)}; known: {', '.join(SUCCESS)}, "
                "score:HEAD"
            )
        if len(set(given)) < len(given):
            raise ValueError("a metric is named twice, which would cost alpha twice")
        return given

    @field_validator("require")
    @classmethod
    def _known_guardrails(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in given if name not in OPTIONAL]:
            raise ValueError(
                f"no guardrail that is judged where measured: {', '.join(unknown)}; known: "
                f"{', '.join(OPTIONAL)}"
            )
        return given
