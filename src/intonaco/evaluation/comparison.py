"""A candidate against the champion on the same prompts, seeds and initial noise.

The unit is the prompt: seeds are averaged within it first. Images of one prompt resemble each
other, and a test that took them for independent would call noise a difference three times as often
as it says. Pure, NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from intonaco.config import Margins
from intonaco.evaluation.arms import ArmImages, Costs, Reference
from intonaco.evaluation.intervals import (
    Index,
    Interval,
    half_sample_error,
    hodges_lehmann,
    normal_quantile,
    t_interval,
)
from intonaco.evaluation.metrics import frechet_distance, relative_mmd
from intonaco.evaluation.metrics.arrays import Float, squared_distances
from intonaco.types import Assessment, MetricResult

__all__ = ["ArmImages", "Costs", "Reference", "assess", "assess_floor", "compare", "describe"]

NEIGHBOURS = 5  # of recall: a third less noise than 3, and collapse costs as much
DRAWS = 100  # of half-samples: a standard error to 7 %
LOWER_IS_BETTER = frozenset({"distance", "latency", "memory"})
FRECHET = "fd@"  # and the extractor's name


def assess(
    metric: str,
    difference: float | None,
    interval: Interval | None,
    margin: float | None,
) -> Assessment:
    """What an interval of candidate minus champion says. ``HARMFUL`` only if all of it is beyond
    the margin; ``NO_DATA`` if there is none, or a value in it is not finite. Without a margin it is
    a figure for information: better, worse or undecided."""
    margin = 0.0 if margin is None else margin
    if metric == "memory":  # a ratio of two exact numbers, and a hard limit
        if difference is None or not math.isfinite(difference):
            return Assessment.NO_DATA
        return Assessment.NON_INFERIOR if difference <= margin else Assessment.HARMFUL
    if difference is None or interval is None:
        return Assessment.NO_DATA
    if not all(math.isfinite(v) for v in (difference, *interval)):
        return Assessment.NO_DATA
    low, high = interval
    if metric in LOWER_IS_BETTER or metric.startswith(FRECHET):
        low, high = -high, -low
    if low > 0:
        return Assessment.SUPERIOR
    if low > -margin:
        return Assessment.NON_INFERIOR
    return Assessment.HARMFUL if high < -margin else Assessment.UNDECIDED


def compare(
    champion: ArmImages,
    candidate: ArmImages,
    reference: Reference,
    costs: Costs | None,
    *,
    keep: Sequence[str],
    improve: Sequence[str],
    alpha: float,
    margins: Margins,
    extractor: str = "features",
    seed: int = 0,
) -> tuple[MetricResult, ...]:
    """Every metric of the gate, guardrails first. Intervals are two-sided at level 1 - 2 alpha.

    ``keep`` must not get worse: distance and recall are measured on them alone, since a gain on
    ``improve`` would hide a loss there. What cannot be measured is left out; the gate misses it.
    Raises ValueError if the arms do not hold the same prompts in the same order.
    """
    if champion.prompt_ids != candidate.prompt_ids or champion.slices != candidate.slices:
        raise ValueError("champion and candidate have different prompts: nothing can be paired")
    out: list[MetricResult] = []

    def adherence(metric: str, rows: Index, slice_: str | None, margin: float | None) -> None:
        if len(rows):
            pair = (champion.adherence, candidate.adherence)
            a, b = (_per_prompt(x[rows], _take(champion.prompt_ids, rows)) for x in pair)
            difference, interval = t_interval(b - a, alpha)
            values = (float(a.mean()), float(b.mean()))
            out.append(_result(metric, slice_, values, difference, interval, margin, "cosine"))

    adherence("adherence", champion.rows(keep), None, margins.adherence)
    for name in (*keep, *improve):
        adherence("adherence", champion.rows([name]), name, margins.slice_adherence)
    out += _distribution(champion, candidate, reference, keep, alpha, margins, extractor, seed)
    if costs is not None:
        out += _costs(costs, alpha, margins)
    if improve:
        adherence("adherence_improve", champion.rows(improve), None, None)
        out += _recall(champion, candidate, reference, improve, alpha, None, seed)
    return tuple(out)


def describe(
    candidate: ArmImages, *, slices: Sequence[str], alpha: float, floor: float | None
) -> tuple[MetricResult, ...]:
    """Adherence of a candidate that has no champion to beat, overall and per slice, against an
    absolute floor. The interval is of the value itself."""
    out = []
    for name in (None, *slices):
        rows = candidate.rows(slices if name is None else [name])
        if len(rows) == 0:
            continue
        prompts = _per_prompt(candidate.adherence[rows], _take(candidate.prompt_ids, rows))
        value, interval = t_interval(prompts, alpha)
        out.append(
            MetricResult(
                metric="adherence",
                slice=name,
                champion=None,
                candidate=value,
                difference=None,
                interval=interval,
                margin=floor,
                assessment=assess_floor(interval, floor),
                guardrail=True,
                unit="cosine",
            )
        )
    return tuple(out)


def assess_floor(interval: Interval | None, floor: float | None) -> Assessment:
    """What an interval of an absolute value says against a floor."""
    if interval is None or floor is None or not all(math.isfinite(v) for v in interval):
        return Assessment.NO_DATA
    if interval[0] >= floor:
        return Assessment.NON_INFERIOR
    return Assessment.HARMFUL if interval[1] < floor else Assessment.UNDECIDED


def _distribution(
    champion: ArmImages,
    candidate: ArmImages,
    reference: Reference,
    keep: Sequence[str],
    alpha: float,
    margins: Margins,
    extractor: str,
    seed: int,
) -> list[MetricResult]:
    rows, real = champion.rows(keep), reference.of(keep)
    if len(rows) <= NEIGHBOURS or len(real) <= NEIGHBOURS:
        return []
    a, b = champion.features[rows], candidate.features[rows]
    prompts, slices = _take(champion.prompt_ids, rows), _take(champion.slices, rows)
    out = []
    if len(set(prompts)) > 1:
        mmd = relative_mmd(real, a, b, groups=prompts)
        half = normal_quantile(1 - alpha) * mmd.standard_error
        interval = (mmd.difference - half, mmd.difference + half)
        values = (mmd.champion, mmd.candidate)
        out.append(
            _result("distance", None, values, mmd.difference, interval, margins.distance, "MMD^2")
        )
    out += _recall(champion, candidate, reference, keep, alpha, margins.recall, seed)
    values = (frechet_distance(a, real), frechet_distance(b, real))
    error = half_sample_error(
        lambda r: frechet_distance(b[r], real) - frechet_distance(a[r], real),
        prompts,
        slices,
        draws=DRAWS,
        rng=np.random.default_rng(seed),
    )
    out.append(_normal(f"{FRECHET}{extractor}", values, error, alpha, None, "distance"))
    return out


def _recall(
    champion: ArmImages,
    candidate: ArmImages,
    reference: Reference,
    slices: Sequence[str],
    alpha: float,
    margin: float | None,
    seed: int,
) -> list[MetricResult]:
    rows, real = champion.rows(slices), reference.of(slices)
    if min(len(rows), len(real)) <= NEIGHBOURS:
        return []
    arms = [_Recall.of(arm.features[rows], real) for arm in (champion, candidate)]
    rng = np.random.default_rng(seed)

    def difference(drawn: Index) -> float:
        of = rng.choice(len(real), size=len(real) // 2, replace=False)
        before, after = (arm.share(drawn, of) for arm in arms)
        return after - before

    error = half_sample_error(
        difference,
        _take(champion.prompt_ids, rows),
        _take(champion.slices, rows),
        draws=DRAWS,
        rng=rng,
    )
    every, all_real = np.arange(len(rows)), np.arange(len(real))
    values = (arms[0].share(every, all_real), arms[1].share(every, all_real))
    name = "recall" if margin is not None else "recall_improve"
    return [_normal(name, values, error, alpha, margin, "share")]


@dataclass(frozen=True, slots=True)
class _Recall:
    """``metrics.precision_recall``'s recall of subsets, from distances taken once: among generated
    rows [n, n] (infinite on the diagonal), and of them to real rows [n, m]."""

    among: Float
    to_real: Float

    @classmethod
    def of(cls, generated: Float, real: Float) -> _Recall:
        among = squared_distances(generated, generated)
        np.fill_diagonal(among, np.inf)
        return cls(among, squared_distances(generated, real))

    def share(self, rows: Index, real: Index) -> float:
        """Share of the real rows within reach of the generated ones; NaN if those are too few."""
        if len(rows) <= NEIGHBOURS:
            return math.nan
        among = self.among[np.ix_(rows, rows)]
        radius = np.partition(among, NEIGHBOURS - 1, axis=1)[:, NEIGHBOURS - 1]
        covered = (self.to_real[np.ix_(rows, real)] <= radius[:, None]).any(0)
        return float(covered.mean())


def _costs(costs: Costs, alpha: float, margins: Margins) -> list[MetricResult]:
    seconds = (costs.champion_seconds, costs.candidate_seconds)
    centre, interval = hodges_lehmann(costs.log_ratios, alpha)
    latency = _result("latency", None, seconds, centre, interval, margins.latency, "log ratio")
    before, after = costs.memory
    ratio = after / before if before else None
    values = (float(before), float(after))
    return [latency, _result("memory", None, values, ratio, None, margins.memory, "ratio")]


def _normal(
    metric: str,
    values: tuple[float, float],
    error: float,
    alpha: float,
    margin: float | None,
    unit: str,
) -> MetricResult:
    difference = values[1] - values[0]
    half = normal_quantile(1 - alpha) * error
    interval = None if math.isnan(half) else (difference - half, difference + half)
    return _result(metric, None, values, difference, interval, margin, unit)


def _result(
    metric: str,
    slice_: str | None,
    values: tuple[float, float],
    difference: float | None,
    interval: Interval | None,
    margin: float | None,
    unit: str,
) -> MetricResult:
    found = assess(metric, difference, interval, margin)
    return MetricResult(
        metric=metric,
        slice=slice_,
        champion=values[0],
        candidate=values[1],
        difference=difference,
        interval=interval,
        margin=margin,
        assessment=found,
        guardrail=margin is not None,
        unit=unit,
    )


def _take(values: tuple[str, ...], rows: Index) -> list[str]:
    return [values[i] for i in rows]


def _per_prompt(values: Float, prompt_ids: Sequence[str]) -> Float:
    """Means within each prompt, prompts in order of first appearance."""
    numbers: dict[str, int] = {}
    index = np.array([numbers.setdefault(p, len(numbers)) for p in prompt_ids])
    out: Float = np.bincount(index, weights=values) / np.bincount(index)
    return out
