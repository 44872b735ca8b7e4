"""What was measured of two arms: all that a comparison sees. Arrays only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from intonaco.evaluation.intervals import Index
from intonaco.evaluation.metrics.arrays import Float


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmImages:
    """What was measured of one arm's images, one row an image: prompt, slice, cosine of image and
    prompt [n], features [n, d]. Both arms have the same prompts in the same order.

    The rest may be left out. ``scores``: numbers of each image by the name of the head that gave
    them [n], higher is better. ``hits``: whether the image is nearer to its own slice's prompts
    than to another slice's [n]. ``detail``: ``pixels.log_detail`` of the image [n]. ``unsafe``:
    whether the safety check refused it [n]. ``extractor``: digest of what made the features,
    preprocessing included.
    """

    prompt_ids: tuple[str, ...]
    slices: tuple[str, ...]
    adherence: Float
    features: Float
    scores: Mapping[str, Float] = field(default_factory=dict)
    hits: NDArray[np.bool_] | None = None
    detail: Float | None = None
    unsafe: NDArray[np.bool_] | None = None
    extractor: str = ""

    def rows(self, slices: Sequence[str]) -> Index:
        return np.flatnonzero(np.isin(self.slices, list(slices)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Features [m, d] of held-out real images. ``topics`` of each, or empty if they have none: then
    all of them stand for any slices. ``training``: features [t, d] of the images that either arm
    was trained on, if they are known. ``extractor``: as of ``ArmImages``."""

    features: Float
    topics: tuple[str, ...] = ()
    training: Float | None = None
    extractor: str = ""

    def of(self, slices: Sequence[str]) -> Float:
        if not self.topics:
            return self.features
        out: Float = self.features[np.isin(self.topics, list(slices))]
        return out


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """``log_ratios``: log of candidate's over champion's seconds, one a round. ``memory``: bytes of
    the weights of (champion, candidate).

    The rest may be left out. ``champion_times`` and ``candidate_times``: seconds of single requests
    in the order in which they were made, with the round of each in ``rounds``, the same for both.
    ``throughput_log_ratios``: log of candidate's over champion's images a second, one a round.
    ``peak_memory``: bytes at most while drawing, and ``cost_per_image``, in money: of (champion,
    candidate)."""

    log_ratios: tuple[float, ...]
    champion_seconds: float
    candidate_seconds: float
    memory: tuple[int, int]
    champion_times: tuple[float, ...] = ()
    candidate_times: tuple[float, ...] = ()
    rounds: tuple[int, ...] = ()
    throughput_log_ratios: tuple[float, ...] = ()
    peak_memory: tuple[int, int] | None = None
    cost_per_image: tuple[float, float] | None = None
